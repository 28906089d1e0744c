"""A session of requests whose calls are calls of a named operation: deadline, retries, one breaker per host, counters.

What a server did with a request is not guessed: a method that is not idempotent is repeated only when the request was
certainly not sent, or was answered with 429 or 503. When retries end, the last response is returned as requests would
return it, and the last exception is raised.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import requests
from requests.utils import rewind_body

from ...core.ambient import current
from ...core.classify import classify
from ...core.errors import ErrorCategory, OutcomeUnknown, require, require_seconds
from ...core.history import attach, history
from ...lane import express
from .deadline import DeadlineAdapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from requests import PreparedRequest, Response

    from ...core.context import OperationContext
    from ...manager import ErrorRecoveryManager
    from ...parts import Parts

IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))  # RFC 9110, 9.2.2
REFUSED_UNDONE = (429, 503)  # RFC 6585, 4 and RFC 9110, 15.6.4: nothing was done, come back later
OWN_FAILURES = (408, 429)  # 4xx that are the host's trouble and not the request's
REMEMBERED = 1_000  # keys whose guards are kept at hand
TOO_EARLY = 425  # RFC 8470: worth a retry, says nothing about the host
_LOST = (ErrorCategory.TRANSIENT, ErrorCategory.RESOURCE)


def host(request: PreparedRequest) -> str:
    """Host and port of a request: what a breaker stands for unless another `key` is given."""
    place = (request.url or "").partition("://")[2].partition("/")[0]
    return place.rpartition("@")[2].lower()


def by_method(request: PreparedRequest) -> bool:
    """Whether repeating the request is harmless, by its method (RFC 9110, 9.2.2): not for POST and PATCH."""
    return (request.method or "").upper() in IDEMPOTENT


class ResilientAdapter(DeadlineAdapter):
    """An adapter for `session.mount`: each request is a call of `operation`, under everything registered for it.

    The operation's timeout bounds one attempt, name resolution to the last byte; the total is the ambient `deadline()`.
    With `stream=True` the attempt ends with the headers; the body is then under the ambient deadline, and `idle`
    seconds (None: the operation's timeout) without a byte end it. `key(request)` names the breaker, one per host by
    default, each with the configuration registered for the operation: no answer, 5xx, 408 and 429 are failures.
    `idempotent` says of a request whether it may be repeated after it was sent.

    Raises `DeadlineExceeded`, `OutcomeUnknown` (sent, not answered, not idempotent), `CircuitOpenError`,
    `RetryAfterTooLong`, and what requests raises. urllib3's own retries are off. Inside a call of the same operation
    the retries and counters are that call's. Safe to share between threads as far as requests' adapters are.
    """

    def __init__(
        self,
        manager: ErrorRecoveryManager,
        operation: str = "api_call",
        key: Callable[[PreparedRequest], str] = host,
        *,
        idempotent: Callable[[PreparedRequest], bool] = by_method,
        idle: float | None = None,
        **kwargs: Any,
    ) -> None:
        require(callable(key), "key", key, "expected a callable that names the breaker of a request")
        require(callable(idempotent), "idempotent", idempotent, "expected a callable that judges a request")
        require_seconds("idle", idle, positive=True, optional=True)
        if kwargs.pop("max_retries", None):
            warn_of_retries(2)
        self.operation = self._owner = operation
        self._register = manager.resources.own
        self._key = key
        self._idempotent = idempotent
        self._idle = idle
        self._manager = manager
        self._guards: dict[str, _Guard] = {}
        super().__init__(**kwargs)

    def __getstate__(self) -> Any:
        raise TypeError("a ResilientAdapter is its manager's, which is not copied: make another session")

    def _guard_of(self, key: str) -> _Guard:
        guard = self._guards.get(key)
        if guard is None:
            if len(self._guards) >= REMEMBERED:
                self._guards.clear()  # the breakers live on with the manager
            guard = self._guards[key] = _Guard(self._manager, self.operation, key)
        return guard

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        outer = current()
        guard = self._guard_of(self._key(request))
        exchange = _Exchange(self, request, args, kwargs, outer)
        try:
            if _is_inside(outer, self.operation):
                return guard.breaker.call(_attempt, exchange)
            return guard.call(exchange)
        except FailedStatus as error:
            attach(error.response, history(error))  # type: ignore[arg-type]  # history() reads it off a response too
            return error.response

    def exchange(self, exchange: _Exchange) -> Response:
        """One attempt: the whole response, or its head where it is streamed."""
        arguments = exchange.named_arguments()
        streamed = arguments.get("stream", False)
        if streamed:
            arguments["timeout"] = self._with_idle(arguments.get("timeout"))
        response = super().send(exchange.request, **arguments)
        if not streamed:
            response.content  # noqa: B018  # read within the attempt; requests finds it read
        elif (scope := getattr(response.raw, "scope", None)) is not None:
            scope.extend(None if exchange.outer is None else exchange.outer.remaining())
        return response

    def _with_idle(self, timeout: Any) -> Any:
        idle = self._idle if self._idle is not None else self._parts().timeout
        if timeout is None:
            return (None, idle)
        return (timeout[0], idle) if isinstance(timeout, tuple) and timeout[1] is None else timeout

    def is_repeatable(self, request: PreparedRequest) -> bool:
        """Whether the request may be sent again after it was sent."""
        return self._idempotent(request)

    def _parts(self) -> Parts:
        return self._manager.operation(self.operation).parts

    def drain_limiter(self, retry_after: float | None) -> None:
        """Tells the operation's rate limiter that the server has had too many."""
        limiter = self._parts().limiter
        if limiter is not None and retry_after is not None:
            limiter.drain(retry_after)


class _Exchange:
    """One request on its way, through all its attempts."""

    def __init__(
        self,
        adapter: ResilientAdapter,
        request: PreparedRequest,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outer: OperationContext | None,
    ) -> None:
        self.adapter = adapter
        self.request = request
        self.outer = outer
        self._args = args
        self._kwargs = kwargs
        self._attempts = 0
        self._failed: Response | None = None

    def named_arguments(self) -> dict[str, Any]:
        """The arguments of `HTTPAdapter.send` beside the request."""
        names = ("stream", "timeout", "verify", "cert", "proxies")
        return {**dict(zip(names, self._args, strict=False)), **self._kwargs}

    def attempt(self) -> Response:
        """Sends the request; raises `FailedStatus` for an answer that is a failure."""
        self._prepare()
        try:
            response = self.adapter.exchange(self)
        except Exception as error:
            self._judge(error)
            raise
        if not is_failed(response.status_code):
            return response
        self._failed = response
        raise self._failure(response)

    def _prepare(self) -> None:
        """Puts the former answer away, and the body back to its start."""
        failed, self._failed = self._failed, None
        if failed is not None:
            failed.close()
        self._attempts += 1
        body: Any = self.request.body
        position = self.request._body_position  # type: ignore[attr-defined]  # of requests
        if self._attempts > 1 and hasattr(body, "seek") and isinstance(position, int):  # no other was read so far
            rewind_body(self.request)

    def _judge(self, error: Exception) -> None:
        """Raises `OutcomeUnknown` where a request that must not run twice may have been acted on."""
        verdict = classify(error)
        if verdict.outcome == "not_sent" or verdict.category not in _LOST:
            return
        if not self.adapter.is_repeatable(self.request):
            name = f"{self.request.method} {host(self.request)}"
            phase = "sent" if verdict.outcome == "unknown" else verdict.outcome
            lost = f"{name} was sent and its answer was lost: it may have taken effect, check before repeating it"
            raise OutcomeUnknown(lost, name=name, phase=phase) from error
        if not self._has_reusable_body():
            error.unrepeatable = True  # type: ignore[attr-defined]  # for the policy

    def _failure(self, response: Response) -> FailedStatus:
        status = response.status_code
        error = FailedStatus(f"{status} {response.reason or ''}".strip(), response=response, request=self.request)
        refused = status in REFUSED_UNDONE
        error.unrepeatable = not (
            (refused or self.adapter.is_repeatable(self.request)) and self._has_reusable_body()
        )
        if status == 429:
            self.adapter.drain_limiter(classify(error).retry_after)
        return error

    def _has_reusable_body(self) -> bool:
        body = self.request.body
        if body is None or isinstance(body, (bytes, str)):
            return True
        return hasattr(body, "seek") and isinstance(self.request._body_position, int)


class FailedStatus(requests.HTTPError):
    """An answer that is a failure, on its way through the policies; the caller gets the response."""

    unrepeatable = False


def is_failed(status: int) -> bool:
    """Whether a status is a failed attempt, rather than an answer to the request."""
    return status >= 500 or status in OWN_FAILURES or status == TOO_EARLY


def _attempt(exchange: _Exchange) -> Response:
    return exchange.attempt()


class _Guard:
    """What stands around the requests of one key: the operation, with the breaker of the key as its breaker."""

    __slots__ = ("breaker", "call")

    def __init__(self, manager: ErrorRecoveryManager, operation: str, key: str) -> None:
        breaker = manager.living_breaker(f"{operation}:{key}", manager.breaker_config(operation))

        def adapt(parts: Parts) -> Parts:
            policy = parts.policy
            if policy is not None:
                own = policy.gives_up_on
                policy = policy.replace(give_up_on=lambda error: getattr(error, "unrepeatable", False) or own(error))
            return parts.replaced(breaker=breaker, policy=policy)

        self.breaker = breaker
        self.call = express(manager.adapted_operation(operation, adapt), _attempt, "caller")


def resilient_session(
    manager: ErrorRecoveryManager,
    session: requests.Session | None = None,
    *,
    operation: str = "api_call",
    key: Callable[[PreparedRequest], str] = host,
    **adapter: Any,
) -> requests.Session:
    """A session (a new one, or `session`) whose http and https requests go through a `ResilientAdapter`.

    The other arguments are the adapter's. Warns when `session` brings retries of urllib3's own: they are off here.
    """
    made = requests.Session() if session is None else session
    if any(_retries(mounted) for mounted in made.adapters.values()):
        warn_of_retries(2)
    one = ResilientAdapter(manager, operation, key, **adapter)
    for scheme in ("http://", "https://"):
        made.mount(scheme, one)
    return made


def _retries(adapter: Any) -> bool:
    retries = getattr(adapter, "max_retries", None)
    return any(getattr(retries, kind, None) for kind in ("total", "connect", "read", "status", "other"))


def warn_of_retries(depth: int) -> None:
    """Says once per place that urllib3's retries are switched off."""
    text = "urllib3's own retries (max_retries) are off: the operation's retry policy is the one that repeats"
    warnings.warn(text, UserWarning, stacklevel=depth + 1)


def _is_inside(context: OperationContext | None, operation: str) -> bool:
    while context is not None:
        if context.operation == operation:
            return True
        context = context.parent
    return False
