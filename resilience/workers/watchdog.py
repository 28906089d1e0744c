"""One thread that watches all armed deadlines and calls what ends them.

Callbacks must not block and must not raise: they shut a socket or set an event. Arming and cancelling cost about a
microsecond; a cancelled entry stays in the heap until its time or until half of the heap is cancelled.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading

from ..core.clock import SYSTEM
from ..core.logs import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Armed:
    """An armed deadline."""

    __slots__ = ("callback", "order", "watchdog", "when")

    def __init__(self, watchdog: Watchdog, when: float, order: int, callback: Callable[[], object]) -> None:
        self.watchdog = watchdog
        self.when = when
        self.order = order
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Makes sure that the callback is not called from now on; it may be running just now."""
        self.watchdog._cancel(self)

    def __lt__(self, other: Armed) -> bool:
        return (self.when, self.order) < (other.when, other.order)


class Watchdog:
    """Calls each callback at its time. Safe to use from any thread; its thread starts when first needed."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.epoch = 0  # a new one after a fork, where what was armed before is forgotten
        self.restart()

    def restart(self) -> None:
        """Starts with nothing armed and no thread: in a forked child."""
        self.epoch += 1
        self._lock = threading.RLock()  # a Ctrl-C inside of `Condition.__enter__` would leave it taken
        self._changed = threading.Condition(self._lock)
        self._heap: list[Armed] = []
        self._cancelled = 0
        self._thread: threading.Thread | None = None

    def arm(self, when: float, callback: Callable[[], object]) -> Armed:
        """Calls `callback()` at `when`, a point in time of the system's monotonic clock, unless it is cancelled.

        Raises `RuntimeError` where no thread can be started; nothing is armed then.
        """
        entry = Armed(self, when, next(self._numbers), callback)
        with self._lock:
            if self._thread is None:
                self._start_held()
            heapq.heappush(self._heap, entry)
            if self._heap[0] is entry:
                self._changed.notify()
        return entry

    def _start_held(self) -> None:
        self._thread = thread = threading.Thread(target=self._watch, name="resilience-watchdog", daemon=True)
        try:
            thread.start()
        except BaseException:  # the next one tries again; a thread that runs after all finds that it is not the one
            self._thread = None
            raise

    def _cancel(self, entry: Armed) -> None:
        with self._lock:
            if entry.callback is None:
                return
            entry.callback = None
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
                self._heap = [kept for kept in self._heap if kept.callback is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    @property
    def armed(self) -> int:
        """How many deadlines are armed."""
        with self._lock:
            return sum(entry.callback is not None for entry in self._heap)

    def _watch(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                if self._thread is not me:
                    return
                while not self._heap or self._heap[0].when > SYSTEM.monotonic():
                    left = self._heap[0].when - SYSTEM.monotonic() if self._heap else None
                    SYSTEM.wait(self._changed, left)
                entry = heapq.heappop(self._heap)
                callback, entry.callback = entry.callback, None
                if callback is None:
                    self._cancelled -= 1
                    continue
            try:
                callback()
            except Exception:
                logger("watchdog").exception("a callback failed")


WATCHDOG = Watchdog()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WATCHDOG.restart)
