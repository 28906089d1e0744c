"""requests with a total deadline: name resolution, connecting, TLS, headers and body together.

A timeout of requests bounds one read: a server that drips bytes holds the caller for ever. Here one watchdog thread
shuts the socket of the call at its deadline, and whatever then fails is raised as `DeadlineExceeded`. The call stays in
the caller's thread; a connection that was cut never goes back to its pool.
"""

from __future__ import annotations

import os
import socket
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from ...core.clock import SYSTEM
from ...core.context import time_left
from ...core.errors import DeadlineExceeded
from ...core.forks import afresh_in_children
from ...workers.ledger import LEDGER, registered
from ...workers.resolver import literal, resolve
from ...workers.watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requests import PreparedRequest, Response

    from ...workers.ledger import Living, Register

OUTCOMES = {"dns": "not_sent", "connect": "not_sent", "tls": "not_sent", "send": "unknown", "headers": "unknown",
            "body": "partial"}  # fmt: skip
_scope: ContextVar[_Scope | None] = ContextVar("resilience_http_scope", default=None)


class _Scope:
    """One request under a deadline: how far it is, and the socket to shut when its time is over."""

    def __init__(self, seconds: float, ambient: bool, name: str) -> None:
        self.started = SYSTEM.monotonic()
        self.until = self.started + seconds
        self.seconds = seconds
        self.ambient = ambient
        self.name = name
        self.phase = "connect"
        self.expired = False
        self._lock = threading.Lock()
        self._watched: socket.socket | None = None
        self._inherited = False  # the connection has gone, its answer is still read: the socket is ours to close
        self._armed = WATCHDOG.arm(self.until, self._expire)

    def remaining(self) -> float:
        """Seconds left; raises `DeadlineExceeded` when there are none."""
        left = self.until - SYSTEM.monotonic()
        if left <= 0:
            self.expired = True
            raise self.error()
        return left

    def attach(self, watched: socket.socket | None) -> None:
        """Takes charge of a connection's socket."""
        with self._lock:
            self._watched = watched
            expired = self.expired
        if expired:
            raise self.error()

    def detach(self) -> bool:
        """Gives the socket back, before its connection goes to the pool; False when it was cut."""
        with self._lock:
            self._let_go_held()
        self._armed.cancel()
        return not self.expired

    def extend(self, seconds: float | None) -> None:
        """Ends `seconds` from now instead (None: never), with the ambient deadline to blame: for a streamed body."""
        self._armed.cancel()
        if seconds is not None:
            self.seconds = SYSTEM.monotonic() - self.started + seconds
            self.ambient = True
            self._armed = WATCHDOG.arm(SYSTEM.monotonic() + seconds, self._expire)

    def inherit(self, watched: socket.socket) -> bool:
        """Keeps the socket of a connection that closes while its answer is still to be read; False when over."""
        with self._lock:
            if self._watched is not watched:
                return False
            self._inherited = True
            return True

    def _let_go_held(self) -> None:
        watched, self._watched = self._watched, None
        if self._inherited and watched is not None:
            watched.close()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._watched is not None:
                try:
                    self._watched.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                if self._inherited:
                    self._let_go_held()

    def error(self) -> DeadlineExceeded:
        """The error that says in which phase the time was over."""
        elapsed = SYSTEM.monotonic() - self.started
        what = {"dns": "resolving the name", "connect": "connecting", "tls": "in the TLS handshake"}
        message = f"{self.name} exceeded its deadline of {self.seconds:.3g} s after {elapsed:.3g} s, "
        message += what.get(self.phase, f"waiting for the {self.phase}" if self.phase != "send" else "sending")
        error = DeadlineExceeded(
            message, name=self.name, timeout=self.seconds, elapsed=elapsed, phase="running", ambient=self.ambient
        )
        error.outcome = OUTCOMES[self.phase]  # type: ignore[attr-defined]  # what classify() looks at
        error.http_phase = self.phase  # type: ignore[attr-defined]  # for people
        return error


class _Twin(socket.socket):
    """A second handle of a connection's socket; as long as it is open, the connection is in the ledger."""

    entry: Living | None = None

    def close(self) -> None:
        super().close()
        if self.entry is not None:
            LEDGER.leave(self.entry)


class _Watched:
    """What both kinds of connections add: a socket that can be shut from the watchdog while TLS owns the first one."""

    sock: Any
    timeout: Any
    host: str
    port: int
    _dns_host: str
    source_address: Any
    socket_options: Any
    watched: socket.socket | None = None
    scope: _Scope | None = None
    owner: str
    register: Register | None

    def _new_conn(self) -> socket.socket:
        scope = _scope.get()
        made: socket.socket
        made, owned = registered(
            self.register, "connection", f"{self.owner} to {self.host}:{self.port}", lambda: self._connect(scope)
        )
        self.watched = twin = _Twin(fileno=os.dup(made.fileno()))
        twin.entry = LEDGER.enter("connection", self.owner, owned=owned, thing=twin)
        if scope is not None:
            scope.phase = "tls" if isinstance(self, HTTPSConnection) else "send"
            scope.attach(self.watched)
            self._limit_reads(made, scope)
        return made

    def _connect(self, scope: _Scope | None) -> socket.socket:
        if scope is None:
            return super()._new_conn()  # type: ignore[misc, no-any-return]  # of urllib3's connection
        return self._connect_within(scope)

    def _connect_within(self, scope: _Scope) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _, address in self._resolve(scope):
            scope.phase = "connect"
            made = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    made.setsockopt(*option)
                made.settimeout(self._limit(scope))
                if self.source_address:
                    made.bind(self.source_address)
                made.connect(address)
                return made
            except OSError as error:
                failure = error
                made.close()
            except BaseException:
                made.close()
                raise
        scope.remaining()
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out.") from failure
        raise NewConnectionError(self, f"Failed to establish a new connection: {failure}") from failure  # type: ignore[arg-type]  # a connection

    def _limit(self, scope: _Scope) -> float:
        own = self.timeout if isinstance(self.timeout, (int, float)) else None
        left = scope.remaining()
        return left if own is None else min(own, left)

    def _resolve(self, scope: _Scope) -> list[Any]:
        """The addresses of the host; a name is resolved on a thread that can be left behind."""
        known = literal(self._dns_host, self.port)
        if known is not None:
            return known
        scope.phase = "dns"
        try:
            return resolve(self._dns_host, self.port, 0, scope.remaining())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]  # a connection
        except DeadlineExceeded:
            scope.expired = True
            raise scope.error() from None

    def _limit_reads(self, made: socket.socket, scope: _Scope) -> None:
        """A handshake waits no longer than the deadline; the watchdog bounds everything after it."""
        if scope.phase == "tls":
            made.settimeout(self._limit(scope))

    def request(self, *args: Any, **kwargs: Any) -> None:
        scope = self.scope = _scope.get()
        if scope is not None:
            scope.phase = "send" if self.sock is not None else scope.phase
            if self.sock is not None:
                scope.attach(self.watched)
        super().request(*args, **kwargs)  # type: ignore[misc]  # of urllib3's connection
        if scope is not None:
            scope.phase = "headers"

    def close(self) -> None:
        scope, self.scope = self.scope, None
        watched, self.watched = self.watched, None
        super().close()  # type: ignore[misc]  # of urllib3's connection
        if watched is not None and (scope is None or not scope.inherit(watched)):
            watched.close()


class _Connection(_Watched, HTTPConnection):
    """Plain HTTP."""


class _TLSConnection(_Watched, HTTPSConnection):
    """HTTP over TLS."""


_Connection.__name__, _TLSConnection.__name__ = "HTTPConnection", "HTTPSConnection"  # urllib3's errors show it


class _Releasing:
    """What both pools add: a connection is out of its scope before it is the next one's, or closed if it was cut."""

    owner: str
    register: Register | None

    def _new_conn(self) -> Any:
        conn = super()._new_conn()  # type: ignore[misc]  # of urllib3's pool
        conn.owner, conn.register = self.owner, self.register
        return conn

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            scope, conn.scope = conn.scope, None
            if scope is not None and not scope.detach():
                conn.close()
        super()._put_conn(conn)  # type: ignore[misc]  # of urllib3's pool


class _Pool(_Releasing, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(_Releasing, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _pool_classes(owner: str, register: Register | None) -> dict[str, Any]:
    """Pools whose connections are the `owner`'s in the ledger, and where `register` says so."""
    books = {"owner": owner, "register": register and staticmethod(register)}
    return {
        "http": type("HTTPConnectionPool", (_Pool,), books),  # urllib3's errors show the name
        "https": type("HTTPSConnectionPool", (_TLSPool,), books),
    }


class DeadlineAdapter(HTTPAdapter):
    """An adapter for `session.mount` whose requests end at the ambient deadline, or after `seconds` if that is sooner.

    Raises `DeadlineExceeded`, also while a streamed body is read; its `outcome` tells whether anything was sent. The
    `timeout` of a request still bounds connecting and each read beneath the deadline. urllib3's own retries are off.
    Safe to share between threads as far as requests' adapters are; a forked child starts with no connections.
    """

    _owner = "requests"
    _register: Register | None = None

    def __init__(self, seconds: float | None = None, **kwargs: Any) -> None:
        self.seconds = seconds
        super().__init__(max_retries=Retry(0, read=False), **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pool_classes(self._owner, self._register)
        self._pool_arguments = args, kwargs
        afresh_in_children(self)

    def fresh_locks(self) -> None:
        """Connections of its own in a forked child: on the parent's, their answers would get mixed up."""
        self._of_parent = self.poolmanager, self.proxy_manager
        self.proxy_manager = {}
        args, kwargs = self._pool_arguments
        DeadlineAdapter.init_poolmanager(self, *args, **kwargs)

    def close(self) -> None:
        """Closes the idle connections now, those in use with their answers."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118  # iterating over it is what urllib3 forbids
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _pool_classes(self._owner, self._register)
        return manager

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        scope = self._new_scope(request)
        if scope is None:
            return super().send(request, *args, **kwargs)
        token = _scope.set(scope)
        try:
            response = super().send(request, *args, **kwargs)
        except Exception as error:
            scope.detach()
            if scope.expired and not isinstance(error, DeadlineExceeded):
                raise scope.error() from error
            raise
        finally:
            _scope.reset(token)
        scope.phase = "body"
        response.raw.scope = scope  # type: ignore[union-attr]  # for who gives a streamed body another deadline
        _guard(response.raw, scope)
        return response

    def _new_scope(self, request: PreparedRequest) -> _Scope | None:
        left, is_own = time_left()
        own = self.seconds
        if left is None and own is None:
            return None
        bound_outside = own is None or (left is not None and left <= own)
        seconds = left if own is None or (left is not None and left < own) else own
        assert seconds is not None
        blames = bound_outside and not is_own
        scope = _Scope(max(seconds, 0.0), blames, f"{request.method} {_without_secrets(request.url or '')}")
        if seconds <= 0:
            scope.detach()
            raise scope.error()
        return scope


def _guard(raw: Any, scope: _Scope) -> None:
    """Lets every way to read the body raise `DeadlineExceeded` when the socket was shut under it."""

    def guarded(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                data = read(*args, **kwargs)
            except Exception as error:
                raise_if_expired(error)
                raise
            raise_if_expired(None)
            return data

        return call

    def raise_if_expired(error: Exception | None) -> None:
        if scope.expired:
            raw.close()
            raise scope.error() from error
        if error is not None:  # the connection is closed: nobody reads from it any more
            scope.detach()

    stream, close = raw.stream, raw.close

    def guarded_stream(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        try:
            yield from stream(*args, **kwargs)
        except Exception as error:
            raise_if_expired(error)
            raise
        raise_if_expired(None)
        scope.detach()

    def guarded_close() -> None:
        close()
        scope.detach()

    raw.stream, raw.close = guarded_stream, guarded_close
    raw.read = guarded(raw.read)
    if hasattr(raw, "read1"):
        raw.read1 = guarded(raw.read1)


def _without_secrets(url: str) -> str:
    """The URL without its query and password: it goes into messages."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    return f"{scheme}://{place.rpartition('@')[2]}"
