"""Time, and the only place that asks the operating system for it.

Everything that measures or waits takes a clock, so that a test can hand in `resilience.testing.ManualClock`.
"""

from __future__ import annotations

import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Clock(Protocol):
        """What a clock offers; all values are seconds. Implementations are safe to share between threads."""

        def monotonic(self) -> float:
            """The time that never jumps: for durations and deadlines."""

        def time(self) -> float:
            """The wall clock (seconds since 1970): for records that people read."""

        def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
            """Waits `seconds`, or less when `wake` is set meanwhile; True when it was woken. 0 does not wait."""

        def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
            """Waits on the held `condition` for at most `timeout` seconds (None: no limit); False when it timed out."""


else:

    class Clock:
        """What a clock offers: `monotonic()`, `time()`, `sleep(seconds, wake=None)` and `wait(condition, timeout)`."""


# What one lock wait can take on every platform (about 292 years on 64 bit; 49 days is the least of all of them).
_LONGEST_WAIT = min(threading.TIMEOUT_MAX, 4_000_000.0)


class SystemClock:
    """The machine's own time."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        if wake is None:
            if seconds > 0:
                time.sleep(min(seconds, _LONGEST_WAIT))
            return False
        if seconds <= 0:
            return wake.is_set()
        try:
            return wake.wait(min(seconds, _LONGEST_WAIT))
        except RuntimeError as error:
            # Ctrl-C (or the exit after SIGTERM) while the event's lock is given away: its `with` hides it
            hidden = error.__context__
            if hidden is None or isinstance(hidden, Exception):
                raise
            raise hidden from None

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        try:
            return condition.wait(timeout if timeout is None else min(max(timeout, 0.0), _LONGEST_WAIT))
        except RuntimeError:  # it was not held
            raise
        except BaseException:
            _hold_again(condition)
            raise

    def __repr__(self) -> str:
        return "SystemClock()"


def _hold_again(condition: threading.Condition) -> None:
    """Takes the lock of `condition` where an interrupted wait has left it free: who waited relies on holding it."""
    try:
        condition.notify(0)
    except RuntimeError:  # not held by this thread
        condition.acquire()


SYSTEM: Clock = SystemClock()
