"""A worker thread: it runs the calls of its set of workers until none comes for a while, or one was abandoned."""

from __future__ import annotations

import threading

from .thread_task import ABANDONED, DONE, QUEUED, RUNNING, bury, locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    import weakref
    from typing import Any

    from ..resources.handles import Owned
    from .thread_task import Task
    from .threads import ThreadWorkers

END: Any = object()  # instead of a next call
idle_threads: dict[Worker, None] = {}  # of all sets; single statements, so without a lock


class WorkerThread(threading.Thread):
    """A thread of a set of workers; `owned` is how it is registered."""

    owned: Owned | None = None


class Worker:
    """An idle or busy thread: `wake` is released when `task` holds its next call (None: end).

    `owner` keeps the set of workers alive while there is a task to run; an idle thread does not hold it.
    """

    __slots__ = ("has_begun", "owner", "task", "thread", "wake")

    def __init__(self, owner: ThreadWorkers, task: Task) -> None:
        self.owner: ThreadWorkers | None = owner
        self.task: Task | None = task
        self.has_begun = False  # whether its thread works: from then on that gives its place back
        self.wake = locked()
        self.thread: WorkerThread | None = None


def live(owner: weakref.ref[ThreadWorkers], worker: Worker, idle_seconds: float) -> None:
    """The life of a worker thread, from its first call to its end."""
    try:
        _work(owner, worker, idle_seconds)
    finally:
        idle_threads.pop(worker, None)
        if worker.thread is not None and worker.thread.owned is not None:
            worker.thread.owned()


def _work(owner: weakref.ref[ThreadWorkers], worker: Worker, idle_seconds: float) -> None:
    """Runs calls until there are none, or one was abandoned."""
    workers = owner()
    if workers is None or not workers.begins(worker):
        return
    task = worker.task
    while True:
        if task is None:
            woken = worker.wake.acquire(True, idle_seconds)
            task = worker.task
            if task is None:
                workers = owner()
                if workers is None or woken or workers.retire(worker):
                    return
                worker.wake.acquire()
                task = worker.task
                if task is None:
                    return
        workers = worker.owner
        assert workers is not None
        task = _serve(workers, worker, task)
        del workers
        if task is END:
            return


def _serve(workers: ThreadWorkers, worker: Worker, task: Task) -> Any:
    """Runs one task; gives the next one, None to wait for it, or `END` when the thread was abandoned."""
    lock = workers.lock
    with lock:
        if task.state != QUEUED:  # it was withdrawn
            return workers.next_held(worker)
        task.state, task.worker = RUNNING, worker
    try:
        task.value = task.context.run(task.fn, *task.args, **task.kwargs)
    except BaseException as error:
        task.error = error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
    with lock:
        abandoned = task.state == ABANDONED
        if abandoned:
            workers.end_abandoned_held()
            worker.owner = None
            following = END
        else:
            task.state = DONE
            following = workers.next_held(worker)
    if abandoned:
        bury(lock, task)
    elif not task.interrupted:
        task.done.release()
    return following
