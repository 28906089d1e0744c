"""A circuit breaker: permit -> run -> record, with no lock held while the function runs.

While a breaker is closed and nothing wants attention, its `token` is not 0 and a call costs two looks at it and one
count. Everything else goes through `rules.breaker`, under a lock held for the change only.
"""

from __future__ import annotations

import threading
from types import AsyncGeneratorType, CoroutineType

from ..core.errors import CircuitOpenError, require
from ..core.signature import Template
from ..rules import breaker as rules
from ..rules.breaker_state import CLOSED, DISABLED, FORCED_OPEN, METRICS_ONLY, CircuitState
from .breaker_admission import Admission, refused
from .breaker_config import CircuitBreakerConfig, CountWindow, TimeWindow
from .breaker_core import NEVER
from .permit import Permit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, ParamSpec, TypeVar

    from ..core.pipeline import Call
    from .breaker_admission import Grant
    from .breaker_stats import BreakerStats

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["CircuitBreaker", "CircuitBreakerConfig", "CircuitState", "CountWindow", "Permit", "TimeWindow"]

# What a decorated function does: `CircuitBreaker.call` for one function. It refuses from its own frame, for each frame
# of a traceback costs a tenth.
_GUARDED = Template(
    """
    def wrapper({parameters}):
        if not (grant := breaker.token):
            if (refusal := breaker.refusal) and (now := breaker.clock.monotonic()) < refusal[0]:
                breaker.rejected += 1
                raise refused(CircuitOpenError, refusal, now)
            grant = breaker.admit()
        try:
            result = fn({arguments})
        except BaseException as error:
            breaker.on_failure(grant, error)
            raise
        if breaker.token == grant:
            breaker.successes += 1
            return result
        return breaker._finish(fn, grant, result)
""",
    names=("breaker",),
    scope=globals(),
)
_NOT_RESULTS = frozenset((CoroutineType, AsyncGeneratorType))


class _Entered(threading.local):
    """The `with breaker:` blocks this thread is inside of, outermost first."""

    def __init__(self) -> None:
        self.blocks: list[tuple[CircuitBreaker, Grant]] = []


_entered = _Entered()


class CircuitBreaker(Admission):
    """Stops calling what keeps failing, and tries again by a few probes. Safe to share between threads.

    Refused calls raise `CircuitOpenError`. Use it as `breaker.call(fn, ...)`, `@breaker`, `with breaker:` (one frame),
    by `acquire()` across frames, or as a strategy of a pipeline. `clock` gives the time, `events` hears of each change
    of state. With a `store` (or the URL of one) it is one breaker in all processes that use the name there: a healthy
    call still does no I/O, and a store that is away, slow or empty neither fails nor delays one.
    """

    __slots__ = ()

    # -- calling -----------------------------------------------------------------------------------------------

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn(*args, **kwargs)`, or raises `CircuitOpenError`; its outcome is recorded."""
        grant: Grant
        if not (grant := self.token):
            if (refusal := self.refusal) and (now := self.clock.monotonic()) < refusal[0]:
                self.rejected += 1
                raise refused(CircuitOpenError, refusal, now)
            grant = self.admit()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            self.on_failure(grant, error)
            raise
        if self.token == grant and result.__class__ not in _NOT_RESULTS:
            self.successes += 1
            return result
        return self._finish(fn, grant, result)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        from ..core.pipeline import refuse_async

        refuse_async(fn)
        return _GUARDED.wrap(fn, self)  # type: ignore[no-any-return]  # it has the signature of `fn`

    def _finish(self, fn: Callable[..., Any], grant: Grant, result: R) -> R:
        """Ends a call that returned although the breaker wants attention, or whose result is no result."""
        if result.__class__ in _NOT_RESULTS:
            from ..core.pipeline import refuse_awaitable

            self.on_ignored(grant)
            refuse_awaitable(fn, result)
        self.on_success(grant, result)
        return result

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline as one call of this breaker."""
        grant: Grant
        if call.token:  # the express lane has made this attempt under our token already
            grant, call.token = self.adopt(call.token), 0
        else:
            grant = self.token or self.admit()
        try:
            result = proceed(call)
            failing = call.failing_result is not None and call.failing_result(result)
        except BaseException as error:
            self.on_failure(grant, error)
            raise
        if call.fallback_used:
            self.on_ignored(grant)  # the answer is not the dependency's
        elif failing:
            self.count_failure(grant, None)
        elif self.token == grant:
            self.successes += 1
        else:
            self.on_success(grant, result)
        return result

    def __enter__(self) -> CircuitBreaker:
        _entered.blocks.append((self, self.token or self.admit()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        blocks = _entered.blocks
        last = len(blocks) - 1
        while last >= 0 and blocks[last][0] is not self:
            last -= 1
        if last < 0:
            raise RuntimeError(f"`with` on breaker {self.name!r} was entered in another thread: use acquire()")
        _, grant = blocks.pop(last)
        if error is not None:
            self.on_failure(grant, error)
        elif self.token == grant:
            self.successes += 1
        else:
            self.count_success(grant)

    def acquire(self) -> Permit:
        """A permit for one call, to be answered from wherever the call ends; raises `CircuitOpenError`."""
        return Permit(self, self.admit())

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> CircuitState:
        """The state as of the last call; reading changes nothing, so it is OPEN until the next call may probe."""
        if self.store is not None:
            return self._shared_books().state.mode
        books = self._books
        return CLOSED if books is None else books.state.mode

    @property
    def stats(self) -> BreakerStats:
        """What has passed so far: see `BreakerStats`. Totals live on across `reset()`."""
        books = self._shared_books()
        return books.stats(self.name, self.successes, self.rejected, self.clock.monotonic())

    def snapshot(self) -> dict[str, Any]:
        """The stats as plain data, ready for JSON."""
        return self.stats.as_dict()

    def retry_after(self) -> float | None:
        """Seconds until a call may pass: 0.0 when one may now, None when only `reset()` ends the state."""
        books = self._books if self.store is None else self._shared_books()
        if books is None:
            return 0.0
        now = self.clock.monotonic()
        with books.lock:
            return rules.retry_after(books.state, self.config, now)

    def force_open(self, reason: str | None = None, until: float | None = None) -> None:
        """Refuses every call until `reset()`, or until `until`, a point in time of the breaker's `clock.monotonic()`.

        The first call after `until` is a probe, as after a timeout. Raises `ConfigError` for an `until` that is no
        finite number.
        """
        fine = isinstance(until, (int, float)) and not isinstance(until, bool) and abs(until) < NEVER
        require(until is None or fine, "until", until, "expected a point in time of clock.monotonic() or None")
        self._order(FORCED_OPEN, reason or "forced open", until)

    def disable(self) -> None:
        """Lets every call through, uncounted, until `reset()`."""
        self._order(DISABLED, "disabled")

    def metrics_only(self) -> None:
        """Counts every call and refuses none until `reset()`; what would have opened it is logged and counted."""
        self._order(METRICS_ONLY, "metrics only")

    def reset(self) -> None:
        """Closes the breaker, with nothing counted against it; answers of calls begun before change nothing."""
        self._order(CLOSED, "reset")

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state}>"
