"""The line in front of a store: the changes handed in and not made yet, and how the store keeps up with them.

Whatever is known of that is changed under one lock, which is held neither while a change is made nor while anybody
hears of its answer.
"""

from __future__ import annotations

import threading
from collections import deque

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .task import Task

LOOK_AGAIN = 0.25  # seconds until the next look at a slow store
LOOK_EVERY = 1.0  # seconds between two looks whether it is there, and between two tries to reach it
MOST_WAITING = 10_000  # changes handed in
MOST_AT_ONCE = 100  # changes of one key made in one step
READY, SLOW, AWAY = "ready", "slow", "away"


class Line:
    """Those who wait for a store, in their order. Safe to share between threads; one clerk serves it."""

    def _fresh(self) -> None:
        """Nobody waits and nobody serves: at the start, and in the child of a fork."""
        self.state = READY
        self._since = SYSTEM.monotonic()
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._wanted = threading.Event()  # wakes the clerk
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self.look_at = float("-inf")  # when the clerk is to look after the store

    def start(self) -> None:
        """Sees to it that the clerk is there."""
        raise NotImplementedError

    def _set_held(self, state: str) -> None:
        if state is not self.state:
            self.state = state
            self._since = self.look_at = SYSTEM.monotonic()

    # -- for calls ---------------------------------------------------------------------------------------------------

    def waiting_for(self, key: str) -> int:
        """How many changes of a key are handed in and not begun."""
        with self._changed:
            return sum(task.key == key for task in self._waiting)

    def flush(self, timeout: float) -> bool:
        """Waits until all changes handed in are made; True when they are."""
        end = SYSTEM.monotonic() + timeout
        with self._changed:
            while (self._waiting or self._is_busy) and self._thread is not None and self.state is not AWAY:
                left = end - SYSTEM.monotonic()
                if left <= 0:
                    return False
                SYSTEM.wait(self._changed, left)
        return True

    def _hand_in(self, task: Task, state: str | None = None) -> None:
        with self._changed:
            if state is not None:
                task.is_late = True
                if self.state is READY:
                    self._set_held(state)
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(task)
        self._wanted.set()
        self.start()

    def _gives_up_on(self, task: Task) -> bool:
        """Lets the answer come late, unless it is there by now: the store is slow then."""
        with self._changed:
            if task.done.is_set():
                return False
            task.is_late = True
            if self.state is READY:
                self._set_held(SLOW)
            return True

    # -- for the clerk -----------------------------------------------------------------------------------------------

    def take(self) -> list[Task]:
        """What is to be done next: the first change handed in, with those that follow for the same key; or nothing."""
        with self._changed:
            if self.state is AWAY or not self._waiting:
                return []
            self._is_busy = True
            tasks = [self._waiting.popleft()]
            while tasks[0].fits(self._waiting) and len(tasks) < MOST_AT_ONCE:
                tasks.append(self._waiting.popleft())
            return tasks

    def put_back(self, tasks: list[Task]) -> None:
        """They are the first ones again."""
        with self._changed:
            self._waiting.extendleft(reversed(tasks))
            self._is_busy = False

    def finish(self, tasks: list[Task]) -> list[Task]:
        """Lets those who wait have their answers; gives the tasks whose answers nobody waits for any more."""
        with self._changed:
            self._is_busy = False
            for task in tasks:
                task.done.set()
            late = [task for task in tasks if task.is_late and task.error is None]
            self._changed.notify_all()
        return late

    def drop(self, error: Exception) -> bool:
        """The store is away and nothing that was handed in is made; whether it was away already."""
        with self._changed:
            was_away = self.state is AWAY
            self._set_held(AWAY)
            self.look_at = SYSTEM.monotonic() + LOOK_EVERY
            dropped, self._waiting = list(self._waiting), deque()
            for task in dropped:
                task.error = StoreUnavailable(str(error))
                task.done.set()
            self._changed.notify_all()
        return was_away

    def restore(self) -> None:
        """The store is there again; calls wait for it once it has answered quickly."""
        with self._changed:
            self._set_held(SLOW)

    def note_look(self, was_quick: bool) -> None:
        """After a quick answer calls may wait for the store again; while it is slow, look from time to time."""
        with self._changed:
            if self.state is SLOW and was_quick:
                if self._waiting:
                    return  # look again when they are done
                self._set_held(READY)
            self.look_at = SYSTEM.monotonic() + (LOOK_AGAIN if self.state is SLOW else LOOK_EVERY)
