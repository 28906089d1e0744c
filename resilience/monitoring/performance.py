"""The performance monitor: what the operations of a manager come to, how workers, caches and the process fare."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from ..core.clock import SYSTEM
from ..core.errors import require, require_seconds
from ..core.forks import living
from .health import health
from .operations import OperationStats
from .sampling import Sampler, trends
from .system import SystemReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.clock import Clock
    from ..core.errors import ErrorCategory
    from .sampling import Reader

TREND_LENGTH = 720  # samples kept: an hour at the default interval


class PerformanceMonitor:
    """Exact counters and durations of every operation, and samples of the process. Safe to use from any thread."""

    def __init__(self, *, clock: Clock | None = None, reader: Reader | None = None) -> None:
        self._clock = clock or SYSTEM
        self._lock = threading.RLock()
        self._counting = threading.RLock()  # of all operations: held for a few additions
        self._operations: dict[str, OperationStats] = {}
        self._workers: dict[str, dict[str, Any]] = {}
        self._caches: dict[str, dict[str, int]] = {}
        self.reader: Reader = reader or SystemReader()
        self._trend: deque[dict[str, Any]] = deque(maxlen=TREND_LENGTH)
        self._sampler: Sampler | None = None
        self.surroundings: Callable[[], dict[str, Any] | None] | None = None
        self.on_trouble: Callable[[OperationStats], object] | None = None  # hears of each failure and retry
        self.on_tally: Callable[[], object] | None = None  # called now and then while there are calls
        self.on_sample: Callable[[], object] | None = None  # called after each sample
        _all.add(self)

    def _after_fork(self) -> None:
        self._lock, self._counting = threading.RLock(), threading.RLock()
        if self._sampler is not None:
            self._sampler = self._sampler.again()
        for stats in list(self._operations.values()):
            stats.fresh_lock(self._counting)

    def stats_of(self, name: str) -> OperationStats:
        """The counters of one operation, made at its first use."""
        try:
            return self._operations[name]
        except KeyError:
            with self._lock:
                if name not in self._operations:
                    stats = OperationStats(name, self._clock.monotonic(), self._counting)
                    stats.on_trouble, stats.on_tally = self.on_trouble, self.on_tally
                    self._operations[name] = stats
                return self._operations[name]

    def record_operation(
        self, name: str, duration: float, success: bool, category: ErrorCategory | str | None = None
    ) -> None:
        """Counts one call that was made elsewhere: its duration in seconds and whether it succeeded."""
        require_seconds("duration", duration)
        outcome = "success" if success else "failure"
        self.stats_of(name).record(self._clock.monotonic(), duration, outcome)

    def record_worker_health(self, worker: str, is_running: bool, error_count: int = 0) -> None:
        """Keeps the state of one worker; its last report wins."""
        with self._lock:
            self._workers[worker] = {
                "is_running": bool(is_running),
                "error_count": error_count,
                "last_update": self._clock.time(),
            }

    def record_cache(self, name: str, hit: int = 0, miss: int = 0, eviction: int = 0) -> None:
        """Adds to the counts of a cache: `hit=1`, `miss=1` or `eviction=1` for each event."""
        for key, value in (("hit", hit), ("miss", miss), ("eviction", eviction)):
            require(int(value) == value and value >= 0, key, value, "expected a whole number of 0 or more")
        with self._lock:
            counts = self._caches.setdefault(name, {"hits": 0, "misses": 0, "evictions": 0})
            counts["hits"] += int(hit)
            counts["misses"] += int(miss)
            counts["evictions"] += int(eviction)

    def system(self) -> dict[str, Any]:
        """The process now: cpu (per cent), rss (bytes), threads, fds, children, limits, usage; unknown is None."""
        reading = self.reader.read()
        return {**reading, "usage": self.reader.usage(reading)}

    def usage(self) -> dict[str, float | None]:
        """The share (0 to 1 and above) of each limit in use now: memory, fds, threads; unknown or unlimited is None."""
        return self.reader.usage()

    def operations(self) -> dict[str, dict[str, Any]]:
        """The figures of every operation by name; durations in seconds (see `OperationStats.snapshot`)."""
        now = self._clock.monotonic()
        return {name: stats.snapshot(now) for name, stats in sorted(self._every().items())}

    def recent(self) -> dict[str, dict[str, int]]:
        """The counts of every operation in the last five minutes."""
        now = self._clock.monotonic()
        return {name: stats.recent(now)[0] for name, stats in sorted(self._every().items())}

    def count_calls(self) -> int:
        """How many calls were made in all."""
        return sum(stats.durations.total + stats.rejections for stats in self._every().values())

    def _every(self) -> dict[str, OperationStats]:
        with self._lock:
            return dict(self._operations)

    def is_healthy(self, min_ratio: float = 0.5) -> bool:
        """Whether at least `min_ratio` of the known workers run; without workers it is not healthy."""
        require(0 <= min_ratio <= 1, "min_ratio", min_ratio, "expected a share between 0 and 1")
        with self._lock:
            running = [state["is_running"] for state in self._workers.values()]
        return bool(running) and sum(running) / len(running) >= min_ratio

    def report(self) -> dict[str, Any]:
        """Everything as plain data: workers, caches, system, operations, health."""
        with self._lock:
            workers = {name: dict(state) for name, state in sorted(self._workers.items())}
            caches = {name: _with_rate(counts) for name, counts in sorted(self._caches.items())}
        system = self.system()
        surroundings = (self.surroundings() if self.surroundings is not None else None) or {}
        return {
            "workers": workers,
            "caches": caches,
            "system": system,
            "operations": self.operations(),
            "health": health(
                workers_healthy=self.is_healthy() if workers else None,
                recent=self.recent(),
                breakers=surroundings.get("breakers", {}),
                usage=system["usage"],
                abandoned=surroundings.get("abandoned", 0),
                leaks=surroundings.get("leaks", 0),
            ),
        }

    def trend(self) -> list[dict[str, Any]]:
        """The samples taken since `start()`, oldest first: `at` (wall clock) and the figures of `system()`."""
        return list(self._trend)

    def trends(self) -> dict[str, dict[str, float | None]]:
        """How each figure moved since `start()`: first, last, least, most and per_hour (its slope by least squares)."""
        return trends(list(self._trend))

    def start(self, interval: float = 5.0) -> None:
        """Samples the process every `interval` real seconds on a daemon thread until `stop()`; idempotent."""
        require_seconds("interval", interval, positive=True)
        with self._lock:
            if self._sampler is None:
                self._sampler = Sampler(self, interval)

    @property
    def is_running(self) -> bool:
        """Whether samples are taken."""
        return self._sampler is not None

    def sample(self) -> None:
        """Takes one sample now."""
        self._trend.append({"at": self._clock.time(), **self.system()})
        if self.on_sample is not None:
            self.on_sample()

    def stop(self) -> None:
        """Ends the sampling; idempotent."""
        with self._lock:
            sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()


def _with_rate(counts: dict[str, int]) -> dict[str, Any]:
    asked = counts["hits"] + counts["misses"]
    return {**counts, "hit_rate": counts["hits"] / asked if asked else None}


_all: weakref.WeakSet[PerformanceMonitor] = weakref.WeakSet()


def _after_fork() -> None:
    for monitor in living(_all):
        monitor._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
