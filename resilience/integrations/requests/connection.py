"""Connections of urllib3 that end with the request's scope, and the pools that never take a cut one back.

Name resolution, connecting and the TLS handshake are under the deadline like everything after them. Every open socket
is in the ledger as its owner's.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, EmptyPoolError, HTTPError, NameResolutionError, NewConnectionError

from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded
from ...workers.ledger import LEDGER, registered
from ...workers.resolver import first_connected, literal, resolve
from .scope import scope_of_call

if TYPE_CHECKING:
    from ...workers.ledger import Living, Register
    from .scope import Scope


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
    scope: Scope | None = None
    owner: str
    register: Register | None

    def _new_conn(self) -> socket.socket:
        scope = scope_of_call.get()
        (made, twin), owned = registered(
            self.register, "connection", f"{self.owner} to {self.host}:{self.port}", lambda: self._make(scope)
        )
        self.watched = twin
        twin.entry = LEDGER.enter("connection", self.owner, owned=owned, thing=twin)
        if scope is not None:
            scope.phase = "tls" if isinstance(self, HTTPSConnection) else "send"
            scope.attach(self.watched)
            self._limit_reads(made, scope)
        return made

    def _make(self, scope: Scope | None) -> tuple[socket.socket, _Twin]:
        made = self._connect(scope)
        try:
            return made, _Twin(fileno=os.dup(made.fileno()))
        except BaseException:  # no descriptor to be had
            made.close()
            raise

    def _connect(self, scope: Scope | None) -> socket.socket:
        if scope is None:
            return super()._new_conn()  # type: ignore[misc, no-any-return]  # of urllib3's connection
        return self._connect_within(scope)

    def _connect_within(self, scope: Scope) -> socket.socket:
        addresses = self._resolve(scope)
        try:
            return first_connected(addresses, lambda made, address: self._reach(made, address, scope))
        except OSError as failure:
            scope.remaining()
            if isinstance(failure, TimeoutError):
                raise ConnectTimeoutError(self, f"Connection to {self.host} timed out.") from failure
            raise NewConnectionError(self, f"Failed to establish a new connection: {failure}") from failure  # type: ignore[arg-type]  # a connection

    def _reach(self, made: socket.socket, address: Any, scope: Scope) -> None:
        scope.phase = "connect"
        for option in self.socket_options or ():
            made.setsockopt(*option)
        made.settimeout(self._limit(scope))
        if self.source_address:
            made.bind(self.source_address)
        made.connect(address)

    def _limit(self, scope: Scope) -> float:
        own = self.timeout if isinstance(self.timeout, (int, float)) else None
        left = scope.remaining()
        return left if own is None else min(own, left)

    def _resolve(self, scope: Scope) -> list[Any]:
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

    def _limit_reads(self, made: socket.socket, scope: Scope) -> None:
        """A handshake waits no longer than the deadline; the watchdog bounds everything after it."""
        if scope.phase == "tls":
            made.settimeout(self._limit(scope))

    def request(self, *args: Any, **kwargs: Any) -> None:
        scope = self.scope = scope_of_call.get()
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


class _Proxied(_Watched):
    """Through a proxy that has connections of its own kind (SOCKS): they connect themselves, in the time left."""

    def _connect_within(self, scope: Scope) -> socket.socket:
        scope.phase = "connect"
        own, self.timeout = self.timeout, self._limit(scope)
        try:
            return super()._connect(None)
        except HTTPError:
            scope.remaining()
            raise
        finally:
            self.timeout = own


_Connection.__name__, _TLSConnection.__name__ = "HTTPConnection", "HTTPSConnection"  # urllib3's errors show it


class _Releasing:
    """What both pools add: a connection is out of its scope before it is the next one's, or closed if it was cut."""

    owner: str
    register: Register | None
    block: bool

    def _new_conn(self) -> Any:
        conn = super()._new_conn()  # type: ignore[misc]  # of urllib3's pool
        conn.owner, conn.register = self.owner, self.register
        return conn

    def _get_conn(self, timeout: float | None = None) -> Any:
        scope = scope_of_call.get() if self.block else None
        if scope is None:
            return super()._get_conn(timeout)  # type: ignore[misc]  # of urllib3's pool
        scope.phase = "pool"
        left = max(0.0, scope.until - SYSTEM.monotonic())
        is_longer = timeout is None or timeout >= left
        try:
            conn = super()._get_conn(left if is_longer else timeout)  # type: ignore[misc]  # of urllib3's pool
        except EmptyPoolError:  # urllib3 puts a connection back after any other error
            scope.expired = scope.expired or is_longer
            raise
        scope.phase = "connect"
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


def pool_classes(owner: str, register: Register | None, kinds: Any = None) -> dict[str, Any]:
    """Pools whose connections are the `owner`'s in the ledger, and where `register` says so.

    `kinds` are the pools by scheme of a proxy whose connections connect themselves.
    """
    books = {"owner": owner, "register": register and staticmethod(register)}
    if kinds is not None:
        return {scheme: _proxied_class(kind, books) for scheme, kind in kinds.items()}
    return {
        "http": type("HTTPConnectionPool", (_Pool,), books),  # urllib3's errors show the name
        "https": type("HTTPSConnectionPool", (_TLSPool,), books),
    }


def _proxied_class(kind: Any, books: dict[str, Any]) -> Any:
    connection = type(kind.ConnectionCls.__name__, (_Proxied, kind.ConnectionCls), {})
    return type(kind.__name__, (_Releasing, kind), {**books, "ConnectionCls": connection})
