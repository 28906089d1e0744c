"""Retry: one loop for functions, pipelines and `for attempt in policy.attempts()`.

Nothing happens before a call and nothing after a success, where the policy allows it. After a failure
`retry_progress.Progress` decides what follows; the loop here only does it.
"""

from __future__ import annotations

import functools
from types import CoroutineType

from ..core import ambient
from ..core.clock import SYSTEM
from ..core.errors import ResilienceError
from ..core.pipeline import Call, invoke, raise_again, refuse_async, refuse_awaitable
from .nesting import mark, register_owner, register_wrapper
from .randomness import draw
from .retry_budget import RetryBudget
from .retry_policy import RetryPolicy
from .retry_progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random
    from types import TracebackType
    from typing import Any, ParamSpec, TypeVar

    from ..core.clock import Clock
    from ..core.events import EventStream

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["Attempting", "FailedResult", "Retry", "RetryBudget", "RetryPolicy"]


class FailedResult(ResilienceError):
    """The last result was one that `retry_on_result` calls failed; `.result` holds it."""

    def __init__(self, message: str | None = None, *, result: object = None) -> None:
        super().__init__(message)
        self.result = result

    def describe(self) -> str:
        return f"the result was a failure: {self.result!r}"[:500]


class Retry:
    """A policy bound to its surroundings; itself a strategy. Safe to share between threads.

    `rng` (a `random.Random`) makes the jitter repeatable. With a `clock` of its own every attempt is timed; without one
    the first attempt is as free as that of `RetryPolicy.call`.
    """

    quiet = True

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        name: str | None = None,
        clock: Clock | None = None,
        events: EventStream | None = None,
        rng: Random | None = None,
    ) -> None:
        self.policy = policy
        self.name = name or ""
        self.clock = clock or SYSTEM
        self.events = events
        self.draw: Callable[[], float] = rng.random if rng is not None else draw
        self.quiet = policy.is_direct
        self.is_direct = policy.is_direct and clock is None

    # -- calling -----------------------------------------------------------------------------------------------

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn(*args, **kwargs)` and again after failures; raises the original last error with its history."""
        if self.is_direct:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                failed = error
            else:
                return result if result.__class__ is not CoroutineType else refuse_awaitable(fn, result)
            try:
                return self.resume(fn, args, kwargs, failed)
            finally:
                del failed
        return self.run(invoke, Call(fn, args, kwargs, self.name))  # type: ignore[no-any-return]  # R by composition

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        refuse_async(fn)
        if self.is_direct:
            return self._direct(fn)
        call = self.call

        @functools.wraps(fn)
        def retried(*args: P.args, **kwargs: P.kwargs) -> R:
            return call(fn, *args, **kwargs)

        return retried

    def _direct(self, fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def retried(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                failed = error
            else:
                return result if result.__class__ is not CoroutineType else refuse_awaitable(fn, result)
            try:
                return self.resume(fn, args, kwargs, failed)
            finally:
                del failed

        return retried

    def attempts(self) -> Iterator[Attempting]:
        """`for attempt in retry.attempts(): with attempt: ...`: each block is one attempt, the last error is raised.

        `retry_on_result` does not apply: a block has no result. Raises `RuntimeError` when an attempt is not entered.
        """
        progress = Progress(self, Call(_no_function, (), None, self.name))
        while not progress.ended:
            attempt = Attempting(progress)
            yield attempt
            if not attempt.was_entered:
                raise RuntimeError("each attempt is a block: `for attempt in policy.attempts(): with attempt: ...`")

    def resume(self, fn: Callable[..., R], args: Any, kwargs: dict[str, Any], failed: Exception) -> R:
        """Goes on with a call of `fn` whose first attempt, already made, `failed`."""
        return self.run(invoke, Call(fn, args, kwargs, self.name), failed)  # type: ignore[no-any-return]  # R by composition

    def run(self, proceed: Callable[[Call], Any], call: Call, failed: Exception | None = None) -> Any:
        """Runs the rest of a pipeline, as often as the policy allows; `failed`: how its first attempt has ended.

        An operation that is cancelled or has no time left is not begun. Strategies inside see the result predicate as
        `call.failing_result`.
        """
        failing = self.policy.retry_on_result
        call.failing_result = failing or call.failing_result
        if failed is None and call.replay is None:
            _may_begin()
        progress = Progress(self, call)
        verdict_on_result: FailedResult | None = None
        final: BaseException | None = None
        try:
            while True:
                if failed is None:
                    try:
                        result = proceed(call)
                    except Exception as error:
                        failed = error
                    else:
                        if failing is None or not failing(result):
                            progress.succeeded()
                            return result
                        failed = verdict_on_result = FailedResult(result=result)
                final = progress.failed(failed, is_result=failed is verdict_on_result)
                if final is not None:
                    break
                failed = None
            if verdict_on_result is not None and final is verdict_on_result and not self.policy.raise_on_result:
                return verdict_on_result.result
            raise_again(final)
        finally:
            del failed, final, verdict_on_result, progress  # the traceback of an error must not hold the error

    def __repr__(self) -> str:
        return f"<Retry {self.name!r} {self.policy!r}>"


def _no_function() -> None:
    raise AssertionError("the block of an attempt runs in its own frame")


def _may_begin() -> None:
    context = ambient.current()
    if context is not None:
        context.checkpoint()


def _while_first(seen: Any) -> RetryPolicy | None:
    """The policy while the first attempt runs in the frame itself; afterwards `Retry.run` speaks for it."""
    retry: Retry = seen["self"]
    return retry.policy if retry.is_direct and "failed" not in seen else None


register_owner(Retry.run, lambda seen: seen["self"].policy)
register_owner(Retry.call, _while_first)
register_wrapper(Retry._direct, _while_first)


class Attempting:
    """One turn of `attempts()`: a context manager whose block is the attempt."""

    __slots__ = ("_progress", "_token", "was_entered")

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._token: Any = None
        self.was_entered = False

    @property
    def number(self) -> int:
        """Which attempt this is, from 1."""
        return self._progress.call.attempt

    def __enter__(self) -> Attempting:
        if self._progress.call.attempt == 1:
            _may_begin()
        self.was_entered = True
        self._token = mark(self._progress.policy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        ambient.retry_owner.reset(self._token)
        if error is None:
            self._progress.succeeded()
            return False
        if not isinstance(error, Exception):
            self._progress.ended = True
            return False
        try:
            final = self._progress.failed(error)
        except BaseException:  # a Ctrl-C in the backoff
            self._progress.ended = True
            raise
        if final is None or final is error:
            return final is None
        try:
            raise_again(final)
        finally:
            del error, final, trace
