"""The settings of a circuit breaker, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import ConfigError, require, require_count, require_seconds
from ..rules.window import CountedResults, TimedResults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LEASE_WITHOUT_TIMEOUT = 60.0  # seconds: with `timeout=0` a lease of the same length would end before any answer


@dataclass(frozen=True, slots=True)
class CountWindow:
    """Rates are taken from the last `size` results."""

    size: int = 100

    def __post_init__(self) -> None:
        require_count("size", self.size)

    def begin(self, fast: int) -> CountedResults:
        """An empty window, begun after `fast` fast successes."""
        return CountedResults(self.size, fast)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Rates are taken from the results of the last `seconds`, which slide in steps of a hundredth."""

    seconds: float = 60.0

    def __post_init__(self) -> None:
        require_seconds("seconds", self.seconds, positive=True)

    def begin(self, fast: int) -> TimedResults:
        """An empty window."""
        return TimedResults(self.seconds)


@dataclass(frozen=True, slots=True)
class CircuitBreakerConfig:
    """When a breaker opens, how it tries again, and what it counts.

    Durations are seconds; the defaults are the specification's.

    - `failure_threshold` failures in a row open it (None: only a window decides). They are forgotten when the last one
      is `reset_timeout` or longer ago (None: never).
    - With a `window` (`CountWindow` or `TimeWindow`) rates decide instead: `failure_rate` of its results failed, or
      `slow_call_rate` of them took `slow_call_duration` or longer, once it holds `minimum_calls` (None: off).
    - It stays open for `timeout`; then at most `max_requests` probes run at once, and `success_threshold` successes
      close it. A probe without an answer after `probe_lease` (None: as long as `timeout`; 60 s where that is 0)
      loses its place.
    - `is_failure(exc or None, result)` -> True, False or None (ignore) replaces the verdict of `classify`. It is not
      asked about rejections, the caller's cancel and ambient deadlines, which blame nobody.

    Raises `ConfigError` with `.key` for a value that cannot be used and for a breaker that could never open or close.
    """

    failure_threshold: int | None = 5
    success_threshold: int = 3
    timeout: float = 60.0
    max_requests: int = 10
    reset_timeout: float | None = 300.0
    window: CountWindow | TimeWindow | None = None
    failure_rate: float | None = 0.5
    minimum_calls: int = 10
    slow_call_duration: float | None = None
    slow_call_rate: float = 1.0
    probe_lease: float | None = None
    is_failure: Callable[[Exception | None, Any], bool | None] | None = None
    lease: float = field(init=False, repr=False, compare=False)
    is_timed: bool = field(init=False, repr=False, compare=False)  # durations of calls are wanted
    is_silent: bool = field(init=False, repr=False, compare=False)  # a success need not be told one by one

    def __post_init__(self) -> None:
        require_count("failure_threshold", self.failure_threshold, optional=True)
        require_count("success_threshold", self.success_threshold)
        require_seconds("timeout", self.timeout)
        require_count("max_requests", self.max_requests)
        require_seconds("reset_timeout", self.reset_timeout, positive=True, optional=True)
        _require_share("failure_rate", self.failure_rate, optional=True)
        require_count("minimum_calls", self.minimum_calls)
        require_seconds("slow_call_duration", self.slow_call_duration, positive=True, optional=True)
        _require_share("slow_call_rate", self.slow_call_rate)
        require_seconds("probe_lease", self.probe_lease, positive=True, optional=True)
        if self.is_failure is not None:
            require(callable(self.is_failure), "is_failure", self.is_failure, "expected a function (exc, result)")
        if self.window is not None:
            kinds = isinstance(self.window, (CountWindow, TimeWindow))
            require(kinds, "window", self.window, "expected a CountWindow, a TimeWindow or None")
        self._refuse_contradictions()
        self._derive()

    def _refuse_contradictions(self) -> None:
        window = self.window
        if window is None:
            if self.failure_threshold is None:
                raise _never_opens("failure_threshold", None, "give a failure_threshold or a window")
            return
        if self.failure_rate is None and self.slow_call_duration is None:
            raise _never_opens("failure_rate", None, "a window needs a failure_rate or a slow_call_duration")
        if isinstance(window, CountWindow) and self.minimum_calls > window.size:
            raise _never_opens(
                "minimum_calls", self.minimum_calls, f"a window of {window.size} calls never holds that many"
            )

    def _derive(self) -> None:
        put = object.__setattr__
        put(self, "lease", self.probe_lease or self.timeout or LEASE_WITHOUT_TIMEOUT)
        put(self, "is_timed", self.slow_call_duration is not None)
        silent = not (self.is_timed or self.is_failure is not None or isinstance(self.window, TimeWindow))
        put(self, "is_silent", silent)


def _require_share(key: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
    require(fine, key, value, "expected a share above 0 and up to 1" + (" or None" if optional else ""))


def _never_opens(key: str, value: object, remedy: str) -> ConfigError:
    return ConfigError(f"this breaker could never open with {value!r}: {remedy}", key=key, value=value)
