"""The rate limit: GCRA, one number per key (ITU-T I.371). Plain numbers, no clock and no lock.

`tat` is the theoretical arrival time: when the next call would come if all came evenly. A call conforms when it is not
earlier than `burst - 1` intervals before it.
"""

from __future__ import annotations

ROUNDING = 1e-3  # of an interval


def wait_for(tat: float, now: float, interval: float, burst: float) -> float:
    """Seconds a call has to wait from `now`; 0.0 when it may pass at once.

    A thousandth of an interval is none: sums of intervals are rounded, and a whole place must not be lost to that.
    """
    wait = tat - (burst - 1) * interval - now
    return wait if wait > interval * ROUNDING else 0.0


def take(tat: float, now: float, interval: float) -> float:
    """The number after a call that passes at `now` (or takes its place in the line)."""
    return max(tat, now) + interval


def drained(tat: float, now: float, interval: float, burst: float, seconds: float) -> float:
    """The number that lets nothing pass for `seconds` from `now`, and only the even rate after that."""
    return max(tat, now + seconds + (burst - 1) * interval)
