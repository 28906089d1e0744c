"""Connections of psycopg2 whose statements end at the deadline, on a living server and on a dead one.

A living server ends the statement itself: its `statement_timeout` goes along in the same round trip. Where no answer
comes, the watchdog shuts the socket `GRACE` seconds after the deadline, which wakes libpq wherever it waits; it never
calls `connection.cancel()`, which would hold the GIL while it connects to a server that may be dead. psycopg2's wait
callback is not used: it belongs to the whole process.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded, OutcomeUnknown
from ...workers.cut import SocketCut
from ...workers.ledger import LEDGER
from .cursor import ENDING, guarded_class
from .limit import GRACE, Limit, deadline_error, limit_of, time_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...workers.ledger import Living

_STALE = 0.1  # seconds by which the timeout told to the server may be too long: half of the grace
_TICK = 0.002  # seconds before its deadline from which a statement may have set the server's timer off


class FailedTransaction(psycopg2.errors.InFailedSqlTransaction):
    """A statement was tried in a transaction that has failed: only the whole transaction can be tried again."""

    pgcode = "25P02"


class ResilientConnection(extensions.connection):
    """A connection whose statements, commits and rollbacks end at the ambient deadline, or after `seconds`.

    Raises `DeadlineExceeded`, its `outcome` telling whether the server had answered; `OutcomeUnknown` for a COMMIT
    whose answer was lost; `FailedTransaction` for a statement in a failed transaction. One thread at a time may use it.
    """

    seconds: float | None = None
    _cut: SocketCut
    is_lost = False  # the server, or the way to it, has ended this connection
    was_cut = False  # the watchdog has
    _twin: socket.socket | None = None
    entry: Living | None = None  # of the ledger
    _pid = 0  # of the process that made it
    _told = 0.0  # the statement_timeout that holds in this transaction, in seconds; 0: none
    first_error = ""

    def prepare_watch(self) -> None:
        """Takes hold of the socket, so that the watchdog can shut it while libpq owns it."""
        self._pid = os.getpid()
        self._cut = SocketCut()
        self._twin = socket.socket(fileno=os.dup(self.fileno()))

    # -- one exchange ----------------------------------------------------------------------------------------------

    def limit(self, doing: str) -> Limit | None:
        """The deadline of the next exchange; raises `DeadlineExceeded` where there is no time left for it."""
        if self.was_cut:
            self.discard()
            raise psycopg2.InterfaceError("connection already closed: it was cut at a deadline")
        seconds, ambient = time_left(self.seconds)
        if seconds is None:
            return None
        if seconds <= 0:
            raise deadline_error(doing, 0.0, 0.0, ambient, "not_sent")
        return Limit(seconds, ambient)

    def limit_of_cleaning(self) -> Limit | None:
        """The deadline of what has to be done after the deadline, too: `GRACE` seconds then."""
        seconds, ambient = time_left(self.seconds)
        return None if seconds is None else Limit(max(seconds, GRACE), ambient, 0.0 if seconds < GRACE else GRACE)

    def watched(self, limit: Limit | None, doing: str, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs one exchange with the server, which ends with `limit`."""
        if limit is None:
            return self._noted(run, *args, **kwargs)
        cut = self._cut
        cut.begin(limit.until + limit.grace, self._twin)
        try:
            result = run(*args, **kwargs)
        except psycopg2.Error as error:
            cut.end()
            self._note(error)
            judged = self._judged(limit, doing, error)
            if judged is error:
                raise
            raise judged from error
        except BaseException:
            cut.end()
            raise
        if not cut.end():  # answer and end crossed: the answer counts, the connection does not
            self.was_cut = True
        elif SYSTEM.monotonic() >= limit.until - _TICK:
            self._catch_late_cancel(limit, doing)
        return result

    def _catch_late_cancel(self, limit: Limit, doing: str) -> None:
        """Takes the cancel that the server's timer may have sent as the statement ended: it would hit the next one.

        PostgreSQL looks at the signal only where it checks for interrupts, so it can lie there beyond the answer.
        """
        in_transaction = self._in_transaction()
        cut = self._cut
        cut.begin(SYSTEM.monotonic() + GRACE, self._twin)
        try:
            with extensions.cursor(self) as plain:
                plain.execute("SELECT 1")
        except psycopg2.errors.QueryCanceled:
            if in_transaction:
                raise limit.error(doing, "answered") from None
        except psycopg2.Error as error:
            self.was_cut = True
            if self.closed and doing not in ("COMMIT", "ROLLBACK"):  # and with it the rows that were not fetched
                raise limit.error(doing, "unknown") from error
        finally:
            if not cut.end():
                self.was_cut = True
        if not in_transaction and not self.autocommit and not self.was_cut:
            super().rollback()

    def _noted(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except psycopg2.Error as error:
            self._note(error)
            raise

    def _note(self, error: psycopg2.Error) -> None:
        self.first_error = self.first_error or f"{type(error).__name__}: {error}".strip()
        if self.closed:
            self.is_lost = True

    def _judged(self, limit: Limit, doing: str, error: psycopg2.Error) -> Exception:
        if self._cut.expired:
            self.is_lost, self.was_cut = False, True
            self.discard()
            return limit.error(doing, "unknown")
        canceled = isinstance(error, psycopg2.errors.QueryCanceled)
        if canceled and SYSTEM.monotonic() >= limit.until - 0.01:  # the server's clock has whole milliseconds
            return limit.error(doing, "answered")
        if self.closed:
            self.discard()
        return error

    @property
    def has_failed(self) -> bool:
        """Whether the transaction can only be rolled back."""
        return self.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR

    def refuse_if_failed(self, words: str) -> None:
        """Raises `FailedTransaction` unless the transaction is sound or the statement ends it."""
        if self.has_failed and not words.startswith(ENDING):
            raise FailedTransaction(
                f"this transaction has failed ({self.first_error}): a statement cannot be repeated within it, "
                "only the whole transaction, as run_transaction(pool, fn) does"
            )

    def prefix(self, limit: Limit) -> bytes:
        """What goes in front of a statement, in the same trip: the time the server has for it, where it is news."""
        if self._told and self.knows(limit):
            return b""
        self._told = limit.seconds
        return b"SET LOCAL statement_timeout = %d;\n" % max(1, int(limit.seconds * 1000))

    def knows(self, limit: Limit) -> bool:
        """Whether the timeout that holds in this transaction is near enough to `limit`."""
        return 0 <= self._told - limit.seconds <= _STALE and self._in_transaction()

    def tell_limit(self, limit: Limit | None) -> None:
        """Tells the server the time it has, in a trip of its own, where it does not know it well enough."""
        if limit is None or (self._told and self.knows(limit)):
            return
        scope = b"SET statement_timeout = %d" if self.autocommit else b"SET LOCAL statement_timeout = %d"
        statement = scope % max(1, int(limit.seconds * 1000))
        with extensions.cursor(self) as plain:
            self.watched(limit_of(limit), "setting the timeout", plain.execute, statement)
        self._told = limit.seconds

    def forget_limit(self) -> None:
        """Takes a timeout that was told to the session back; a failed transaction takes it back by itself."""
        if not self.autocommit:
            return
        self._told = 0.0
        if not self.closed and not self.has_failed:
            with extensions.cursor(self) as plain:
                self.watched(Limit(GRACE, False, 0.0), "resetting the timeout", plain.execute,
                             "SET statement_timeout TO DEFAULT")  # fmt: skip

    def _in_transaction(self) -> bool:
        return self.get_transaction_status() == extensions.TRANSACTION_STATUS_INTRANS

    # -- what psycopg2 offers --------------------------------------------------------------------------------------

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A cursor as psycopg2 makes it, of a class of ours beneath the one asked for."""
        default: Any = self.cursor_factory
        asked = kwargs.pop("cursor_factory", None) or default or extensions.cursor
        return super().cursor(*args, cursor_factory=guarded_class(asked), **kwargs)

    def commit(self) -> None:
        """Commits; raises `OutcomeUnknown` when the answer is lost, `FailedTransaction` where nothing can be committed.

        psycopg2 itself commits a failed transaction without a word, and PostgreSQL rolls it back.
        """
        self.refuse_if_failed("")
        if self.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
            super().commit()
            return
        limit = self.limit("COMMIT")
        try:
            self.watched(limit, "COMMIT", super().commit)
        except (psycopg2.Error, DeadlineExceeded) as error:
            if self.closed or getattr(error, "outcome", "") == "unknown":
                lost = "the answer to COMMIT was lost: the transaction may have taken effect, check before repeating it"
                raise OutcomeUnknown(f"PostgreSQL: {lost}", name="postgres", phase="commit") from error
            raise
        finally:
            self.forget_transaction()

    def rollback(self) -> None:
        """Rolls back; once the deadline has passed the server has `GRACE` seconds for it."""
        try:
            self.watched(self.limit_of_cleaning(), "ROLLBACK", super().rollback)
        finally:
            self.forget_transaction()

    def reset(self) -> None:
        """Rolls back and resets the session, within the same time as `rollback()`."""
        try:
            self.watched(self.limit_of_cleaning(), "RESET", super().reset)
        finally:
            self.forget_transaction()

    def forget_transaction(self) -> None:
        """What was said and seen in the transaction holds no more."""
        self._told = 0.0
        self.first_error = ""

    def reset_session(self) -> None:
        """Takes back what `set_session` has set, after the end of the transaction that it was for."""
        try:
            if self.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE:
                self.rollback()
            self.isolation_level = None
            self.readonly = None
        except (psycopg2.Error, DeadlineExceeded):  # the pool makes another one
            self.discard()

    @property
    def is_of_parent(self) -> bool:
        """Whether another process has made it, which goes on with it: nothing may be said to the server here."""
        return self._pid not in (0, os.getpid())

    def close(self) -> None:
        """Closes the connection and what watched it; a parent's in a forked child is let go of in silence."""
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.close()
        if not self.is_of_parent:
            super().close()
        entry, self.entry = self.entry, None
        if entry is not None:
            LEDGER.leave(entry)

    def discard(self) -> None:
        """Closes without a word to the other side: it may be dead."""
        if self._twin is not None and not self.is_of_parent:
            try:
                self._twin.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.close()

    def __del__(self) -> None:
        twin = self._twin
        if twin is not None:
            twin.close()
