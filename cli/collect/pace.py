"""When too many attempts fail, one at a time; when they succeed again, 2, 4, ... at a time. Pure: no clock, no lock.

Only what speaks about our own side is counted: an item's own 404 is not, nor a wish to come back later (its host pauses
for that), nor the failures of a host once its breaker has isolated it.
"""

from __future__ import annotations

from collections import deque

from resilience.rules.limit import Width

WINDOW = 20  # attempts: the fan-out's defaults (contract, section 4)
MIN_CALLS = 10
FAILURE_THRESHOLD = 0.5
RESTORE_AFTER = 10  # successes in a row that double the concurrency


class Pace:
    """How many attempts may be in flight at once: `limit`."""

    def __init__(self, workers: int) -> None:
        self.times_slowed = 0
        self.reason = ""
        self._width = Width(workers, RESTORE_AFTER)
        self._results: deque[tuple[str, bool]] = deque(maxlen=WINDOW)  # host, failed

    @property
    def limit(self) -> int:
        """How many attempts may be in flight at once."""
        return self._width.limit

    @property
    def is_slowed(self) -> bool:
        """Whether that is less than all workers."""
        return self._width.limit < self._width.full

    def tell(self, host: str, failed: bool) -> None:
        """One attempt has ended."""
        self._results.append((host, failed))
        if failed:
            self._width.failed()
            self._judge()
        elif self._width.succeeded():
            self._results.clear()

    def exhausted(self, reason: str) -> None:
        """This machine has no room for more: no threads, no files, no memory."""
        self._slow_down(reason)

    def isolated(self, host: str) -> None:
        """The breaker of this host keeps it away from the others: its results say no more about them."""
        self._results = deque((entry for entry in self._results if entry[0] != host), maxlen=WINDOW)

    def _judge(self) -> None:
        finished = len(self._results)
        failures = sum(failed for _, failed in self._results)
        if finished >= MIN_CALLS and failures >= FAILURE_THRESHOLD * finished:
            self._slow_down(f"{failures} of the last {finished} attempts failed")

    def _slow_down(self, reason: str) -> None:
        if self._width.limit != 1:
            self.times_slowed += 1
            self.reason = reason
        self._width.fall()
        self._results.clear()
