"""When concurrent work falls back to one at a time, and how it comes back: the 50 % detector and the doubling limit.

Only failures are stored, each with its sequence number among the finished attempts: a success is just the next number,
counted by who calls.
"""

from __future__ import annotations


class Detector:
    """The failure rate of the last `window` finished attempts. Plain data: who calls brings the lock."""

    __slots__ = ("_began", "_numbers", "failed", "min_calls", "threshold", "window")

    def __init__(self, threshold: float, window: int, min_calls: int) -> None:
        self.threshold = threshold
        self.window = window
        self.min_calls = min_calls
        self.failed = 0
        self._began = 0  # how many attempts had finished when this mode began
        self._numbers: list[int] = []  # sequence numbers of failures, ascending

    def fail(self, successes: int) -> bool:
        """Counts a failure after so many successes in all; whether the rate calls for falling back."""
        self.failed += 1
        self._numbers.append(successes + self.failed)
        return self.is_reached(successes)

    def is_reached(self, successes: int, *, at_the_end: bool = False) -> bool:
        """Whether failed/finished is at least the threshold; `at_the_end` of a pass needs no `min_calls`."""
        finished = successes + self.failed - self._began
        if finished == 0 or (finished < self.min_calls and not at_the_end):
            return False
        return self.share(successes) >= self.threshold

    def share(self, successes: int) -> float:
        """failed/finished of the window, 0 to 1."""
        total = successes + self.failed
        oldest = total - self.window
        drop = 0
        while drop < len(self._numbers) and self._numbers[drop] <= oldest:
            drop += 1
        del self._numbers[:drop]
        seen = min(total - self._began, self.window)
        return len(self._numbers) / seen if seen else 0.0

    def restart(self, successes: int) -> None:
        """Starts afresh after a change of mode."""
        self._began = successes + self.failed
        self._numbers.clear()


class Width:
    """How many attempts may run at once: 1 after a fall, doubled by each `restore_after` successes in a row."""

    __slots__ = ("full", "limit", "restore_after", "row")

    def __init__(self, full: int, restore_after: int) -> None:
        self.full = full
        self.limit = full
        self.restore_after = restore_after
        self.row = 0

    def fall(self) -> None:
        """One at a time from now on."""
        self.limit = 1
        self.row = 0

    def failed(self) -> None:
        """A failure ends the row of successes."""
        self.row = 0

    def succeeded(self) -> bool:
        """Counts a success; whether the limit has just grown."""
        if self.limit >= self.full:
            return False
        self.row += 1
        if self.row < self.restore_after:
            return False
        self.row = 0
        self.limit = min(self.full, 2 * self.limit)
        return True
