"""A pool of PostgreSQL connections that waits, replaces what is dead, and can say who holds what.

A connection found dead takes its generation with it: those opened before it are closed instead of being handed out one
after another. Nothing here asks the server before every use: a dead socket shows itself, a connection that idled long,
or that was idle when another one fell silent, is asked once.
"""

from __future__ import annotations

import select
import sys
import threading
import warnings
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded, require, require_count, require_seconds
from ...core.forks import afresh_in_children
from ...workers.ledger import LEDGER, registered
from .connecting import Making
from .connection import ResilientConnection
from .holders import Holder, exhausted
from .limit import Limit, deadline_error, time_left
from .transaction import ServerBreaker, adapt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...manager import ErrorRecoveryManager
    from ...operation import Operation

PROBE_WITHIN = 1.0  # seconds, at most, in which an idle connection has to answer before it is handed out


class ResilientPool:
    """Connections to one database, at most `maxconn`, of which `minconn` are kept however long they idle.

    `with pool.connection() as connection:` commits at the end of the block, rolls back when it raises, and passes the
    breaker `manager.circuit_breaker(operation)`; `getconn()` and `putconn(connection)` are for code that knows
    psycopg2's pool. Statements end at the ambient `deadline()`, else after the timeout of `operation`. Connections are
    made when needed, with the further arguments those of `psycopg2.connect`. An idle connection is asked (`SELECT 1`)
    after `probe_after` seconds, and closed after `max_idle` ones beyond `minconn`.

    Raises `PoolExhausted`, naming the holders, when no connection comes back in time. Safe to share between threads;
    a forked child starts with none. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        dsn: str,
        manager: ErrorRecoveryManager,
        minconn: int = 1,
        maxconn: int = 10,
        *,
        operation: str = "database_operation",
        probe_after: float = 30.0,
        max_idle: float = 300.0,
        **connect: Any,
    ) -> None:
        require_count("minconn", minconn, minimum=0)
        require_count("maxconn", maxconn)
        require(minconn <= maxconn, "minconn", minconn, f"expected at most maxconn ({maxconn})")
        require_seconds("probe_after", probe_after)
        require_seconds("max_idle", max_idle)
        self.minconn, self.maxconn = minconn, maxconn
        self.operation_name = operation
        self._dsn, self._connect = dsn, connect
        self._probe_after, self._max_idle = probe_after, max_idle
        self._manager = manager  # it lives as long as its pools
        self.breaker = ServerBreaker(manager.circuit_breaker(operation))
        self.operation: Operation = manager.adapted_operation(operation, adapt(self.breaker))
        self._closed = False
        self._begin()
        afresh_in_children(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._idle: deque[tuple[ResilientConnection, float]] = deque()  # the one used last is taken first
        self._held: dict[ResilientConnection, Holder] = {}
        self._opening: set[Holder] = set()  # who waits for a connection that is being made
        self._waiting = 0
        self._born: dict[ResilientConnection, int] = {}
        self._generation = 0
        self._suspect_until = 0.0

    def fresh_locks(self) -> None:
        """Connections of its own in a forked child: the parent's are the parent's."""
        self._of_parent = (self._idle, self._held)
        self._begin()

    # -- taking and giving back ------------------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[ResilientConnection]:
        """A connection for the block, which is one transaction unless it commits itself."""
        with self.breaker.permit(), self.lend() as connection:
            yield connection
            if not connection.closed:
                connection.commit()

    @contextmanager
    def lend(self) -> Iterator[ResilientConnection]:
        """A connection for the block; what the block has not committed is rolled back."""
        connection = self.getconn()
        try:
            yield connection
        finally:
            self.putconn(connection)

    def getconn(self) -> ResilientConnection:
        """A connection that works, to be given back with `putconn`; waits for one within the deadline."""
        own = self.operation.parts.timeout
        seconds, ambient = time_left(own)
        until = None if seconds is None else SYSTEM.monotonic() + seconds
        holder = Holder()
        try:
            while True:
                connection, since = self._take(until, seconds, holder)
                if connection is None:
                    connection = self._open(until, ambient, holder)
                elif not self._is_fit(connection, since, until):
                    self._drop_dead(connection)
                    continue
                connection.seconds = own
                return connection
        except BaseException:  # a Ctrl-C too, at any moment
            self._give_up(holder)
            raise

    def _give_up(self, holder: Holder) -> None:
        """Makes room again for who gets no connection after all."""
        with self._changed:
            self._opening.discard(holder)
            taken = [connection for connection, other in self._held.items() if other is holder]
            for connection in taken:
                del self._held[connection]
                self._born.pop(connection, None)
            self._changed.notify()
        for connection in taken:
            connection.discard()

    def _take(
        self, until: float | None, seconds: float | None, holder: Holder
    ) -> tuple[ResilientConnection | None, float]:
        """An idle connection with the time it has idled since, or (None, 0.0): there is room for a new one."""
        with self._changed:
            while True:
                if self._closed:
                    raise psycopg2.InterfaceError("the pool is closed")
                if self._idle:
                    connection, since = self._idle.pop()
                    self._held[connection] = holder
                    return connection, since
                if len(self._held) + len(self._opening) < self.maxconn:
                    self._opening.add(holder)
                    return None, 0.0
                left = None if until is None else until - SYSTEM.monotonic()
                if left is not None and left <= 0:
                    raise exhausted(self.operation_name, self.maxconn, seconds or 0.0, self._held.values())
                self._waiting += 1
                try:
                    SYSTEM.wait(self._changed, left)
                finally:
                    self._waiting -= 1

    def putconn(self, connection: ResilientConnection) -> None:
        """Gives a connection back; it is rolled back, or replaced when it is dead or cannot be rolled back."""
        if connection.is_of_parent:
            return
        fit = False
        try:
            if connection.is_lost or connection.was_cut:
                self._lose_generation(connection)
            fit = not connection.closed and not connection.was_cut and self._is_clean(connection)
        finally:  # its place is free even if a Ctrl-C ends the rollback
            self._put_back(connection, fit)

    def _put_back(self, connection: ResilientConnection, fit: bool) -> None:
        """Makes a connection that is `fit` an idle one, and closes another."""
        with self._changed:
            known = self._held.pop(connection, None) is not None
            stale = self._born.get(connection, -1) != self._generation
            if known and fit and not stale and not self._closed:
                self._idle.append((connection, SYSTEM.monotonic()))
                surplus = self._surplus_held()
            else:
                self._born.pop(connection, None)
                surplus = [connection]
            self._changed.notify()
        for closing in surplus:
            closing.close()

    def _is_clean(self, connection: ResilientConnection) -> bool:
        """Ends what the last user has left open."""
        try:
            if connection.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE:
                connection.rollback()
            if connection.autocommit:
                connection.autocommit = False
        except (psycopg2.Error, DeadlineExceeded):
            return False
        return connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE

    def _surplus_held(self) -> list[ResilientConnection]:
        """Connections that have idled too long, the oldest first, as far as `minconn` are left."""
        surplus = []
        limit = SYSTEM.monotonic() - self._max_idle
        while self._idle and len(self._idle) + len(self._held) > self.minconn and self._idle[0][1] < limit:
            surplus.append(self._idle.popleft()[0])
            self._born.pop(surplus[-1], None)
        return surplus

    # -- dead and alive --------------------------------------------------------------------------------------------

    def _is_fit(self, connection: ResilientConnection, since: float, until: float | None) -> bool:
        """Whether an idle connection still works; only a doubtful one costs a round trip."""
        if connection.closed:
            return False
        ready = select.poll()
        ready.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        speaks = bool(ready.poll(0))  # an idle server says nothing but good-bye, or a notice
        idled = SYSTEM.monotonic() - since
        if not speaks and idled < self._probe_after and since >= self._suspect_until:
            return True
        left = PROBE_WITHIN if until is None else min(PROBE_WITHIN, max(0.0, until - SYSTEM.monotonic()) / 2)
        try:
            with extensions.cursor(connection) as plain:
                connection.watched(Limit(left, False, 0.0), "the probe", plain.execute, "SELECT 1")
            connection.rollback()
        except (psycopg2.Error, DeadlineExceeded):
            return False
        return True

    def _drop_dead(self, connection: ResilientConnection) -> None:
        self._lose_generation(connection)
        with self._changed:
            self._held.pop(connection, None)
            self._born.pop(connection, None)
            self._changed.notify()
        connection.discard()

    def _lose_generation(self, connection: ResilientConnection) -> None:
        """Closes the idle connections made before this one died; those that were only silent are asked instead."""
        with self._changed:
            if connection.was_cut:
                self._suspect_until = SYSTEM.monotonic()
                return
            if self._born.get(connection) != self._generation:
                return
            self._generation += 1
            dead = [idle for idle, _ in self._idle]
            self._idle.clear()
            for idle in dead:
                self._born.pop(idle, None)
            self._changed.notify_all()
        for idle in dead:
            idle.discard()

    def _open(self, until: float | None, ambient: bool, holder: Holder) -> ResilientConnection:
        """A new connection, made on a thread that can be left behind: libpq's own limit has whole seconds."""
        with self._changed:
            generation = self._generation
        left = None if until is None else max(0.0, until - SYSTEM.monotonic())
        making = Making(self._dsn, self._connect, left)
        begun = SYSTEM.monotonic()
        connection = None
        try:
            register, label = self._manager.resources.own, f"{self.operation_name} connection"
            connection, owned = registered(register, "connection", label, lambda: making.run(left))
            connection.entry = LEDGER.enter("connection", self.operation_name, owned=owned, thing=connection)
        except DeadlineExceeded:
            seconds = left or 0.0
            raise deadline_error("connecting", seconds, SYSTEM.monotonic() - begun, ambient, "not_sent") from None
        finally:
            with self._changed:
                self._opening.discard(holder)
                if connection is not None:
                    self._held[connection] = holder
                    self._born[connection] = generation
                self._changed.notify()
        return connection

    # -- seeing and ending -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """How many connections are held, idle and being made, who waits, and who holds them: plain data."""
        now = SYSTEM.monotonic()
        with self._changed:
            holders = [
                {"place": holder.place, "seconds": now - holder.since, "thread": holder.thread}
                for holder in self._held.values()
            ]
            return {"held": len(holders), "idle": len(self._idle), "opening": len(self._opening),
                    "waiting": self._waiting, "generation": self._generation, "holders": holders}  # fmt: skip

    def close(self) -> None:
        """Closes the idle connections now, those in use when they come back, and refuses to give out more."""
        with self._changed:
            self._closed = True
            idle = [connection for connection, _ in self._idle]
            self._idle.clear()
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    closeall = close

    def __enter__(self) -> ResilientPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}: use `with` or close()", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<ResilientPool of {self.maxconn} connections for {self.operation_name!r} at {id(self):#x}>"
