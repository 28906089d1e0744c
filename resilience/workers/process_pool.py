"""The worker processes of one set: taken for a call, given back after it, ended when worn out, idle or lost.

Who finds no idle worker and no place for a new one waits in a queue, in order. A Ctrl-C comes where a function begins
or one written in C has returned: what a call has is noted in its turn, with nothing of the kind in between.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

from ..core.clock import SYSTEM
from .ledger import LEDGER, Abandoned, registered
from .process_child import ChildSettings
from .thread_task import locked
from .watchdog import WATCHDOG
from .worker_process import POLL, Interrupted, WorkerProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.events import EventStream
    from .ledger import Register
    from .process_wait import Interrupter, Limit


class Turn:
    """What a call has of a pool: a place from `granted` on, and a `worker` once one is in it.

    In the queue `lock` is released when it has a worker, may start one, or is interrupted.
    """

    __slots__ = ("granted", "interrupted", "lock", "worker")

    def __init__(self, worker: WorkerProcess | None = None) -> None:
        self.lock: Any = None
        self.worker = worker
        self.granted = worker is not None
        self.interrupted = False


class ProcessPool:
    """At most `max_workers` processes, started when needed; who takes one gives it back or loses it, or leaves.

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
        self._queue: deque[Turn] = deque()
        self._places = 0  # taken: by workers, and by calls that are just starting one
        self._undead: list[tuple[WorkerProcess, Abandoned]] = []
        self.is_closed = False
        self._pruning = False

    def take(self, turn: Turn, limit: Limit, interrupter: Interrupter, inherited: Any) -> None:
        """Gives the turn an idle worker, or a new one where there is room, or the next that is given back.

        After an exception, here or later, `leave(turn)` gives back what it has.
        """
        if self._undead:
            self.count_undead()
        with self._lock:
            if self.is_closed:
                raise RuntimeError(f"workers of {self.name!r} are shut down")
            if self.idle and (inherited is None or self._places >= self.max_workers):
                turn.worker, turn.granted = self.idle[-1], True
                del self.idle[-1]
            elif self._places < self.max_workers:
                self._places += 1
                turn.granted = True
            else:
                turn.lock = locked()
                self._queue.append(turn)
        if not turn.granted:
            self._await(turn, limit, interrupter)
        if turn.worker is not None and inherited is not None:  # it has to be born with its call
            turn.worker.end()
            with self._lock:
                self.held.discard(turn.worker)
                turn.worker = None
        if turn.worker is None:
            self._start(turn, inherited)

    def _await(self, turn: Turn, limit: Limit, interrupter: Interrupter) -> None:
        """Waits in the queue, in order, for a worker or a place to start one."""
        try:
            interrupter.aim(lambda: self._interrupt(turn))
            while not turn.lock.acquire(True, _patience(limit)):
                if limit.left() == 0.0:
                    break
            if turn.granted or not self._leave_queue(turn):
                return
        except BaseException:  # KeyboardInterrupt: what was granted to it meanwhile is unused, and the next one's
            if not self._leave_queue(turn):
                self.give(turn)
            raise
        if turn.interrupted:
            raise Interrupted
        raise limit.error(self.name, "queued")

    def _interrupt(self, turn: Turn) -> None:
        with self._lock:
            if not turn.granted and not turn.interrupted:
                turn.interrupted = True
                turn.lock.release()

    def _leave_queue(self, turn: Turn) -> bool:
        """Takes the turn out of the queue; False when something has been granted to it meanwhile."""
        with self._lock:
            if turn.granted:
                return False
            if turn in self._queue:
                self._queue.remove(turn)
            return True

    def _start(self, turn: Turn, inherited: Any = None) -> None:
        """A new worker, in the place of the turn."""
        settings = ChildSettings(self.name, self._memory_limit, self._max_rss, inherited)
        worker, owned = registered(
            self._register, "process", f"{self.name} worker", lambda: WorkerProcess(self._start_method, settings)
        )
        turn.worker = worker
        worker.entry.owned = owned
        worker.wants_to_leave = inherited is not None
        with self._lock:
            self.held.add(worker)
        self._tell("worker_started", worker)

    def give(self, turn: Turn) -> None:
        """Hands the worker of a turn, or its free place, to the first in the queue; nobody there: idle."""
        with self._lock:
            worker = turn.worker
            while self._queue:
                first = self._queue[0]
                del self._queue[0]
                if not first.interrupted:
                    first.worker, first.granted = worker, True
                    turn.worker, turn.granted = None, False
                    first.lock.release()
                    return
            if worker is None:
                turn.granted = False
                self._places -= 1
                return
            is_late = self.is_closed  # looked at once: who closes from here on finds it among the idle and ends it
            if not is_late:
                worker.idle_since = SYSTEM.monotonic()
                self.idle += [worker]
                turn.worker, turn.granted = None, False
        if is_late:
            self.lose(turn)
        elif not self._pruning:
            self._prune_later()

    def give_back(self, turn: Turn) -> None:
        """After a call: its worker goes on, unless it is worn out."""
        worker = turn.worker
        assert worker is not None
        if worker.wants_to_leave or (self._max_tasks is not None and worker.tasks >= self._max_tasks):
            self.lose(turn)
        else:
            self.give(turn)

    def leave(self, turn: Turn) -> None:
        """Gives back whatever a call still has that did not come to its end; nobody else shall get its worker."""
        if turn.lock is not None and not turn.granted:
            self._leave_queue(turn)
        if turn.worker is not None:
            self.lose(turn)
        elif turn.granted:
            self.give(turn)

    def lose(self, turn: Turn) -> bool:
        """Ends the worker of a turn and frees its place; True when it is gone for certain."""
        worker = turn.worker
        assert worker is not None
        gone = False
        try:
            gone = worker.end()
        except BaseException:  # KeyboardInterrupt, perhaps before it was killed
            gone = worker.end()
            raise
        finally:
            with self._lock:
                self.held.discard(worker)
                if not gone:  # in the kernel's hands: not even SIGKILL ends that at once
                    entry = Abandoned(self.name, f"process {worker.pid}", "")
                    worker.entry.abandon()
                    self._undead.append((worker, entry))
                    LEDGER.abandon(entry)
                turn.worker = None
            self.give(turn)
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
        try:
            WATCHDOG.arm(SYSTEM.monotonic() + self._idle_seconds + 0.01, _pruner(weakref.ref(self)))
        except BaseException as error:
            self._pruning = False  # the next worker that is idle tries again
            if not isinstance(error, RuntimeError):  # no thread to be had: no reason to lose the answer of a call
                raise

    def _prune(self) -> None:
        """Ends the workers that have been idle for long; looks again as long as some are idle."""
        now = SYSTEM.monotonic()
        with self._lock:
            old = [worker for worker in self.idle if now - worker.idle_since >= self._idle_seconds]
            self.idle = [worker for worker in self.idle if worker not in old]
            self._pruning = bool(self.idle)
        for worker in old:
            self.lose(Turn(worker))
        if self._pruning:
            self._prune_later()

    def close(self, wait: bool, drop_queued: bool) -> None:
        """Gives out nothing more and ends idle workers; with `wait` returns when all others have ended too."""
        with self._lock:
            self.is_closed = True
            idle, self.idle = self.idle, []
            queued = list(self._queue) if drop_queued else []
        for worker in idle:
            self.lose(Turn(worker))
        for turn in queued:
            self._interrupt(turn)
        while wait and self._places:
            SYSTEM.sleep(0.005)

    def forget(self) -> None:
        """In a forked child: the workers are the parent's, here there are none yet."""
        self.held.clear()
        self._fresh()


def _patience(limit: Limit) -> float:
    """Seconds of one wait in the queue."""
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
