"""The process against its limits: near one of them everything that obeys gets narrower, and wider again afterwards.

`rules.pressure` says how much. Nobody waits here: whoever has a moment (a fan-out's caller, a full bulkhead, the
monitor) calls `look()`, which reads the usage at most once a second.
"""

from __future__ import annotations

import os
import threading
import weakref

from ..core.clock import SYSTEM
from ..core.forks import living
from ..rules.pressure import NONE, Pressure, judge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from ..core.clock import Clock
    from ..core.events import EventStream

    class Obedient(Protocol):
        """What gets narrower under pressure."""

        @property
        def full_width(self) -> int:
            """How many run at once without pressure."""

        def squeeze(self, pressure: Pressure, reason: str, throttle: Throttle) -> object:
            """Takes the pressure from now on; must not block."""


LOOK_EVERY = 1.0  # seconds between two readings


class Throttle:
    """The pressure on this process, and what obeys it (held weakly). Safe to use from any thread.

    `usage()` gives the share of each limit in use by name, None where it is unknown.
    """

    def __init__(
        self,
        usage: Callable[[], Mapping[str, float | None]],
        *,
        clock: Clock | None = None,
        events: EventStream | None = None,
    ) -> None:
        self._usage = usage
        self._clock = clock or SYSTEM
        self._events = events
        self.pressure = NONE
        self.reason: str | None = None
        self._due = float("-inf")
        self._fresh()
        _all.add(self)

    def _fresh(self) -> None:
        self._looking = threading.Lock()
        self._obeying: weakref.WeakSet[Obedient] = weakref.WeakSet()

    def obey(self, target: Obedient) -> None:
        """Lets `target` follow the pressure from now on."""
        with self._looking:
            self._obeying.add(target)
        if not self.pressure.is_none:
            target.squeeze(self.pressure, self.reason or "", self)

    def look(self) -> None:
        """Reads the usage and passes on what it means, unless that was done within the last second."""
        now = self._clock.monotonic()
        if now < self._due or not self._looking.acquire(blocking=False):
            return
        try:
            self._due = now + LOOK_EVERY
            widest = max((target.full_width for target in self._obeying), default=1)
        finally:
            self._looking.release()
        known = {name: share for name, share in self._usage().items() if share is not None}
        tightest = max(known, key=lambda name: known[name], default=None)
        share = None if tightest is None else known[tightest]
        before = self.pressure
        self.pressure = judge(before, share, widest)
        if self.pressure == before:
            return
        self.reason = None if self.pressure.is_none else f"{tightest} at {share or 0.0:.0%} of its limit"
        self._tell(before, tightest, share)
        with self._looking:  # those too that came meanwhile and saw what was before
            obeying = list(self._obeying)
        for target in obeying:
            target.squeeze(self.pressure, self.reason or "", self)

    def _tell(self, before: Pressure, tightest: str | None, share: float | None) -> None:
        if self._events is None:
            return
        harder = (self.pressure.stopped, self.pressure.halvings) > (before.stopped, before.halvings)
        if self.pressure.stopped:
            what = "nothing is admitted"
        elif self.pressure.is_none:
            what = "everything runs at its full width again"
        else:
            what = f"at most 1/{1 << self.pressure.halvings} of each width"
        reason = f"{self.reason}: {what}" if self.reason else what
        kind = "degraded" if harder else "restored"
        self._events.emit(kind, "resources", reason=reason, resource=tightest, share=share)


_all: weakref.WeakSet[Throttle] = weakref.WeakSet()


def _after_fork() -> None:
    for throttle in living(_all):
        throttle._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
