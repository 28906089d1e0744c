"""What to retry, how often and after which delays: a frozen, validated description."""

from __future__ import annotations

from types import CoroutineType

from ..core.errors import CircuitOpenError, DeadlineExceeded, OutcomeUnknown
from ..core.pipeline import refuse_awaitable
from ..rules import backoff as rules
from .nesting import register_owner
from .retry_checks import are_types, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, ParamSpec, TypeVar

    from ..core.classify import Classification
    from .retry import Attempting, Retry
    from .retry_budget import RetryBudget

    P = ParamSpec("P")
    R = TypeVar("R")
    Types = tuple[type[BaseException], ...]


class RetryPolicy:
    """How a failed call is tried again. Frozen; times in seconds; `max_retries` counts repeats, not calls.

    The defaults are the specification's `api_call`. `max_retries=None`: only the deadline ends it. `max_delay=None`: no
    cap. `retry_on` (types or predicate) replaces what `classify()` calls retryable; `give_up_on` (types or predicate)
    wins over it. `retry_on_result(result)` true means failed: a breaker inside the retry counts a failure (it asks the
    same predicate), and after the last attempt that result is returned, unless `raise_on_result` makes a `FailedResult`
    of it. `idempotent=False`: repeated only when the request was certainly not sent. `overlap="allow"` also retries an
    attempt that may still run. `nested="multiply"` retries inside other policies too. An open breaker is never retried
    against, whatever `retry_on` says: `on_open="wait"` waits until it lets a probe through, which costs no retry.
    Raises `ConfigError` whose `key` is the parameter.
    """

    __slots__ = (
        "_bound",
        "backoff",
        "backoff_factor",
        "base_delay",
        "budget",
        "give_up_on",
        "idempotent",
        "is_direct",
        "jitter",
        "max_delay",
        "max_elapsed",
        "max_retries",
        "max_retry_after",
        "nested",
        "on_open",
        "overlap",
        "raise_on_result",
        "retry_on",
        "retry_on_result",
    )

    def __init__(
        self,
        max_retries: int | None = 3,
        base_delay: float = 0.1,
        max_delay: float | None = 5.0,
        backoff_factor: float = 2.0,
        jitter: bool | str | tuple[str, float] = True,
        *,
        backoff: str | Callable[[int], float] = "exponential",
        retry_on: Any = None,
        give_up_on: Any = (),
        retry_on_result: Callable[[Any], bool] | None = None,
        raise_on_result: bool = False,
        max_elapsed: float | None = None,
        budget: RetryBudget | None = None,
        idempotent: bool = True,
        max_retry_after: float | None = None,
        on_open: str = "raise",
        overlap: str = "forbid",
        nested: str = "owner",
    ) -> None:
        put = object.__setattr__
        put(self, "max_retries", max_retries)
        put(self, "base_delay", base_delay)
        put(self, "max_delay", max_delay)
        put(self, "backoff_factor", backoff_factor)
        put(self, "jitter", tuple(jitter) if isinstance(jitter, list) else jitter)
        put(self, "backoff", backoff)
        put(self, "retry_on", retry_on)
        put(self, "give_up_on", give_up_on)
        put(self, "retry_on_result", retry_on_result)
        put(self, "raise_on_result", raise_on_result)
        put(self, "max_elapsed", max_elapsed)
        put(self, "budget", budget)
        put(self, "idempotent", idempotent)
        put(self, "max_retry_after", max_retry_after)
        put(self, "on_open", on_open)
        put(self, "overlap", overlap)
        put(self, "nested", nested)
        put(self, "_bound", None)
        put(self, "is_direct", retry_on_result is None and max_elapsed is None and budget is None)
        check(self)

    if TYPE_CHECKING:
        max_retries: int | None
        base_delay: float
        max_delay: float | None
        backoff_factor: float
        jitter: bool | str | tuple[str, float]
        backoff: str | Callable[[int], float]
        retry_on: Any
        give_up_on: Any
        retry_on_result: Callable[[Any], bool] | None
        raise_on_result: bool
        max_elapsed: float | None
        budget: RetryBudget | None
        idempotent: bool
        max_retry_after: float | None
        on_open: str
        overlap: str
        nested: str
        is_direct: bool  # nothing is to be done before the first attempt, nor after a success
        _bound: Retry | None

    # -- what it says ----------------------------------------------------------------------------------------------

    def delays(self) -> Iterator[float]:
        """The delays before each retry, capped and not jittered, in seconds."""
        number = 0
        while self.max_retries is None or number < self.max_retries:
            yield self.delay_before(number)
            number += 1

    def delay_before(self, number: int) -> float:
        """The delay before retry `number` (from 0), capped and not jittered."""
        backoff = "exponential" if self.backoff == "decorrelated" else self.backoff
        return rules.capped(rules.raw_delay(backoff, number, self.base_delay, self.backoff_factor), self.max_delay)

    def jittered_delay(self, number: int, draw: Callable[[], float], previous: float | None) -> float:
        """The delay before retry `number` with its jitter; `draw()` gives numbers in [0, 1)."""
        jitter = "decorrelated" if self.backoff == "decorrelated" else self.jitter
        return rules.jittered(
            self.delay_before(number), jitter, draw, max_delay=self.max_delay, base=self.base_delay, previous=previous
        )

    def would_retry(self, error: BaseException, verdict: Classification | None = None) -> bool:
        """Whether this policy calls `error` worth a retry, whatever is left of its attempts."""
        return self.why_final(error, verdict) is None

    def would_retry_result(self, result: Any) -> bool:
        """Whether this policy calls `result` failed and may repeat the call that gave it."""
        if self.retry_on_result is None or not self.idempotent:
            return False
        try:
            return bool(self.retry_on_result(result))
        except Exception:  # it was not made for results of other functions
            return False

    def why_final(self, error: BaseException, verdict: Classification | None = None) -> str | None:
        """Why `error` is not retried by its kind; None when it may be."""
        if not isinstance(error, Exception) or isinstance(error, OutcomeUnknown):
            return "not retryable"
        lost = isinstance(error, DeadlineExceeded) and not error.reclaimed
        if lost and self.overlap == "forbid":
            return "may still run"
        if self.gives_up_on(error):
            return "given up on"
        if isinstance(error, CircuitOpenError):
            return "circuit open"
        if verdict is None:
            from ..core.classify import classify

            verdict = classify(error)
        if self.retry_on is not None:
            wanted = _matches(self.retry_on, error)
        else:
            wanted = verdict.retryable or (lost and not error.ambient)  # type: ignore[attr-defined]  # lost: a deadline
        if not wanted:
            return "not retryable"
        if not self.idempotent and verdict.outcome != "not_sent":
            return "not idempotent"
        return None

    def gives_up_on(self, error: Exception) -> bool:
        """Whether `give_up_on` names `error`."""
        return _matches(self.give_up_on, error)

    # -- using it --------------------------------------------------------------------------------------------------

    def bound(self) -> Retry:
        """This policy bound to the system's clock, with no events: what `call` and the decorator use."""
        if self._bound is None:
            from .retry import Retry

            object.__setattr__(self, "_bound", Retry(self))
        assert self._bound is not None
        return self._bound

    def as_strategy(self, *, name: str = "", clock: Any = None, events: Any = None) -> Retry:
        """The policy as a strategy of a pipeline."""
        from .retry import Retry

        return Retry(self, name=name, clock=clock, events=events)

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn(*args, **kwargs)` and again after failures; raises the original last error with its history.

        Raises `TypeError` for a function that returns a coroutine. The first attempt is not timed (its duration in a
        history is 0.0), nor held against an ambient deadline that has passed already, unless the policy has a budget,
        `max_elapsed` or `retry_on_result`: a call that succeeds costs nothing beyond itself.
        """
        if self.is_direct:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                failed = error
            else:
                return result if result.__class__ is not CoroutineType else refuse_awaitable(fn, result)
            try:
                return self.bound().resume(fn, args, kwargs, failed)
            finally:
                del failed
        return self.bound().call(fn, *args, **kwargs)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        return self.bound()(fn)

    def attempts(self) -> Iterator[Attempting]:
        """`for attempt in policy.attempts(): with attempt: ...`: the loop for code that is no function."""
        return self.bound().attempts()

    def replace(self, **changes: Any) -> RetryPolicy:
        """A copy with these parameters changed."""
        return RetryPolicy(**{**self._parameters(), **changes})

    def _parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("_bound", "is_direct")}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a RetryPolicy is frozen; policy.replace({name}=...) gives a changed copy")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetryPolicy) and self._parameters() == other._parameters()

    def __hash__(self) -> int:
        return hash((self.max_retries, self.base_delay, self.max_delay, self.backoff_factor))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._parameters(),)

    def __repr__(self) -> str:
        names = ("max_retries", "base_delay", "max_delay", "backoff_factor", "jitter")
        return f"RetryPolicy({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


# While its first attempt runs, `call` itself is the owner of the retries; afterwards `Retry.run` speaks for it.
register_owner(RetryPolicy.call, lambda seen: seen["self"] if seen["self"].is_direct and "failed" not in seen else None)


def _rebuild(parameters: dict[str, Any]) -> RetryPolicy:
    return RetryPolicy(**parameters)


def _matches(rule: Any, error: BaseException) -> bool:
    if not rule:
        return False
    if are_types(rule):
        return isinstance(error, rule)
    return bool(rule(error))
