"""The threads of a collection: each pulls what may be sent now, sends it, and tells what came of it."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from resilience.core.clock import SYSTEM

from .answer import of_error
from .tasks import NEVER

if TYPE_CHECKING:
    from resilience.core.clock import Clock

    from .answer import Answer
    from .inputs import Item
    from .scheduler import Scheduler
    from .tasks import Attempt, Final

    Fetch = Callable[..., Answer]  # (item, seconds) or, where a redirect led to another host, (item, seconds, onward)

OVERDUE = 1.0  # seconds after its deadline at which a request that does not come back is given up


class Run:
    """Worker threads over one scheduler. They are daemons: one that hangs holds nobody.

    `new_fetch()` gives each thread its own function (item, seconds[, onward]) -> answer; `record(final)` keeps the end
    of an item; what either raises beyond an answer ends the run and is kept in `error`. `announce(item)` is called
    before each request that must not be made twice, `tell(host, news)` after each change of a breaker and each
    Retry-After.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        new_fetch: Callable[[], Fetch],
        record: Callable[[Final], object],
        announce: Callable[[Item], object],
        tell: Callable[[str, str | float], object],
        *,
        workers: int,
        clock: Clock = SYSTEM,
    ) -> None:
        self.scheduler = scheduler
        self.lock = threading.Condition()
        self.error: Exception | None = None
        self.is_stopped = False
        self._new_fetch = new_fetch
        self._record = record
        self._announce = announce
        self._tell = tell
        self._clock = clock
        self._alive = 0
        self._idle = 0
        self._watched = NEVER  # the timer that an idle worker wakes up for
        self._wanted = workers
        self._ended, self._tell_end = os.pipe()

    # -- the caller's thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the workers; with no room for another thread it goes on with those there are."""
        for _ in range(self._wanted):
            if not self._add_worker():
                break

    def wait(self, seconds: float, wake: int) -> bool:
        """Waits until the run has ended (True), `seconds` have passed or the file descriptor `wake` can be read."""
        readable, _, _ = select.select([self._ended, wake], [], [], max(0.0, seconds))
        return self._ended in readable

    def stop(self, patience: float = 0.2) -> None:
        """Gives out nothing more, and waits `patience` seconds for the workers that are about to end."""
        with self.lock:
            self.is_stopped = True
            self.lock.notify_all()
        self.wait(patience, self._ended)

    def replace_overdue(self) -> None:
        """Gives up requests that did not come back although their time is long over; new threads take their place."""
        now = self._clock.monotonic()
        with self.lock:
            overdue = [attempt for attempt in self.scheduler.in_flight if now > attempt.deadline + OVERDUE]
        for attempt in overdue:
            self._finish(attempt, of_error(_hung(attempt), attempt.deadline - attempt.started))
            self._add_worker()

    def _add_worker(self) -> bool:
        with self.lock:
            self._alive += 1
        try:
            threading.Thread(target=self._work, name="collect", daemon=True).start()
        except RuntimeError as error:  # no room for another thread
            with self.lock:
                self._alive -= 1
                self.scheduler.pace.exhausted(str(error))
                none_left = self._alive == 0
            if none_left:
                self.fail(error)
            return False
        return True

    def fail(self, error: Exception) -> None:
        """Ends the run because of `error`."""
        with self.lock:
            self.error = self.error or error
            self.is_stopped = True
            self.lock.notify_all()
        self._say_ended()

    # -- a worker's thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            fetch = self._new_fetch()
            while (attempt := self._next()) is not None:
                item = attempt.task.item
                if not item.is_idempotent:
                    self._announce(item)
                limit, onward = attempt.deadline - attempt.started, attempt.task.onward
                try:
                    answer = fetch(item, limit) if onward is None else fetch(item, limit, onward)
                except (OSError, RuntimeError, ValueError, MemoryError) as error:
                    answer = of_error(error, limit)
                if not self._finish(attempt, answer):
                    break
        except Exception as error:  # the verdict: a result that cannot be kept, or a defect, ends the run
            self.fail(error)
        finally:
            with self.lock:
                self._alive -= 1
                last = self._alive == 0
            if last:
                self._say_ended()

    def _next(self) -> Attempt | None:
        with self.lock:
            while not self.is_stopped and not self.scheduler.is_over:
                now = self._clock.monotonic()
                attempt = self.scheduler.take(now)
                if attempt is not None:
                    self._share_held()
                    return attempt
                self._rest_held(now)
            self.is_stopped = True
            self.lock.notify_all()
            return None

    def _rest_held(self, now: float) -> None:
        """Waits until there is news, or for the next timer."""
        when = self.scheduler.next_timer()
        self._idle += 1
        if when is not None and when < self._watched:
            self._watched = when
        self._clock.wait(self.lock, None if when is None else when - now)
        self._idle -= 1
        if self._watched == when:
            self._watched = NEVER

    def _share_held(self) -> None:
        """Wakes an idle worker if there is something for it, or a timer that nobody watches."""
        if self._idle:
            when = self.scheduler.next_timer()
            if self.scheduler.has_more or (when is not None and when < self._watched):
                self.lock.notify()

    def _finish(self, attempt: Attempt, answer: Answer) -> bool:
        """Tells the scheduler and keeps the end of the item; False for an answer that came too late to count."""
        with self.lock:
            late = attempt.is_over
            final = self.scheduler.finish(attempt, answer, self._clock.monotonic())
            self._share_held()
            news, self.scheduler.news = self.scheduler.news, []
        if final is not None:
            self._record(final)
        for host, state in news:
            self._tell(host, state)
        return not late

    def _say_ended(self) -> None:
        os.write(self._tell_end, b"\0")


def _hung(attempt: Attempt) -> Exception:
    from resilience.core.errors import DeadlineExceeded

    limit = attempt.deadline - attempt.started
    return DeadlineExceeded(timeout=limit, elapsed=limit + OVERDUE, phase="running", reclaimed=False)
