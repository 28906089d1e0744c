"""Durations rounded to their six leading bits, counted: percentiles within 2 % from 1 us to 1 h, mergeable.

32 values an octave, each at most 1/64 away from what it stands for (the precision of HdrHistogram with two digits).
Only what has occurred takes memory. Adding one value is a single statement, exact under the GIL.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SPLIT = 2.0**47 + 1.0  # Veltkamp: `x * SPLIT - (x * SPLIT - x)` is x with the 6 leading ones of its 53 bits
LONGEST = 2.0**30  # 34 years; longer durations count as that


def rounded(seconds: float) -> float:
    """The value that a duration in seconds is counted as (0.0 for one that is not positive)."""
    if not seconds > 0.0:
        return 0.0
    split = min(seconds, LONGEST) * SPLIT
    return split - (split - min(seconds, LONGEST))


class Histogram:
    """Counts of durations. `add` may be called from any thread under the GIL; without one its owner holds a lock.

    `counts` are those of each rounded duration that has occurred: the express lane adds there by itself, and comes here
    for the first one of its value.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[float, int] = {}

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        value = rounded(seconds)
        self.counts.setdefault(value, 0)
        self.counts[value] += 1

    @property
    def total(self) -> int:
        """How many durations were added."""
        return sum(self.counts.copy().values())

    def merge(self, counts: Mapping[float, int]) -> None:
        """Adds the counts of another histogram, of this process or another."""
        for seconds, count in counts.items():
            value = rounded(seconds)
            self.counts.setdefault(value, 0)
            self.counts[value] += count

    def percentile(self, share: float) -> float | None:
        """The duration in seconds that `share` (0 to 1) of the values do not exceed; None without values."""
        return self.percentiles((share,))[0]

    def percentiles(self, shares: Iterable[float]) -> list[float | None]:
        """Several percentiles, in the order asked for, of one moment."""
        counts = sorted(self.counts.copy().items())
        total = sum(count for _, count in counts)
        return [_percentile(counts, total, share) for share in shares]


def _percentile(counts: list[tuple[float, int]], total: int, share: float) -> float | None:
    rank = max(1, -int(-share * total // 1))
    seen = 0
    for value, count in counts:
        seen += count
        if seen >= rank:
            return value
    return None
