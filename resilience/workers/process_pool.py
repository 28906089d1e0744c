"""The worker processes of one set: taken for a call, given back after it, ended when worn out, idle or lost.

Who finds no idle worker and no place for a new one waits in a queue, in order.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

from ..core.clock import SYSTEM
from .ledger import LEDGER, Abandoned, registered
from .process_child import ChildSettings
from .watchdog import WATCHDOG
from .worker_process import POLL, Interrupted, WorkerProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.events import EventStream
    from .ledger import Register
    from .process_wait import Interrupter, Limit


class _Ticket:
    """A call that waits for a worker: `lock` is released when it has one, may start one, or is interrupted."""

    __slots__ = ("granted", "interrupted", "lock", "worker")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.worker: WorkerProcess | None = None
        self.granted = False
        self.interrupted = False


class ProcessPool:
    """At most `max_workers` processes, started when needed; who takes one gives it back or loses it.

    Safe to use from any thread; in a forked child `forget()` comes first.
    """

    def __init__(
        self,
        name: str,
        max_workers: int,
        start_method: str,
        *,
        memory_limit: int | None,
        max_tasks: int | None,
        max_rss: int | None,
        idle: float,
        events: EventStream | None,
        register: Register | None,
    ) -> None:
        self.name = name
        self.max_workers = max_workers
        self._start_method = start_method
        self._memory_limit = memory_limit
        self._max_tasks = max_tasks
        self._max_rss = max_rss
        self._events = events
        self._register = register
        self._idle_seconds = idle
        self.held: set[WorkerProcess] = set()  # every worker of this pool
        self._fresh()
        weakref.finalize(self, _end_workers, self.held).atexit = False

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self.idle: list[WorkerProcess] = []
        self._queue: deque[_Ticket] = deque()
        self._places = 0  # taken: by workers, and by calls that are just starting one
        self._undead: list[tuple[WorkerProcess, Abandoned]] = []
        self.is_closed = False
        self._pruning = False

    def take(self, limit: Limit, interrupter: Interrupter, inherited: Any) -> WorkerProcess:
        """An idle worker, or a new one where there is room, or the next that is given back."""
        worker = ticket = None
        if self._undead:
            self.count_undead()
        with self._lock:
            if self.is_closed:
                raise RuntimeError(f"workers of {self.name!r} are shut down")
            if self.idle and (inherited is None or self._places >= self.max_workers):
                worker = self.idle.pop()
            elif self._places < self.max_workers:
                self._places += 1
            else:
                ticket = _Ticket()
                self._queue.append(ticket)
        if ticket is not None:
            worker = self._await(ticket, limit, interrupter)
        if worker is not None and inherited is not None:  # it has to be born with its call
            with self._lock:
                self.held.discard(worker)
            worker.end()
            worker = None
        return worker or self._start(inherited)

    def _await(self, ticket: _Ticket, limit: Limit, interrupter: Interrupter) -> WorkerProcess | None:
        """Waits in the queue, in order; gives a worker, or None for a place to start one."""
        try:
            interrupter.aim(lambda: self._interrupt(ticket))
            while not ticket.lock.acquire(True, _patience(limit)):
                if limit.left() == 0.0:
                    break
            if ticket.granted or not self._leave_queue(ticket):
                return ticket.worker
        except BaseException:  # KeyboardInterrupt: what was granted to it meanwhile is the next one's
            if not self._leave_queue(ticket):
                self.give(ticket.worker)
            raise
        if ticket.interrupted:
            raise Interrupted
        raise limit.error(self.name, "queued")

    def _interrupt(self, ticket: _Ticket) -> None:
        with self._lock:
            if not ticket.granted and not ticket.interrupted:
                ticket.interrupted = True
                ticket.lock.release()

    def _leave_queue(self, ticket: _Ticket) -> bool:
        """Takes the ticket out of the queue; False when something has been granted to it meanwhile."""
        with self._lock:
            if ticket.granted:
                return False
            if ticket in self._queue:
                self._queue.remove(ticket)
            return True

    def _start(self, inherited: Any = None) -> WorkerProcess:
        """A new worker, in a place that is already taken."""
        settings = ChildSettings(self.name, self._memory_limit, self._max_rss, inherited)
        try:
            worker, owned = registered(
                self._register, "process", f"{self.name} worker", lambda: WorkerProcess(self._start_method, settings)
            )
        except BaseException:
            self.give(None)
            raise
        worker.entry.owned = owned
        worker.wants_to_leave = inherited is not None
        with self._lock:
            self.held.add(worker)
        self._tell("worker_started", worker)
        return worker

    def give(self, worker: WorkerProcess | None) -> None:
        """Hands a worker, or (None) a free place, to the first in the queue; nobody there: idle."""
        with self._lock:
            while self._queue:
                ticket = self._queue.popleft()
                if not ticket.interrupted:
                    ticket.worker, ticket.granted = worker, True
                    ticket.lock.release()
                    return
            if worker is None:
                self._places -= 1
                return
            is_late = self.is_closed  # looked at once: who closes from here on finds it among the idle and ends it
            if not is_late:
                worker.idle_since = SYSTEM.monotonic()
                self.idle.append(worker)
        if is_late:
            self.lose(worker)
        elif not self._pruning:
            self._prune_later()

    def give_back(self, worker: WorkerProcess) -> None:
        """After a call: the worker goes on, unless it is worn out."""
        if worker.wants_to_leave or (self._max_tasks is not None and worker.tasks >= self._max_tasks):
            self.lose(worker)
        else:
            self.give(worker)

    def lose(self, worker: WorkerProcess) -> bool:
        """Ends a worker and frees its place; True when it is gone for certain."""
        gone = False
        try:
            gone = worker.end()
        finally:
            with self._lock:
                self.held.discard(worker)
                if not gone:  # in the kernel's hands: not even SIGKILL ends that at once
                    entry = Abandoned(self.name, f"process {worker.pid}", "")
                    worker.entry.abandon()
                    self._undead.append((worker, entry))
                    LEDGER.abandon(entry)
            self.give(None)
        self._tell("worker_lost", worker)
        return gone

    def count_undead(self) -> int:
        """How many killed workers are still there; those that have gone are struck out."""
        if self._undead:
            with self._lock:
                gone = [pair for pair in self._undead if pair[0].is_gone()]
                self._undead = [pair for pair in self._undead if pair not in gone]
            for worker, entry in gone:
                LEDGER.ended(entry)
                worker.close()
        return len(self._undead)

    def _tell(self, kind: str, worker: WorkerProcess) -> None:
        if self._events is not None:
            self._events.emit(kind, self.name, pid=worker.pid, tasks=worker.tasks)

    def _prune_later(self) -> None:
        self._pruning = True
        WATCHDOG.arm(SYSTEM.monotonic() + self._idle_seconds + 0.01, _pruner(weakref.ref(self)))

    def _prune(self) -> None:
        """Ends the workers that have been idle for long; looks again as long as some are idle."""
        now = SYSTEM.monotonic()
        with self._lock:
            old = [worker for worker in self.idle if now - worker.idle_since >= self._idle_seconds]
            self.idle = [worker for worker in self.idle if worker not in old]
            self._pruning = bool(self.idle)
        for worker in old:
            self.lose(worker)
        if self._pruning:
            self._prune_later()

    def close(self, wait: bool, drop_queued: bool) -> None:
        """Gives out nothing more and ends idle workers; with `wait` returns when all others have ended too."""
        with self._lock:
            self.is_closed = True
            idle, self.idle = self.idle, []
            queued = list(self._queue) if drop_queued else []
        for worker in idle:
            self.lose(worker)
        for ticket in queued:
            self._interrupt(ticket)
        while wait and self._places:
            SYSTEM.sleep(0.005)

    def forget(self) -> None:
        """In a forked child: the workers are the parent's, here there are none yet."""
        self.held.clear()
        self._fresh()


def _patience(limit: Limit) -> float:
    """Seconds of one wait on a ticket."""
    if limit.clock is not SYSTEM:
        return POLL
    left = limit.left()
    return -1 if left is None else min(left, threading.TIMEOUT_MAX)


def _pruner(reference: weakref.ref[ProcessPool]) -> Callable[[], None]:
    def prune() -> None:
        pool = reference()
        if pool is not None:
            pool._prune()

    return prune


def _end_workers(held: set[WorkerProcess]) -> None:
    for worker in list(held):
        worker.let_go()
