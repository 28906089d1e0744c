"""Worker threads that can be replaced: a call that outlives its deadline is abandoned, another thread takes its place.

A thread cannot be ended from outside. What can be done is done: the caller is released at the deadline, the abandoned
thread is counted and capped, keeps the bulkhead slot it holds, is never reused, and never holds up the interpreter's
exit (all threads are daemons and none is known to `concurrent.futures`' exit hook).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections import deque
from concurrent.futures import Executor, Future

from ..core.ambient import attempt_gate, context_for_a_thread, current, retry_owner
from ..core.clock import SYSTEM
from ..core.errors import WorkersExhausted, require_count
from ..core.forks import living
from ..core.lifecycle import on_shutdown, stopping
from ..core.stacks import stacks_of
from .ledger import LEDGER, Abandoned
from .thread_task import ABANDONED, DONE, QUEUED, RUNNING, WITHDRAWN, Task, mark_lost
from .worker_thread import END, Worker, WorkerThread, idle_threads, live

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.clock import Clock
    from .ledger import Register

MAX_WORKERS = 128  # threads of one operation
MAX_ABANDONED = 8  # calls of one operation that may run on after their deadline
IDLE_SECONDS = 30.0  # an idle thread ends after this long
MAX_IDLE = 256  # idle threads of the process: 6 MB, however many operations were called a moment ago


class ThreadWorkers(Executor):
    """A `concurrent.futures.Executor` of at most `max_workers` replaceable daemon threads, one set per operation.

    More calls than workers queue up in order. Abandoned calls do not count as workers, but at most `max_abandoned` may
    run: then calls are refused with `WorkersExhausted`. `register("thread", name)` hears of each new thread, may refuse
    it with a `CallRejected`, and gives what is called at its end. Safe to use from any thread; usable in a forked
    child.
    """

    def __init__(
        self,
        name: str,
        *,
        max_workers: int = MAX_WORKERS,
        max_abandoned: int = MAX_ABANDONED,
        idle: float = IDLE_SECONDS,
        register: Register | None = None,
    ) -> None:
        require_count("max_workers", max_workers)
        require_count("max_abandoned", max_abandoned, minimum=0)
        self.name = name
        self.max_workers = max_workers
        self.max_abandoned = max_abandoned
        self._idle_seconds = idle
        self._register = register
        self._fresh()
        _all_sets.add(self)

    def _fresh(self) -> None:
        self.lock = threading.Lock()
        self._idle: list[Worker] = []
        self._queue: deque[Task] | None = None  # most sets of many never have one
        self._workers = 0
        self._abandoned = 0
        self._closed = False
        self._numbers = 0
        self.late_results = 0

    @property
    def abandoned(self) -> int:
        """How many calls were given up and still run."""
        return self._abandoned

    # -- a blocking call -------------------------------------------------------------------------------------------

    def call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float | None = None,
        *,
        clock: Clock = SYSTEM,
    ) -> Any:
        """Runs `fn(*args, **kwargs)` on a worker; gives its value or raises its error, within `timeout` seconds.

        Raises `DeadlineExceeded` at the timeout: with `phase="queued"` and `reclaimed=True` when it had not started
        (it never will), else with `reclaimed=False` and the stack where it hung (see `when_ended`). Raises
        `OperationCancelled` or `ShutdownInProgress` when the surrounding operation is cancelled, or the process
        stops. Raises `WorkersExhausted` when too many abandoned calls run.
        """
        context = context_for_a_thread()
        context.run(retry_owner.set, (sys._getframe(1), retry_owner.get()))
        task = Task(fn, args, {} if kwargs is None else kwargs, context)
        operation = current()
        detach = operation.on_cancel(functools.partial(self._interrupt, task)) if operation is not None else None
        lost = None
        _waited_for[task] = self
        try:
            try:
                if stopping():  # looked at once it is known to be waited for: a shutdown sees it, or we see that
                    self._interrupt(task)
                self._dispatch(task)  # from here to the wait nothing is to be done: the worker needs our GIL
                ended = task.wait(timeout, clock)
                if (not ended or task.interrupted) and self._give_up(task):
                    lost = mark_lost(task.why_given_up(self.name, timeout, operation), self.lock, task)
            finally:
                _waited_for.pop(task, None)
                if detach is not None:
                    detach()
        except BaseException as error:  # KeyboardInterrupt in the caller: the call is nobody's now
            self._give_up(task)
            mark_lost(error, self.lock, task)
            raise
        if lost is not None:
            try:
                raise lost
            finally:
                lost = None
        if task.error is not None:
            try:
                raise task.error
            finally:
                task.error = None
        return task.value

    def _interrupt(self, task: Task) -> None:
        """Wakes the caller of a task that has not ended."""
        with self.lock:
            task.interrupt_held()

    def _dispatch(self, task: Task) -> None:
        """Hands the task to an idle worker, a new one or the queue."""
        # A Ctrl-C comes where a function begins or one written in C has returned: none of them is between what belongs
        # together.
        worker = None
        try:
            with self.lock:
                if self._closed:
                    raise RuntimeError(f"workers of {self.name!r} are shut down")
                if self._abandoned >= self.max_abandoned and self._abandoned:
                    raise WorkersExhausted(name=self.name, abandoned=self._abandoned)
                if self._idle:
                    idle = self._idle[-1]
                    idle_threads.pop(idle, None)
                    idle.task, idle.owner = task, self
                    del self._idle[-1]
                    idle.wake.release()
                    return
                if self._workers >= self.max_workers:
                    if not self._queue:
                        self._queue = deque()
                    self._queue.append(task)
                    return
                new = Worker(self, task)
                self._workers += 1
                self._numbers += 1
                number = self._numbers
                worker = new
            self._start(worker, number)
        except BaseException:
            if worker is not None and self._dismiss(worker):
                self._start_next()  # its place is free again: what queued behind it meanwhile has nobody else
            raise

    def _start(self, worker: Worker, number: int) -> None:
        name = f"{self.name}-{number}"
        worker.thread = WorkerThread(
            target=live, args=(weakref.ref(self), worker, self._idle_seconds), name=name, daemon=True
        )
        if self._register is not None:
            worker.thread.owned = self._register("thread", name)
        worker.thread.start()

    def begins(self, worker: Worker) -> bool:
        """Asked by the thread of a new worker: whether it is to work, for it was not dismissed meanwhile."""
        with self.lock:
            worker.has_begun = worker.task is not None
            return worker.has_begun

    def _dismiss(self, worker: Worker) -> bool:
        """Frees the place of a new worker whose start failed; False when its thread has begun all the same."""
        with self.lock:
            if worker.has_begun:
                return False
            worker.task = worker.owner = None
            self._workers -= 1
        if worker.thread is not None and worker.thread.owned is not None:
            worker.thread.owned()
        return True

    def _give_up(self, task: Task) -> bool:
        """Withdraws a queued task or abandons a running one; False when it has just ended.

        Calling it again after an exception (which knows of the abandoned call too) does the rest.
        """
        try:
            with self.lock:
                if task.state == DONE:
                    return False
                if task.state in (QUEUED, WITHDRAWN):
                    task.state = WITHDRAWN
                    if self._queue and task in self._queue:
                        self._queue.remove(task)
                    return True
                assert task.worker is not None
                thread = task.worker.thread
                assert thread is not None
                if task.entry is None:
                    task.entry = Abandoned(self.name, thread.name, "")
                if task.state == RUNNING:
                    LEDGER.abandon(task.entry)  # first: its thread strikes it out at the end
                    task.state = ABANDONED
                    self._abandoned += 1
                    self._workers -= 1  # its thread ends with the call: another may take the place
            try:
                if thread.owned is not None:
                    thread.owned.abandon()
                task.entry.stack = _stack_of(thread)
            finally:
                self._start_next()
        except BaseException as error:
            mark_lost(error, self.lock, task)
            raise
        return True

    def _start_next(self) -> None:
        """Gives the head of the queue to a new worker where there is room for one."""
        while True:
            worker = None
            try:
                with self.lock:
                    if not self._queue or self._workers >= self.max_workers:
                        return
                    task = self._queue[0]
                    new = Worker(self, task)
                    self._workers += 1
                    self._numbers += 1
                    number = self._numbers
                    worker = new
                    self._queue.popleft()
                self._start(worker, number)
                return
            except Exception as error:  # no thread to be had: told to the call that waited for it
                if worker is None or not self._dismiss(worker):
                    raise
                self._fail(task, error)
                if self._workers:
                    return
            except BaseException:  # a Ctrl-C, not meant for the call that waits
                if worker is None or self._dismiss(worker):
                    if worker is not None:
                        self._put_back(task)
                    self._start_next()
                raise

    def _put_back(self, task: Task) -> None:
        """Makes a task the head of the queue again."""
        with self.lock:
            if task.state == QUEUED:
                if not self._queue:
                    self._queue = deque()
                self._queue.appendleft(task)

    def _fail(self, task: Task, error: Exception) -> None:
        """Ends a task that cannot be started."""
        with self.lock:
            if task.state != QUEUED:
                return
            task.state = DONE
            task.error = error
            if not task.interrupted:
                task.done.release()
        if task.fn is _run_for and task.args[0].set_running_or_notify_cancel():
            task.args[0].set_exception(error)

    # -- the worker's side -----------------------------------------------------------------------------------------

    def next_held(self, worker: Worker) -> Any:
        """The worker's next task; None when it is idle from now on, `END` when it ends."""
        worker.task = None
        if self._queue:
            return self._queue.popleft()
        worker.owner = None
        if self._closed or len(idle_threads) >= MAX_IDLE:
            self._workers -= 1
            return END
        self._idle.append(worker)
        idle_threads[worker] = None
        return None

    def end_abandoned_held(self) -> None:
        """Counts the end of a call that was given up."""
        self._abandoned -= 1
        self.late_results += 1

    def retire(self, worker: Worker) -> bool:
        """Lets an idle worker end; False when a task has reached it meanwhile."""
        with self.lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            self._workers -= 1
            return True

    # -- the Executor's interface ------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts `fn(*args, **kwargs)` and gives its Future; the context is copied, a new retry tree begins."""
        future: Future[Any] = Future()
        context = context_for_a_thread()
        context.run(retry_owner.set, None)
        context.run(attempt_gate.set, None)  # it is no attempt of the item that submits it
        task = Task(_run_for, (future, fn, args, kwargs), {}, context)
        self._dispatch(task)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuses new calls; with `wait` lets running and queued ones end, with `cancel_futures` drops queued ones."""
        with self.lock:
            self._closed = True
            dropped = list(self._queue or ()) if cancel_futures else []
            if cancel_futures:
                self._queue = None
            idle, self._idle = self._idle, []
            self._workers -= len(idle)
        for worker in idle:
            worker.wake.release()
        for task in dropped:
            if task.fn is _run_for:
                task.args[0].cancel()
                task.args[0].set_running_or_notify_cancel()
            else:
                with self.lock:
                    task.interrupt_held()
        while wait and self._workers:
            SYSTEM.sleep(0.005)

    def __repr__(self) -> str:
        return f"<ThreadWorkers {self.name!r}: {self._workers} threads, {self._abandoned} abandoned>"


def _run_for(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)


def _stack_of(thread: threading.Thread) -> str:
    ident = thread.ident or -1
    return stacks_of((ident,)).get(ident, "")


_waited_for: dict[Task, ThreadWorkers] = {}  # what blocking calls wait for; single statements, so without a lock
_all_sets: weakref.WeakSet[ThreadWorkers] = weakref.WeakSet()


def living_sets() -> list[ThreadWorkers]:
    """All sets of worker threads of this process."""
    return living(_all_sets)


def _count() -> dict[str, int]:
    counts: dict[str, int] = {}
    for workers in living(_all_sets):
        if workers._workers:
            counts[workers.name] = counts.get(workers.name, 0) + workers._workers
    return counts


LEDGER.count_by("thread", _count)


def _on_shutdown() -> None:
    for task, workers in _waited_for.copy().items():
        workers._interrupt(task)


def _after_fork() -> None:
    _waited_for.clear()
    idle_threads.clear()
    for workers in living(_all_sets):
        workers._fresh()
    on_shutdown(_on_shutdown)  # the child has forgotten its parent's


on_shutdown(_on_shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
