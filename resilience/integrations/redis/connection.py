"""Connections of redis-py that end at the deadline of the call, and that tell how far the call has come."""

from __future__ import annotations

import socket
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from redis.connection import Connection
from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError

from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded
from ...workers.cut import SocketCut
from ...workers.ledger import LEDGER, registered
from ...workers.resolver import first_connected, literal, resolve

if TYPE_CHECKING:
    from ...workers.ledger import Living, Register

scope_of_call: ContextVar[Scope | None] = ContextVar("resilience_redis_scope", default=None)


class Scope(SocketCut):
    """One attempt of a command: its deadline, whether anything was sent, whether a reply was lost."""

    __slots__ = (
        "_seconds", "_started", "_twin", "ambient", "connecting", "is_busy", "is_lost", "is_sent", "name", "until",
        "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.is_busy = False
        self._twin: socket.socket | None = None

    def begin_call(self, name: str, seconds: float | None, ambient: bool, waits: bool = False) -> None:
        """An attempt begins, of a command that has `seconds` (None: no limit); raises its error where it has none."""
        self.name = name
        self.ambient = ambient
        self.waits = waits  # the server may take its time: the socket's own timeout does not hold
        self.connecting = self.is_sent = self.is_lost = False
        self._seconds = seconds
        self._started = SYSTEM.monotonic()
        if seconds == 0.0:
            raise self.error()
        self.until = None if seconds is None else self._started + seconds
        self.begin(self.until)

    def watch_handshake(self, made: socket.socket) -> None:
        """Watches a fresh connection by a socket of its own: TLS takes the first one away during its handshake."""
        self._twin = made.dup()
        if not self.attach(self._twin):
            raise self.error()

    def end_of_connecting(self) -> None:
        """What comes now is the command itself."""
        self.connecting = False
        self.detach()
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.close()

    def remaining(self) -> float | None:
        """Seconds left; raises `DeadlineExceeded` when there are none."""
        if self.until is None:
            return None
        left = self.until - SYSTEM.monotonic()
        if left <= 0 or self.expired:
            self.expired = True
            raise self.error()
        return left

    def error(self) -> DeadlineExceeded:
        """The error that says how far the command had come when its time was over."""
        elapsed = SYSTEM.monotonic() - self._started
        where = "waiting for the reply" if self.is_sent else "connecting" if self.connecting else "before it was sent"
        limit = "" if self._seconds is None else f" of {self._seconds:.3g} s"
        error = DeadlineExceeded(
            f"redis {self.name} exceeded its deadline{limit} after {elapsed:.3g} s, {where}",
            name=self.name, timeout=self._seconds, elapsed=elapsed, phase="running", ambient=self.ambient,
        )  # fmt: skip
        error.outcome = "unknown" if self.is_sent else "not_sent"  # type: ignore[attr-defined]  # for classify()
        return error


class _OfThread(threading.local):
    scope: Scope | None = None


_own = _OfThread()


def free_scope() -> Scope:
    """This thread's scope, or a new one where a call of this thread is under way."""
    scope = _own.scope
    if scope is None:
        scope = _own.scope = Scope()
    return Scope() if scope.is_busy else scope


class Watched:
    """What every connection adds: it is attached to the call's scope while it waits, and unfit when it was cut."""

    _sock: Any
    health_check_interval: float
    owner: str
    register: Register
    owes_reply = False  # a command was sent and its reply has not been read
    _entry: Living | None = None

    def connect(self) -> None:
        if self.owes_reply:  # a call was interrupted before it had its reply, which would be taken for the next one's
            self.disconnect()
        scope = scope_of_call.get()
        if scope is None or scope.connecting or self._sock is not None:
            super().connect()  # type: ignore[misc]  # of redis-py's connection
            return
        scope.connecting = True
        try:
            super().connect()  # type: ignore[misc]  # of redis-py's connection
        except BaseException as error:
            if not isinstance(error, Exception):  # after others redis-py does
                self.disconnect()
            raise
        finally:
            scope.end_of_connecting()

    def _connect(self) -> Any:
        place = getattr(self, "path", None) or f"{self.host}:{self.port}"  # type: ignore[attr-defined]  # of redis-py's
        connect = super()._connect  # type: ignore[misc]  # of redis-py's connection
        made, owned = registered(self.register, "connection", f"{self.owner} to {place}", connect)
        self._entry = LEDGER.enter("connection", self.owner, owned=owned, thing=self)
        return made

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        super().disconnect(*args, **kwargs)  # type: ignore[misc]  # of redis-py's connection
        self.owes_reply = False
        entry, self._entry = self._entry, None
        if entry is not None:
            LEDGER.leave(entry)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        scope = scope_of_call.get()
        if scope is None:
            super().send_packed_command(command, check_health)  # type: ignore[misc]  # of redis-py's connection
            return
        if not self._sock:
            scope.remaining()
            self.connect()
        if check_health and self.health_check_interval and not scope.connecting:
            self._check_health_within(scope)
        if self.owes_reply and not scope.connecting:
            self.disconnect()
            raise ConnectionError("a call on this connection was interrupted before it had its reply")
        if not scope.attach(self._sock):
            raise scope.error()
        try:
            self.owes_reply = not scope.connecting
            scope.is_sent = scope.is_sent or not scope.connecting
            super().send_packed_command(command, check_health=False)  # type: ignore[misc]  # of redis-py's connection
        except BaseException:
            scope.is_lost = scope.is_lost or not scope.connecting
            scope.detach()
            raise
        if not scope.detach():
            scope.is_lost = scope.is_lost or not scope.connecting
            self.disconnect()
            raise scope.error()

    def _check_health_within(self, scope: Scope) -> None:
        """The PING before a command, where one is due, is no part of the command."""
        scope.connecting = True
        try:
            self.check_health()  # type: ignore[attr-defined]  # of redis-py's connection
        except BaseException as error:
            if not isinstance(error, Exception):
                self.disconnect()
            raise
        finally:
            scope.connecting = False

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        scope = scope_of_call.get()
        if scope is None:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]  # of redis-py's connection
        if not scope.attach(self._sock):
            scope.detach()
            scope.is_lost = scope.is_lost or not scope.connecting
            self.disconnect()  # the reply is still on its way
            raise scope.error()
        try:
            if scope.waits and self._sock is not None:
                self._sock.settimeout(None)
            response = super().read_response(*args, **kwargs)  # type: ignore[misc]  # of redis-py's connection
        except (ResponseError, BusyLoadingError):
            self._let_go(scope)
            raise
        except BaseException:
            scope.is_lost = scope.is_lost or not scope.connecting
            scope.detach()
            raise
        self._let_go(scope)
        return response

    def _let_go(self, scope: Scope) -> None:
        """The reply is whole; a connection that was shut behind it is not used again."""
        self.owes_reply = False
        fit = scope.detach()
        if scope.waits and self._sock is not None:
            self._sock.settimeout(self.socket_timeout)  # type: ignore[attr-defined]  # of redis-py's connection
        if not fit:
            self.disconnect()


class TCP(Connection):
    """Connecting over TCP within the deadline: name resolution, every address, and the TLS handshake above it."""

    def _connect(self) -> Any:
        scope = scope_of_call.get()
        if scope is None or scope.until is None:
            return super()._connect()  # type: ignore[no-untyped-call]  # redis-py's has no types
        addresses = self._addresses(scope)
        try:
            return first_connected(addresses, lambda made, address: self._reach(made, address, scope))
        except OSError:
            scope.remaining()
            raise

    def _reach(self, made: socket.socket, address: Any, scope: Scope) -> None:
        self._set_up(made, scope)
        made.connect(address)
        made.settimeout(self.socket_timeout)
        scope.watch_handshake(made)

    def _addresses(self, scope: Scope) -> list[Any]:
        family = getattr(self, "socket_type", 0)
        known = literal(self.host, self.port, family)
        if known is not None:
            return known
        try:
            return resolve(self.host, self.port, family, scope.remaining() or 0.0)
        except DeadlineExceeded:
            scope.expired = True
            raise scope.error() from None

    def _set_up(self, made: socket.socket, scope: Scope) -> None:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.socket_keepalive:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (self.socket_keepalive_options or {}).items():
                made.setsockopt(socket.IPPROTO_TCP, option, value)
        left, own = scope.remaining(), self.socket_connect_timeout
        limits = [limit for limit in (left, own) if limit is not None]
        made.settimeout(min(limits) if limits else None)


def watched_class(cls: type, owner: str, register: Register) -> type:
    """The connection class `cls` with deadlines; one for TCP where its connecting is redis-py's own.

    Its connections are the `owner`'s in the ledger, and where `register` says so.
    """
    if cls is Connection:
        bases: tuple[type, ...] = (Watched, TCP)
    elif issubclass(cls, Connection) and not issubclass(cls, TCP):
        bases = (Watched, cls, TCP)
    else:
        bases = (Watched, cls)
    return type(f"Resilient{cls.__name__}", bases, {"owner": owner, "register": staticmethod(register)})
