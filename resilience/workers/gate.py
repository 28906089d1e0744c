"""The gate of a fan-out: how many attempts run at once, and when that falls to one and comes back.

While the fan-out is at full width nobody waits here: each worker only notes that it runs. From the first fall on, an
attempt passes when fewer than the limit run; a retry gives its place back while it sleeps.
"""

from __future__ import annotations

import threading
from collections import deque

from ..core.clock import SYSTEM
from ..core.errors import ErrorCategory
from ..rules.limit import Detector, Width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.classify import Classification
    from ..rules.pressure import Pressure
    from .throttle import Throttle

STARVED_AFTER = 30.0  # seconds in which a limit admitted nothing and nothing ran: then it will not end by itself
# reasons of `classify` that say this process is at its end, not the other side
EXHAUSTED = frozenset(
    ("errno:EMFILE", "errno:ENFILE", "errno:ENOMEM", "python:MemoryError", "python:can't start new thread")
)


def is_items_own(verdict: Classification) -> bool:
    """Whether a failure says something of the item only: it neither counts nor is it repeated."""
    return verdict.category in (ErrorCategory.PERMANENT, ErrorCategory.LOGIC)


class Gate:
    """Shared by all workers of one fan-out. `tell(kind, reason)` hears of each fall and of the way back.

    A limit of the process that comes near (see `throttle`) narrows it as well; `until` is when the fan-out ends.
    """

    __slots__ = (
        "__weakref__",
        "_stopped_at",
        "cap",
        "changed",
        "closed",
        "degraded",
        "detector",
        "falls",
        "narrow",
        "news",
        "on_fall_held",
        "running",
        "starved",
        "successes",
        "tell",
        "telling",
        "throttle",
        "until",
        "width",
    )

    def __init__(
        self,
        workers: int,
        *,
        failure_threshold: float,
        window: int,
        min_calls: int,
        restore_after: int,
        tell: Callable[[str, str], object],
        throttle: Throttle | None = None,
        until: float | None = None,
    ) -> None:
        self.changed = threading.Condition()
        self.detector = Detector(failure_threshold, window, min_calls)
        self.width = Width(workers, restore_after)
        self.running = [0] * workers
        self.successes = 0  # counted by a single statement: exact under the GIL
        self.narrow = False  # whether attempts have to ask: it fell once, or was squeezed
        self.falls = 0
        self.closed = False
        self.degraded: str | None = None
        self.on_fall_held: Callable[[], object] = _nothing  # part of the fall: what failed so far is repeated first
        self.tell = tell
        self.news: deque[tuple[str, str]] = deque()
        self.telling = threading.Lock()
        self.throttle = throttle
        self.until = until
        self.cap: int | None = None  # what the limits of the process allow; None: everything
        self.starved: str | None = None  # why nothing was admitted for so long that it was given up
        self._stopped_at: float | None = None
        if throttle is not None:
            throttle.obey(self)

    @property
    def full_width(self) -> int:
        """How many attempts run at once when all is well."""
        return self.width.full

    @property
    def limit(self) -> int:
        """How many attempts may run at once now."""
        return self.width.limit if self.cap is None else min(self.width.limit, self.cap)

    @property
    def is_sequential(self) -> bool:
        """Whether attempts run one at a time."""
        return self.narrow and self.limit == 1

    @property
    def has_fallen(self) -> bool:
        """Whether they do because attempts have failed."""
        return self.falls > 0 and self.width.limit == 1

    def squeeze(self, pressure: Pressure, reason: str, throttle: Throttle | None = None) -> None:
        """Takes what the limits of the process allow from now on."""
        with self.changed:
            before, full = self.limit, self.width.full
            self.cap = None if pressure.is_none else pressure.allows(full)
            self._stopped_at = None if self.cap != 0 else self._stopped_at or SYSTEM.monotonic()
            self.narrow = self.narrow or self.cap is not None
            after = self.limit
            if after < before:
                self.degraded = self.degraded or f"resource pressure ({reason})"
                self.news.append(("degraded", f"resource pressure ({reason}): {after} of {full} at a time"))
            elif after > before:
                self.news.append(("restored", f"resource pressure is less: up to {after} of {full} at a time"))
            self.changed.notify_all()
        self._tell_news()

    def look(self) -> None:
        """Lets the limits of the process be looked at, if that is due; gives up when they admit nothing for long."""
        if self.throttle is None:
            return
        self.throttle.look()
        with self.changed:
            if self._stopped_at is None or any(self.running):
                return
            now = SYSTEM.monotonic()
            if now - self._stopped_at < STARVED_AFTER and (self.until is None or now < self.until):
                return
            self.starved = f"{self.throttle.reason}: nothing was admitted for {now - self._stopped_at:.3g} s"
        self.close()

    def fall(self, reason: str) -> None:
        """One at a time from now on; running attempts end first."""
        with self.changed:
            self._fall_held(reason)
        self._tell_news()

    def _tell_news(self) -> None:
        """Tells what happened in the order in which it did, outside of the lock of the gate."""
        with self.telling:
            while self.news:
                self.tell(*self.news.popleft())

    def _fall_held(self, reason: str) -> None:
        self.narrow = True
        self.falls += 1
        self.degraded = self.degraded or reason
        self.width.fall()
        self.detector.restart(self.successes)
        self.news.append(("degraded", reason))
        self.on_fall_held()
        self.changed.notify_all()

    def limit_to(self, workers: int) -> None:
        """Never comes back to more than so many at once: there are no more workers."""
        with self.changed:
            self.width.full = workers

    def close(self) -> None:
        """Admits nothing more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def count_failure(self, verdict: Classification | None) -> None:
        """Counts a failed attempt, which may make it fall back. `verdict` None: transient, a retry follows."""
        if verdict is not None and is_items_own(verdict):
            return
        reason = None
        with self.changed:
            reached = self.detector.fail(self.successes)
            self.width.failed()
            if not self.has_fallen and not self.closed:
                if verdict is not None and verdict.reason in EXHAUSTED:
                    reason = f"resource exhaustion ({verdict.reason})"
                elif reached:
                    reason = f"{self.detector.share(self.successes):.0%} of the last attempts failed"
            if reason is not None:
                self._fall_held(reason)
        self._tell_news()

    def widen(self, place: Place) -> None:
        """Counts a success on the way back: the limit doubles after enough of them in a row.

        An attempt that was admitted before the last fall says nothing about the way back.
        """
        with self.changed:
            grown = place.falls == self.falls and self.width.succeeded()
            if grown:
                self.detector.restart(self.successes)
                self.news.append(("restored", f"up to {self.width.limit} of {self.width.full} at a time"))
                self.changed.notify_all()
        if grown:
            self._tell_news()

    def judge_the_end(self) -> bool:
        """Falls back at the end of a concurrent pass that was too short for `min_calls`; whether it did."""
        with self.changed:
            reached = not self.has_fallen and self.detector.is_reached(self.successes, at_the_end=True)
            if reached:
                self._fall_held(f"{self.detector.share(self.successes):.0%} of the attempts failed")
        self._tell_news()
        return reached


def _nothing() -> None:
    pass


class Place:
    """One worker's way through the gate; it is what `Retry` finds in `core.ambient.attempt_gate`."""

    __slots__ = ("falls", "gate", "number", "repeats", "sequential")

    def __init__(self, gate: Gate, number: int) -> None:
        self.gate = gate
        self.number = number
        self.sequential = False  # whether the last attempt was admitted one at a time
        self.falls = 0  # how many falls there had been when it was admitted
        self.repeats = 0  # attempts of the item after its first one

    def enter(self) -> bool:
        """Waits until one more attempt may run; False when the fan-out is over."""
        gate, number = self.gate, self.number
        gate.running[number] = 1  # before looking: who falls sees it, or we see the fall
        if not gate.narrow:
            return not gate.closed
        with gate.changed:
            gate.running[number] = 0
            gate.changed.notify_all()
        while not self._may_enter():
            gate.look()
        return not gate.closed

    def _may_enter(self) -> bool:
        """Waits a moment for room and takes it; True as well when the fan-out is over."""
        gate = self.gate
        with gate.changed:
            if not gate.closed and sum(gate.running) >= gate.limit:
                SYSTEM.wait(gate.changed, 1.0)
                if not gate.closed and sum(gate.running) >= gate.limit:
                    return False
            if not gate.closed:
                gate.running[self.number] = 1
                self.sequential = gate.limit == 1
                self.falls = gate.falls
        return True

    def leave(self, failed: bool) -> None:
        """Gives the place back; `failed=True` counts a failed attempt after which a retry follows."""
        gate = self.gate
        gate.running[self.number] = 0
        if failed:
            self.repeats += 1
            gate.count_failure(None)
        if gate.narrow:
            with gate.changed:
                gate.changed.notify_all()
