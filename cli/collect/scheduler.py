"""Which request goes next: per-host queues, pauses, breakers and waiting retries. No thread waits here, no I/O.

Every method takes `now` (seconds of the breakers' clock) and is called under the run's lock. A task that has to wait
(backoff, Retry-After, an open breaker, a full host) lies in its host's queue or on the heap of timers; a worker is
given only what may be sent at once. A host whose breaker is open is *shelved*: it gets its probe if the run is still
going on when the time comes, and does not keep it going by itself (unless `wait_open`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from resilience.core.errors import CircuitOpenError
from resilience.strategies.circuit_breaker import CircuitState

from .answer import Answer
from .hosts import OUT_OF_TIME, Host, Hosts
from .pace import Pace
from .progress import Snapshot
from .tasks import Attempt, Final, Rules, Task

if TYPE_CHECKING:
    from resilience.strategies.circuit_breaker import Permit

    from .answer import Onward
    from .inputs import Item

LEAST_WAIT = 0.01  # seconds until a breaker that cannot say when is asked again
LATE_SHARE = 0.1  # a Retry-After is lengthened by up to this share, so that those told alike do not come back at once


class Scheduler:
    """Gives out attempts and takes their answers. Not safe to share: who calls holds one lock."""

    def __init__(
        self,
        items: Iterable[Item],
        host_of: Callable[[str], Host],
        rules: Rules,
        pace: Pace,
        draw: Callable[[], float],
    ) -> None:
        self.rules = rules
        self.pace = pace
        self.hosts = Hosts(host_of)
        self.in_flight: set[Attempt] = set()
        self.waiting = 0  # tasks that wait for their next try
        # for the journal: (host, the new state of its breaker or the seconds of peace it asked for)
        self.news: list[tuple[str, str | float]] = []
        self._draw = draw
        self._active: deque[Host] = deque()
        self._timers: list[tuple[float, int, Host, Task | None]] = []
        self._ids = count()
        self.cut_short = 0  # attempts that the run's deadline ended
        self._shelved: dict[str, None] = {}  # names, in the order of their opening
        self._live = 0  # hosts that keep the run going
        for item in items:
            host = self.hosts[item.host]
            host.ready.append(Task(item, host))
            host.pending += 1
        for host in self.hosts.values():
            self._list(host)
            self._weigh(host)

    # -- what a worker asks ------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Nothing is in flight and nothing that is left is worth waiting for."""
        return not self.in_flight and self._live == 0

    @property
    def has_more(self) -> bool:
        """Whether another worker could be given something now (or find out that it cannot)."""
        return bool(self._active) and len(self.in_flight) < self.pace.limit

    @property
    def has_left(self) -> bool:
        """Whether there are items without an end."""
        return bool(self.in_flight) or any(host.pending for host in self.hosts.values())

    def snapshot(self) -> Snapshot:
        """Where things stand, for people to look at."""
        slowed = f"{self.pace.limit} at a time ({self.pace.reason})" if self.pace.is_slowed else ""
        return Snapshot(0, 0, 0, len(self.in_flight), self.waiting, list(self._shelved), slowed)

    def next_timer(self) -> float | None:
        """The point in time at which something may change by itself."""
        return self._timers[0][0] if self._timers else None

    def take(self, now: float) -> Attempt | None:
        """The next request to send, or None when there is none that may be sent now."""
        self._ring(now)
        if now >= self.rules.deadline:
            return None
        while self._active and len(self.in_flight) < self.pace.limit:
            host = self._active.popleft()
            host.is_listed = False
            permit = self._permit(host, now)
            if permit is None:
                continue
            task = host.ready.popleft()
            host.pending -= 1
            host.in_flight += 1
            task.attempts += task.left is None
            if task.began is None:
                task.began = now
            limit, task.left = task.left or self.rules.timeout, None
            attempt = Attempt(task, permit, now, min(now + limit, self.rules.deadline))
            self.in_flight.add(attempt)
            self._list(host)
            self._weigh(host)
            return attempt
        return None

    def finish(self, attempt: Attempt, answer: Answer, now: float) -> Final | None:
        """Takes the answer of an attempt; the end of its item, or None when it is tried again (or had ended)."""
        if attempt.is_over:
            return None
        attempt.is_over = True
        self.in_flight.discard(attempt)
        task, host = attempt.task, attempt.task.host
        host.in_flight -= 1
        host.tries += 1
        task.last = answer
        cut_short = attempt.deadline >= self.rules.deadline and now >= attempt.deadline and not answer.ok
        self.cut_short += cut_short
        self._judge(host, attempt.permit, answer, cut_short, now)
        final = None
        if answer.onward is not None:
            self._move(task, answer.onward, attempt.deadline - now)
        else:
            final = self._end_or_wait(task, answer, now)
        self._list(host)
        self._weigh(host)
        return final

    def _move(self, task: Task, onward: Onward, left: float) -> None:
        """A redirect leads to another host: the attempt goes on there, under that host's breaker and limits."""
        task.host.moved += 1
        task.onward, task.left = onward, max(LEAST_WAIT, left)
        task.host = self.hosts[onward.host]
        task.host.ready.appendleft(task)
        task.host.pending += 1
        self._list(task.host)
        self._weigh(task.host)

    # -- the end -------------------------------------------------------------------------------------------------

    def leftovers(self, now: float, out_of_time: bool) -> Iterator[Final]:
        """The items that this run does not finish: not tried, waiting or hanging. All transient."""
        for attempt in list(self.in_flight):
            attempt.is_over = True
            attempt.permit.ignore()
            yield self._give_up(attempt.task, now, OUT_OF_TIME)
        self.in_flight.clear()
        for host in self.hosts.values():
            for task in host.ready:
                yield self._give_up(task, now, host.why_left(out_of_time))
            host.ready.clear()
        for _, _, host, waiting in self._timers:
            if waiting is not None:
                yield self._give_up(waiting, now, host.why_left(out_of_time))
        self._timers.clear()

    def _give_up(self, task: Task, now: float, why: str) -> Final:
        last, host = task.last, task.host
        if not task.attempts:
            host.untried += 1
            cause = f" ({host.last_error})" if host.is_shelved and host.last_error else ""
            why = f"not tried: {why}{cause}"
        elif last is not None:
            why = f"{last.error}; {why}"
        answer = Answer(False, last.status if last else None, why, "transient", True, retry_after=host.too_long)
        return self._end(task, answer, now)

    # -- inside --------------------------------------------------------------------------------------------------

    def _judge(self, host: Host, permit: Permit, answer: Answer, cut_short: bool, now: float) -> None:
        """Tells the breaker, the pace and the host what this answer says about each of them."""
        if answer.retry_after is not None:
            permit.ignore()
            self._pause(host, answer.retry_after, now)
        elif cut_short or answer.blames_host is None:
            permit.ignore()
            if answer.is_exhausted:
                self.pace.exhausted(answer.error)
        elif answer.blames_host:
            host.failed_us(answer.error)
            permit.failure(ConnectionError(answer.error))
            self.pace.tell(host.name, failed=True)
        else:
            host.answered(self.rules.per_host)
            permit.success()
            if answer.ok:
                self.pace.tell(host.name, failed=False)
        self._notice(host)
        if host.breaker.state is CircuitState.OPEN and not host.is_shelved:
            self._shelve(host, now)

    def _notice(self, host: Host) -> None:
        if (state := host.note_state()) is not None:
            self.news.append((host.name, state))

    def _pause(self, host: Host, wish: float, now: float) -> None:
        until = now + wish * (1 + LATE_SHARE * self._draw())
        if until > host.paused_until:
            self.news.append((host.name, wish))
        if wish > self.rules.max_retry_after or now + wish >= self.rules.deadline:
            host.too_long = wish
            host.is_shelved = True
        host.pause(now, until)

    def _end_or_wait(self, task: Task, answer: Answer, now: float) -> Final | None:
        when = self.rules.next_try(task, answer, self._draw, now)
        if when is None:
            return self._end(task, answer, now)
        task.host.pending += 1
        self.waiting += 1
        heapq.heappush(self._timers, (when, next(self._ids), task.host, task))
        return None

    def _end(self, task: Task, answer: Answer, now: float) -> Final:
        task.is_over = True
        if answer.ok:
            task.host.ok += 1
        else:
            task.host.failed += 1
        return Final(task, answer, 0.0 if task.began is None else now - task.began)

    def _permit(self, host: Host, now: float) -> Permit | None:
        """The breaker's permit if the host may be sent one more request now; else sees to it that it is asked again."""
        if not host.ready or host.is_shelved:
            return None
        if now < host.paused_until:
            self._wake(host, host.paused_until)
            return None
        if host.room(self.rules.per_host) <= 0:
            return None  # asked again when one of its requests ends
        try:
            permit = host.breaker.acquire()
        except CircuitOpenError:
            if not host.in_flight:
                self._shelve(host, now)
            return None
        self._notice(host)
        return permit

    def _shelve(self, host: Host, now: float) -> None:
        """Its breaker is open: nothing is sent before the breaker may let a probe pass."""
        host.is_shelved = True
        host.is_proven = False
        self._shelved[host.name] = None
        self.pace.isolated(host.name)
        wait = host.breaker.retry_after()
        if wait is not None:
            self._wake(host, now + max(wait, LEAST_WAIT))
        self._weigh(host)

    def _wake(self, host: Host, when: float) -> None:
        if host.timer != when:
            host.timer = when
            heapq.heappush(self._timers, (when, next(self._ids), host, None))

    def _ring(self, now: float) -> None:
        """Puts back what has waited long enough."""
        while self._timers and self._timers[0][0] <= now:
            _, _, host, task = heapq.heappop(self._timers)
            if task is not None:
                self.waiting -= 1
                asked_to_wait = task.last is not None and task.last.retry_after is not None
                (host.ready.appendleft if asked_to_wait else host.ready.append)(task)
            elif host.is_shelved and host.too_long is None and host.breaker.retry_after() == 0.0:
                host.is_shelved = False
                self._shelved.pop(host.name, None)
            elif host.is_shelved and host.too_long is None:
                self._shelve(host, now)
            self._list(host)
            self._weigh(host)

    def _list(self, host: Host) -> None:
        """Lines the host up for the next worker, one turn at a time, if it has something to send."""
        if host.ready and not host.is_listed and not host.is_shelved:
            host.is_listed = True
            self._active.append(host)

    def _weigh(self, host: Host) -> None:
        """Counts whether this host keeps the run going."""
        waits = self.rules.wait_open and host.too_long is None
        is_live = host.pending > 0 and (not host.is_shelved or waits)
        if is_live != host.is_live:
            host.is_live = is_live
            self._live += 1 if is_live else -1
