"""requests with a total deadline: name resolution, connecting, TLS, headers and body together.

A timeout of requests bounds one read: a server that drips bytes holds the caller for ever. Here one watchdog thread
shuts the socket of the call at its deadline, and whatever then fails is raised as `DeadlineExceeded`. The call stays in
the caller's thread; a connection that was cut never goes back to its pool.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3 import Retry

from ...core.ambient import time_left
from ...core.errors import DeadlineExceeded
from ...core.forks import afresh_in_children
from .connection import pool_classes
from .scope import Scope, scope_of_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from requests import PreparedRequest, Response

    from ...workers.ledger import Register


class DeadlineAdapter(HTTPAdapter):
    """An adapter for `session.mount` whose requests end at the ambient deadline, or after `seconds` if that is sooner.

    Raises `DeadlineExceeded`, also while a streamed body is read; its `outcome` tells whether anything was sent. The
    `timeout` of a request still bounds connecting and each read beneath the deadline. urllib3's own retries are off.
    Safe to share between threads as far as requests' adapters are; a forked child starts with no connections.
    """

    __attrs__ = (*HTTPAdapter.__attrs__, "seconds")  # of a copy
    _owner = "requests"
    _register: Register | None = None

    def __init__(self, seconds: float | None = None, **kwargs: Any) -> None:
        self.seconds = seconds
        super().__init__(max_retries=Retry(0, read=False), **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = pool_classes(self._owner, self._register)
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

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if proxy in self.proxy_manager:
            return self.proxy_manager[proxy]
        manager: Any = super().proxy_manager_for(proxy, **kwargs)
        kinds = manager.pool_classes_by_scheme if proxy.lower().startswith("socks") else None
        manager.pool_classes_by_scheme = pool_classes(self._owner, self._register, kinds)
        return manager

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        scope = self._new_scope(request)
        if scope is None:
            return super().send(request, *args, **kwargs)
        token = None
        try:
            token = scope_of_call.set(scope)
            response = super().send(request, *args, **kwargs)
            scope.phase = "body"
            raw: Any = response.raw
            raw.scope = scope
            raw.__class__ = _guarded_class(raw.__class__)
            return response
        except BaseException as error:
            scope.detach()
            if scope.expired and isinstance(error, Exception) and not isinstance(error, DeadlineExceeded):
                raise scope.error() from error
            raise
        finally:
            if token is not None:
                scope_of_call.reset(token)
            elif scope_of_call.get() is scope:  # a Ctrl-C as it was set
                scope_of_call.set(None)

    def _new_scope(self, request: PreparedRequest) -> Scope | None:
        left, is_own = time_left()
        own = self.seconds
        if left is None and own is None:
            return None
        bound_outside = own is None or (left is not None and left <= own)
        seconds = left if own is None or (left is not None and left < own) else own
        assert seconds is not None
        blames = bound_outside and not is_own
        scope = Scope(max(seconds, 0.0), blames, f"{request.method} {_without_secrets(request.url or '')}")
        if seconds <= 0:
            scope.detach()
            raise scope.error()
        return scope


class _Guarded:
    """What a body is given on top: every way to read it raises `DeadlineExceeded` when the socket was shut under it."""

    scope: Scope
    closed: bool
    connection: Any

    def read(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(super().read, args, kwargs)  # type: ignore[misc]  # of urllib3's response

    def read1(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(super().read1, args, kwargs)  # type: ignore[misc]  # of urllib3's response

    def _guarded(self, read: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            data = read(*args, **kwargs)
        except BaseException as error:
            self._give_up(error)
            raise
        self._judge(None)
        if self.closed:  # there is no more to come
            self.scope.detach()
        return data

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        try:
            yield from super().stream(*args, **kwargs)  # type: ignore[misc]  # of urllib3's response
        except Exception as error:
            self._give_up(error)
            raise
        self._judge(None)
        self.scope.detach()

    def _judge(self, error: Exception | None) -> None:
        if self.scope.expired:
            self.close()
            raise self.scope.error() from error

    def _give_up(self, error: BaseException) -> None:
        """The connection is closed: nobody reads from it any more."""
        if isinstance(error, Exception):
            self._judge(error)
        self.scope.detach()

    def close(self) -> None:
        super().close()  # type: ignore[misc]  # of urllib3's response
        self.scope.detach()

    def __del__(self) -> None:
        self.scope.detach()
        if self.connection is not None and not self.closed:
            self.connection.watched = None  # it was dropped unread, which its own finalizer tells of
        super().__del__()  # type: ignore[misc]  # of urllib3's response


@functools.cache
def _guarded_class(kind: Any) -> Any:
    """The class of responses `kind` under a deadline. No closures on the instance: dropped ones go at once."""
    return type(kind.__name__, (_Guarded, kind), {})


def _without_secrets(url: str) -> str:
    """The URL without its query and password: it goes into messages."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    return f"{scheme}://{place.rpartition('@')[2]}"
