"""A clock that moves only when told to."""

from __future__ import annotations

import threading

from ..core.clock import SYSTEM

HANG_GUARD = 30.0  # real seconds after which a wait that nobody ends gives up, so that a test cannot hang


class ManualClock:
    """A clock for tests: `monotonic()` starts at `start` seconds and moves by `advance` and by sleeping only.

    A sleep sets the time to its own end (never back), so that parallel sleeps do not add up; `sleeps` lists the waits
    asked for. `wait` never moves the time: it blocks until notified or advanced. Thread-safe.
    """

    def __init__(self, start: float = 0.0, epoch: float = 1_700_000_000.0) -> None:
        self._now = start
        self._epoch = epoch - start
        self._lock = threading.Lock()
        self._waiting: list[threading.Condition] = []
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._epoch + self._now

    def advance(self, seconds: float) -> None:
        """Moves the time forward and wakes the waits whose end has come."""
        if seconds < 0:
            raise ValueError(f"time moves forward only, not by {seconds!r}")
        with self._lock:
            self._now += seconds
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        if wake is not None and wake.is_set():
            return True
        with self._lock:
            self.sleeps.append(seconds)
            self._now = max(self._now, self._now + seconds)
        return False

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        end = None if timeout is None else self._now + timeout
        with self._lock:
            self._waiting.append(condition)
        try:
            if end is not None and self._now >= end:
                return False
            if not SYSTEM.wait(condition, HANG_GUARD):
                raise AssertionError(f"nobody notified or advanced for {HANG_GUARD} real seconds")
            return end is None or self._now < end
        finally:
            with self._lock:
                self._waiting.remove(condition)

    def __repr__(self) -> str:
        return f"ManualClock({self._now!r})"
