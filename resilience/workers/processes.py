"""Worker processes that are killed at the deadline: what hangs in them, crashes or eats memory ends with them.

The surface is that of `ThreadWorkers`. The caller's own thread talks to its worker, so that a call costs one exchange
over a socket; a worker that has to be ended is ended with SIGKILL, with everything below it, and the next call gets a
new one. So a call that ran out of time is reclaimed for certain, and may be made again.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from concurrent.futures import Executor, Future

from ..core.carried import carried
from ..core.clock import SYSTEM
from ..core.context import current
from ..core.errors import DeadlineExceeded, OperationCancelled, ShutdownInProgress, require, require_count
from ..core.forks import living
from ..core.lifecycle import on_shutdown, stopping
from .envelope import pack_call, unpack_error, unpack_value
from .ledger import LEDGER, Abandoned, registered
from .process_child import ChildSettings
from .process_start import START_METHODS
from .threads import ThreadWorkers
from .watchdog import WATCHDOG
from .wire import VALUE
from .worker_process import POLL, Interrupted, WorkerProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.clock import Clock
    from ..core.context import OperationContext
    from ..core.errors import ResilienceError
    from ..core.events import EventStream
    from .ledger import Register

IDLE_SECONDS = 60.0  # an idle worker is ended after this long


class _Limit:
    """Until when a call may take, on which clock, and whose deadline that is."""

    __slots__ = ("clock", "context", "end", "own", "timeout")

    def __init__(self, timeout: float | None, clock: Clock, context: OperationContext | None) -> None:
        left = None if context is None else context.remaining()
        self.own = left is None or (timeout is not None and timeout < left)
        self.context = context
        self.timeout = timeout
        self.clock = clock if self.own or context is None else context.clock
        seconds = timeout if self.own else left
        self.end = None if seconds is None else self.clock.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds that remain."""
        return None if self.end is None else max(0.0, self.end - self.clock.monotonic())

    def error(self, name: str, phase: str) -> DeadlineExceeded:
        """The error that says that they are over."""
        if self.own or self.context is None:
            return DeadlineExceeded(name=name, timeout=self.timeout, elapsed=self.timeout, phase=phase)
        return self.context.deadline_error(phase)


class _Ticket:
    """A call that waits for a worker: `lock` is released when it has one, may start one, or is interrupted."""

    __slots__ = ("granted", "interrupted", "lock", "worker")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.worker: WorkerProcess | None = None
        self.granted = False
        self.interrupted = False


class _Interrupter:
    """What a cancel or a shutdown wakes: the ticket or the worker that the call waits for just now."""

    __slots__ = ("target", "woken")

    def __init__(self) -> None:
        self.woken = False
        self.target: Callable[[], None] | None = None

    def __call__(self) -> None:
        self.woken = True
        target = self.target
        if target is not None:
            target()

    def is_woken(self) -> bool:
        """Whether somebody has called."""
        return self.woken

    def aim(self, target: Callable[[], None]) -> None:
        """Wakes `target` from now on; at once when it has already been called."""
        self.target = target
        if self.woken:
            target()


class ProcessWorkers(Executor):
    """A `concurrent.futures.Executor` of at most `max_workers` processes, started when needed, one set per operation.

    `start_method` is "forkserver", "spawn" or "fork"; only "fork" takes functions that cannot be pickled (lambdas,
    closures), each call of one in a fresh process. `memory_limit` (bytes) bounds the address space of each worker:
    beyond it a call gets `MemoryError`. A worker is replaced after `max_tasks` calls or above `max_rss` bytes, and
    ended after `idle` seconds without one. What a function leaves running ends with its worker.
    `register("process", name)` hears of each new one, may refuse it with a `CallRejected`, and gives what is called at
    its end. Safe to use from any thread and in a forked child, which starts with none.
    """

    def __init__(
        self,
        name: str,
        *,
        max_workers: int | None = None,
        start_method: str = "forkserver",
        memory_limit: int | None = None,
        max_tasks: int | None = None,
        max_rss: int | None = None,
        idle: float = IDLE_SECONDS,
        events: EventStream | None = None,
        register: Register | None = None,
    ) -> None:
        require_count("max_workers", max_workers, optional=True)
        require(start_method in START_METHODS, "start_method", start_method, f"expected one of {START_METHODS}")
        require_count("memory_limit", memory_limit, optional=True)
        require_count("max_tasks", max_tasks, optional=True)
        require_count("max_rss", max_rss, optional=True)
        self.name = name
        self.max_workers = max_workers or (os.cpu_count() or 1) + 4
        self.start_method = start_method
        self.memory_limit = memory_limit
        self.max_tasks = max_tasks
        self.max_rss = max_rss
        self.events = events
        self._register = register
        self._idle_seconds = idle
        self._held: set[WorkerProcess] = set()  # every worker of this set
        self._fresh()
        _all_sets.add(self)
        weakref.finalize(self, _end_workers, self._held).atexit = False

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[WorkerProcess] = []
        self._queue: deque[_Ticket] = deque()
        self._places = 0  # taken: by workers, and by calls that are just starting one
        self._undead: list[tuple[WorkerProcess, Abandoned]] = []
        self._closed = False
        self._pruning = False
        self._feeders: ThreadWorkers | None = None

    # -- a blocking call -------------------------------------------------------------------------------------------

    def call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float | None = None,
        *,
        clock: Clock = SYSTEM,
        owners: bytes = b"",
    ) -> Any:
        """Runs `fn(*args, **kwargs)` in a worker process; gives its value or raises its error.

        Ends after `timeout` seconds or at the ambient deadline: `DeadlineExceeded` with `phase="queued"` when it had
        not started (it never will), else with `reclaimed=True`, once the process is gone, and the stack where it hung.
        Raises `WorkerCrashed` when the process dies, `TypeError` when the function, an argument or the result cannot be
        sent, `OperationCancelled` or `ShutdownInProgress` when the surrounding operation is cancelled or the process
        stops. `owners` are pickled retry policies around the call (see `resilience.strategies.nesting`).
        """
        context = current()
        limit = _Limit(timeout, clock, context)
        surroundings = (carried(context), limit.end if limit.clock is SYSTEM else None, owners)
        task = (fn, args, {} if kwargs is None else kwargs, surroundings)
        inherited = None
        try:
            payload = pack_call(*task)
        except TypeError:
            if self.start_method != "fork":
                raise
            payload, inherited = b"", task
        interrupter = _Interrupter()
        detach = context.on_cancel(interrupter) if context is not None else None
        forget = on_shutdown(interrupter)
        try:
            worker = self._take(limit, interrupter, inherited)
            return self._run(worker, payload, limit, interrupter)
        except Interrupted:
            raise self._why_interrupted(context) from None
        finally:
            interrupter.target = None
            forget()
            if detach is not None:
                detach()

    def _run(self, worker: WorkerProcess, payload: bytes, limit: _Limit, interrupter: _Interrupter) -> Any:
        """One call on a worker that is ours; the worker is given back or ended, whatever happens."""
        try:
            worker.is_interrupted = interrupter.is_woken
            interrupter.aim(worker.interrupt)
            if not worker.wait_until_ready(limit.end, limit.clock):
                got: Any = limit.error(self.name, "queued")
            else:
                got = worker.call(payload, limit.end, limit.clock)
        except BaseException:  # it crashed, or the caller gave up: nobody else shall get this worker
            self._lose(worker)
            raise
        if got is None:
            stack = worker.stack()
            reclaimed = self._lose(worker)
            late = limit.error(self.name, "running")
            late.stack, late.reclaimed = stack, reclaimed
            raise late
        if isinstance(got, DeadlineExceeded):  # it is still starting: good for the next call
            self._give(worker)
            raise got
        self._give_back(worker)
        kind, answer = got
        if kind == VALUE:
            return unpack_value(answer)
        raise unpack_error(answer)

    def _why_interrupted(self, context: OperationContext | None) -> ResilienceError:
        if context is not None and context.cancelled:
            return OperationCancelled(name=self.name, reason=context.reason)
        if stopping():
            return ShutdownInProgress(f"shutdown in progress, {self.name!r} was given up")
        return OperationCancelled(name=self.name)

    # -- workers ---------------------------------------------------------------------------------------------------

    def _take(self, limit: _Limit, interrupter: _Interrupter, inherited: Any) -> WorkerProcess:
        """An idle worker, or a new one where there is room, or the next that is given back."""
        worker = ticket = None
        self._count_undead()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"workers of {self.name!r} are shut down")
            if self._idle and (inherited is None or self._places >= self.max_workers):
                worker = self._idle.pop()
            elif self._places < self.max_workers:
                self._places += 1
            else:
                ticket = _Ticket()
                self._queue.append(ticket)
        if ticket is not None:
            worker = self._await(ticket, limit, interrupter)
        if worker is not None and inherited is not None:  # it has to be born with its call
            with self._lock:
                self._held.discard(worker)
            worker.end()
            worker = None
        return worker or self._start(inherited)

    def _await(self, ticket: _Ticket, limit: _Limit, interrupter: _Interrupter) -> WorkerProcess | None:
        """Waits in the queue, in order; gives a worker, or None for a place to start one."""
        interrupter.aim(lambda: self._interrupt(ticket))
        try:
            while not ticket.lock.acquire(True, _patience(limit)):
                if limit.left() == 0.0:
                    break
        except BaseException:
            self._leave_queue(ticket)
            raise
        if ticket.granted:
            return ticket.worker
        if not self._leave_queue(ticket):
            return ticket.worker
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
        settings = ChildSettings(self.name, self.memory_limit, self.max_rss, inherited)
        try:
            worker, owned = registered(
                self._register, "process", f"{self.name} worker", lambda: WorkerProcess(self.start_method, settings)
            )
        except BaseException:
            self._give(None)
            raise
        worker.entry.owned = owned
        worker.wants_to_leave = inherited is not None
        with self._lock:
            self._held.add(worker)
        self._tell("worker_started", worker)
        return worker

    def _give(self, worker: WorkerProcess | None) -> None:
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
            if not self._closed:
                worker.idle_since = SYSTEM.monotonic()
                self._idle.append(worker)
        if self._closed:
            self._lose(worker)
        elif not self._pruning:
            self._prune_later()

    def _give_back(self, worker: WorkerProcess) -> None:
        """After a call: the worker goes on, unless it is worn out."""
        if worker.wants_to_leave or (self.max_tasks is not None and worker.tasks >= self.max_tasks):
            self._lose(worker)
        else:
            self._give(worker)

    def _lose(self, worker: WorkerProcess) -> bool:
        """Ends a worker and frees its place; True when it is gone for certain."""
        gone = False
        try:
            gone = worker.end()
        finally:
            with self._lock:
                self._held.discard(worker)
                if not gone:  # in the kernel's hands: not even SIGKILL ends that at once
                    entry = Abandoned(self.name, f"process {worker.pid}", "")
                    worker.entry.abandon()
                    self._undead.append((worker, entry))
                    LEDGER.abandon(entry)
            self._give(None)
        self._tell("worker_lost", worker)
        return gone

    def _count_undead(self) -> int:
        """How many killed workers are still there; those that have gone are struck out."""
        if self._undead:
            with self._lock:
                gone = [pair for pair in self._undead if pair[0].is_gone()]
                self._undead = [pair for pair in self._undead if pair not in gone]
            for worker, entry in gone:
                LEDGER.ended(entry)
                worker.close()
        return len(self._undead)

    @property
    def abandoned(self) -> int:
        """How many killed workers the kernel has not let go of (a dead disk or network file system)."""
        return self._count_undead()

    def _tell(self, kind: str, worker: WorkerProcess) -> None:
        if self.events is not None:
            self.events.emit(kind, self.name, pid=worker.pid, tasks=worker.tasks)

    def warm(self, count: int = 1, timeout: float = 30.0) -> None:
        """Starts workers ahead of the first call, until `count` are idle or `timeout` seconds have passed."""
        require_count("count", count)
        limit = _Limit(timeout, SYSTEM, None)
        taken: list[WorkerProcess] = []
        try:
            for _ in range(min(count, self.max_workers)):
                taken.append(self._take(limit, _Interrupter(), None))
            for worker in taken:
                worker.wait_until_ready(limit.end, SYSTEM)
        finally:
            for worker in taken:
                self._give(worker)

    # -- idle workers, the Executor's interface, the end --------------------------------------------------------------

    def _prune_later(self) -> None:
        self._pruning = True
        WATCHDOG.arm(SYSTEM.monotonic() + self._idle_seconds + 0.01, _pruner(weakref.ref(self)))

    def _prune(self) -> None:
        """Ends the workers that have been idle for long; looks again as long as some are idle."""
        now = SYSTEM.monotonic()
        with self._lock:
            old = [worker for worker in self._idle if now - worker.idle_since >= self._idle_seconds]
            self._idle = [worker for worker in self._idle if worker not in old]
            self._pruning = bool(self._idle)
        for worker in old:
            self._lose(worker)
        if self._pruning:
            self._prune_later()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts `fn(*args, **kwargs)` and gives its Future; the ambient deadline holds, a new retry tree begins."""
        with self._lock:
            if self._closed:
                raise RuntimeError(f"workers of {self.name!r} are shut down")
            if self._feeders is None:
                self._feeders = ThreadWorkers(f"{self.name} (feeding)", max_workers=self.max_workers)
            feeders = self._feeders
        return feeders.submit(self.call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuses new calls and ends idle workers; with `wait` lets running and queued calls end.

        With `cancel_futures` queued calls are dropped. A worker ends with its call.
        """
        if self._feeders is not None:
            self._feeders.shutdown(wait=wait, cancel_futures=cancel_futures)
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            queued = list(self._queue) if cancel_futures else []
        for worker in idle:
            self._lose(worker)
        for ticket in queued:
            self._interrupt(ticket)
        while wait and self._places:
            SYSTEM.sleep(0.005)

    def __repr__(self) -> str:
        return f"<ProcessWorkers {self.name!r}: {len(self._held)} processes, {len(self._idle)} idle>"


def _patience(limit: _Limit) -> float:
    """Seconds of one wait on a ticket."""
    if limit.clock is not SYSTEM:
        return POLL
    left = limit.left()
    return -1 if left is None else min(left, threading.TIMEOUT_MAX)


def _pruner(reference: weakref.ref[ProcessWorkers]) -> Callable[[], None]:
    def prune() -> None:
        workers = reference()
        if workers is not None:
            workers._prune()

    return prune


def _end_workers(held: set[WorkerProcess]) -> None:
    for worker in list(held):
        worker.let_go()


_all_sets: weakref.WeakSet[ProcessWorkers] = weakref.WeakSet()


def _after_fork() -> None:
    for workers in living(_all_sets):
        workers._held.clear()
        workers._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
