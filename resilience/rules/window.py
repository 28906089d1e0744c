"""The results that a failure rate is taken from: the last so many, or those of the last so many seconds.

Both are cheap where nothing happens. A window of counts does not see fast successes at all: the caller keeps one
counter of them, and a bad result remembers its place in the common sequence. A window of time keeps at most 100
buckets, whatever the traffic.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUCKETS = 100  # a time window slides in steps of a hundredth of its length


class CountedResults:
    """The last `size` results: the places of the failed and slow ones; all places between are fast successes.

    `fast` is the caller's running number of fast successes, `base` its value when the window began.
    """

    __slots__ = ("bad", "base", "failed", "noted", "size", "slow")

    def __init__(self, size: int, fast: int = 0) -> None:
        self.size = size
        self.base = fast
        self.noted = 0  # failed and slow results so far, forgotten ones included
        self.failed = 0
        self.slow = 0
        self.bad: deque[tuple[int, bool, bool]] = deque()

    def add(self, now: float, failed: bool, slow: bool, fast: int) -> None:
        """Adds one result; a fast success needs no adding, the counter `fast` has it."""
        if not (failed or slow):
            return
        self.noted += 1
        place = fast - self.base + self.noted
        self.bad.append((place, failed, slow))
        self.failed += failed
        self.slow += slow
        self._forget(place)

    def counts(self, now: float, fast: int) -> tuple[int, int, int]:
        """How many results are in the window, how many of them failed, how many were slow."""
        place = fast - self.base + self.noted
        self._forget(place)
        return min(place, self.size), self.failed, self.slow

    def _forget(self, place: int) -> None:
        bad = self.bad
        while bad and bad[0][0] <= place - self.size:
            _, failed, slow = bad.popleft()
            self.failed -= failed
            self.slow -= slow

    def to_plain(self) -> dict[str, Any]:
        """The window as plain data."""
        return {"size": self.size, "base": self.base, "noted": self.noted, "bad": [list(entry) for entry in self.bad]}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> CountedResults:
        """The window that `to_plain` has described."""
        window = cls(data["size"], data["base"])
        window.noted = data["noted"]
        window.bad = deque((place, failed, slow) for place, failed, slow in data["bad"])
        window.failed = sum(failed for _, failed, _ in window.bad)
        window.slow = sum(slow for _, _, slow in window.bad)
        return window


class TimedResults:
    """The results of the last `seconds`, in 100 buckets that slide; nothing older than `seconds` is ever counted."""

    __slots__ = ("buckets", "failed", "seconds", "slow", "total")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.total = 0
        self.failed = 0
        self.slow = 0
        self.buckets: deque[list[int]] = deque()  # [number of the bucket, results, failed, slow], only where any are

    def add(self, now: float, failed: bool, slow: bool, fast: int) -> None:
        """Adds one result; one that comes with an earlier `now` than the last joins the latest bucket."""
        number = self._forget(now)
        buckets = self.buckets
        if not buckets or buckets[-1][0] < number:
            buckets.append([number, 0, 0, 0])
        bucket = buckets[-1]
        bucket[1] += 1
        bucket[2] += failed
        bucket[3] += slow
        self.total += 1
        self.failed += failed
        self.slow += slow

    def counts(self, now: float, fast: int) -> tuple[int, int, int]:
        """How many results are in the window, how many of them failed, how many were slow."""
        self._forget(now)
        return self.total, self.failed, self.slow

    def _forget(self, now: float) -> int:
        number = int(now * BUCKETS // self.seconds)
        buckets = self.buckets
        while buckets and buckets[0][0] <= number - BUCKETS:
            _, total, failed, slow = buckets.popleft()
            self.total -= total
            self.failed -= failed
            self.slow -= slow
        return number

    def to_plain(self) -> dict[str, Any]:
        """The window as plain data."""
        return {"seconds": self.seconds, "buckets": [list(bucket) for bucket in self.buckets]}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> TimedResults:
        """The window that `to_plain` has described."""
        window = cls(data["seconds"])
        window.buckets = deque(list(bucket) for bucket in data["buckets"])
        window.total = sum(bucket[1] for bucket in window.buckets)
        window.failed = sum(bucket[2] for bucket in window.buckets)
        window.slow = sum(bucket[3] for bucket in window.buckets)
        return window


def window_from_plain(data: dict[str, Any] | None) -> CountedResults | TimedResults | None:
    """The window of either kind that `to_plain` has described, None for None."""
    if data is None:
        return None
    return CountedResults.from_plain(data) if "size" in data else TimedResults.from_plain(data)
