"""requests with a total deadline: name resolution, connecting, TLS, headers and body together.

A timeout of requests bounds one read: a server that drips bytes holds the caller for ever. Here one watchdog thread
shuts the socket of the call at its deadline, and whatever then fails is raised as `DeadlineExceeded`. The call stays in
the caller's thread; a connection that was cut never goes back to its pool.
"""

from __future__ import annotations

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

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = pool_classes(self._owner, self._register)
        return manager

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        scope = self._new_scope(request)
        if scope is None:
            return super().send(request, *args, **kwargs)
        token = scope_of_call.set(scope)
        try:
            response = super().send(request, *args, **kwargs)
        except Exception as error:
            scope.detach()
            if scope.expired and not isinstance(error, DeadlineExceeded):
                raise scope.error() from error
            raise
        finally:
            scope_of_call.reset(token)
        scope.phase = "body"
        response.raw.scope = scope  # type: ignore[union-attr]  # for who gives a streamed body another deadline
        _guard(response.raw, scope)
        return response

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


def _guard(raw: Any, scope: Scope) -> None:
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
