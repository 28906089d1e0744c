"""What the calls of a named operation came to: exact counters, folded in the calls themselves.

`calls` counts calls, not attempts. A timeout is also a failure, and so is a call that a fallback saved; a rejection
(the function was not started) is counted apart, and so is a call that its caller cancelled. `recovered` are the
successes and `exhausted` the failures that had retries.
"""

from __future__ import annotations

import sys
import threading

from .histogram import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

WINDOW = 300.0  # seconds that rates and alerts look back (specification: "Alert Thresholds", five minutes)
STEP = 5.0  # seconds between two snapshots within the window
HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
COUNTERS = ("failures", "retries", "timeouts", "rejections", "fallbacks", "cancelled", "recovered", "exhausted")


class Tally:
    """Cumulative counts at one moment: two of them give the rates of the time between."""

    __slots__ = ("at", "calls", "cancelled", "exhausted", "failures", "fallbacks", "recovered", "rejections", "retries",
                 "successes", "timeouts")  # fmt: skip

    def __init__(self, at: float, stats: OperationStats) -> None:
        self.at = at
        for counter in COUNTERS:
            setattr(self, counter, getattr(stats, counter))
        ran = stats.durations.total
        self.successes = ran - stats.failures - stats.cancelled
        self.calls = ran + stats.rejections

    if TYPE_CHECKING:
        failures: int
        retries: int
        timeouts: int
        rejections: int
        fallbacks: int
        cancelled: int
        recovered: int
        exhausted: int


class OperationStats:
    """The counters and durations of one operation. Recording is safe from any thread and takes no clock reading."""

    __slots__ = (
        "_lock",
        "_tallies",
        "cancelled",
        "durations",
        "exhausted",
        "failures",
        "fallbacks",
        "last_at",
        "name",
        "next_tally",
        "on_tally",
        "on_trouble",
        "recovered",
        "rejections",
        "retries",
        "started",
        "timeouts",
    )

    def __init__(self, name: str, now: float, lock: AbstractContextManager[Any] | None = None) -> None:
        self.name = name
        self.started = now
        self.durations = Histogram()  # of every call that ran, failed or not
        self.failures = self.retries = self.timeouts = self.rejections = self.fallbacks = self.cancelled = 0
        self.recovered = self.exhausted = 0
        self.on_trouble: Callable[[OperationStats], object] | None = None  # hears of each failure and retry
        self.on_tally: Callable[[], object] | None = None  # called every `STEP` seconds while there are calls
        self._lock = lock or threading.RLock()  # re-entrant: a finalizer or a signal's handler may ask in the middle
        self._tallies: tuple[Tally, ...] = ()
        self.next_tally = self.last_at = now

    def record(
        self, now: float, duration: float, outcome: str, *, retries: int = 0, timed_out: bool = False,
        fell_back: bool = False,
    ) -> None:  # fmt: skip
        """Counts one finished call: `outcome` is "success", "failure", "rejection" or "cancelled"."""
        if now >= self.next_tally:
            self.keep_tally(now)
        self.last_at = now
        with self._lock:
            if outcome == "failure":
                self.failures += 1
                self.exhausted += retries > 0
            elif outcome == "rejection":
                self.rejections += 1
            elif outcome == "cancelled":
                self.cancelled += 1
            else:
                self.recovered += retries > 0
            self.retries += retries
            self.timeouts += timed_out
            self.fallbacks += fell_back
            if outcome != "rejection":
                self.durations.add(duration)
        if self.on_trouble is not None and (retries or outcome == "failure"):
            self.on_trouble(self)

    def keep_tally(self, now: float) -> None:
        """Keeps the counts as the last call left them, dated then: the far end of a later window, true to `STEP`."""
        with self._lock:
            if now < self.next_tally:
                return
            self.next_tally = now + STEP
            tally = Tally(self.last_at, self)
            if tally.calls:
                tallies = (*self._tallies, tally)
                past = sum(tally.at <= now - WINDOW for tally in tallies)
                self._tallies = tallies[max(0, past - 1) :]
        if self.on_tally is not None:
            self.on_tally()

    def fresh_lock(self, lock: AbstractContextManager[Any]) -> None:
        """Another lock for a forked child: the parent's may have been held."""
        self._lock = lock

    def recent(self, now: float) -> tuple[dict[str, int], float]:
        """The counts of the last five minutes, and how many seconds they really cover."""
        with self._lock:
            last = Tally(now, self)
            before = [tally for tally in self._tallies if tally.at <= now - WINDOW]
        start = last if self.last_at <= now - WINDOW else before[-1] if before else None
        names = (*COUNTERS, "calls", "successes")
        counts = {name: getattr(last, name) - (getattr(start, name) if start else 0) for name in names}
        return counts, min(WINDOW, now - self.started)

    def snapshot(self, now: float) -> dict[str, Any]:
        """The figures that users read; durations in seconds, rates per second, None where there is nothing yet."""
        tally = Tally(now, self)
        finished = tally.successes + tally.failures
        recent, span = self.recent(now)
        p50, p95, p99 = self.durations.percentiles((0.50, 0.95, 0.99))
        return {
            "calls": tally.calls,
            "successes": tally.successes,
            **{counter: getattr(tally, counter) for counter in COUNTERS},
            "success_rate": tally.successes / finished if finished else None,
            "throughput": recent["calls"] / span if span > 0 else None,
            "p50": p50,
            "p95": p95,
            "p99": p99,
        }
