"""One call on its way to a worker thread and back, and whom to tell when it ends after its caller has gone."""

from __future__ import annotations

import threading

from ..core.clock import SYSTEM
from ..core.errors import DeadlineExceeded, OperationCancelled, ShutdownInProgress
from ..core.lifecycle import stopping
from .ledger import LEDGER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ..core.clock import Clock
    from ..core.context import OperationContext
    from .ledger import Abandoned
    from .worker_thread import Worker

    E = TypeVar("E", bound=BaseException)

POLL = 0.002  # real seconds between two looks at a clock that is not the system's
_LOST = "_resilience_lost"  # how an error knows the abandoned call behind it

QUEUED, RUNNING, DONE, ABANDONED, WITHDRAWN = range(5)


class Task:
    """One call on its way to a worker and back."""

    __slots__ = (
        "args",
        "context",
        "done",
        "entry",
        "error",
        "fn",
        "interrupted",
        "kwargs",
        "on_end",
        "state",
        "value",
        "worker",
    )

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: contextvars.Context
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.context = context
        self.state = QUEUED
        self.done = locked()  # released when the call has ended
        self.value: Any = None
        self.error: BaseException | None = None
        self.worker: Worker | None = None
        self.entry: Abandoned | None = None
        self.interrupted = False
        self.on_end: list[Callable[[], object]] | None = []  # None once the call has ended

    def wait(self, timeout: float | None, clock: Clock) -> bool:
        """Waits for the end of the call on any clock, or until it is interrupted; False when `timeout` came first."""
        if clock is SYSTEM:
            return bool(self.done.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)))
        end = None if timeout is None else clock.monotonic() + timeout
        while not self.done.acquire(True, POLL):
            if end is not None and clock.monotonic() >= end:
                return False
        return True

    def interrupt_held(self) -> None:
        """Wakes its caller unless it has ended; who holds the lock."""
        if self.state in (QUEUED, RUNNING) and not self.interrupted:
            self.interrupted = True
            self.done.release()

    def why_given_up(
        self, name: str, timeout: float | None, operation: OperationContext | None
    ) -> DeadlineExceeded | OperationCancelled | ShutdownInProgress:
        """The error that its caller gets, whose name is that of the operation."""
        if self.interrupted:
            if operation is not None and operation.cancelled:
                return OperationCancelled(name=name, reason=operation.reason)
            if stopping():
                return ShutdownInProgress(f"shutdown in progress, {name!r} was given up")
            return OperationCancelled(name=name)
        if self.state == WITHDRAWN:
            return DeadlineExceeded(name=name, timeout=timeout, elapsed=timeout, phase="queued", reclaimed=True)
        stack = self.entry.stack if self.entry is not None else ""
        return DeadlineExceeded(
            name=name, timeout=timeout, elapsed=timeout, phase="running", reclaimed=False, stack=stack
        )


def locked() -> Any:
    """A lock that is taken: whom to wake waits for it."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def mark_lost(error: E, lock: Any, task: Task) -> E:
    """Lets `when_ended` find the task, guarded by `lock`, behind the error if it was abandoned."""
    if task.state == ABANDONED:
        setattr(error, _LOST, (lock, task))
    return error


def when_ended(error: BaseException, callback: Callable[[], object]) -> None:
    """Calls `callback` once the abandoned call behind `error` has ended; at once where nothing was abandoned."""
    lost: tuple[Any, Task] | None = getattr(error, _LOST, None)
    if lost is not None:
        lock, task = lost
        with lock:
            if task.on_end is not None:
                task.on_end.append(callback)
                return
    callback()


def bury(lock: Any, task: Task) -> None:
    """Ends an abandoned call: its late answer is dropped, and who waits for its end is told."""
    assert task.entry is not None
    LEDGER.ended(task.entry)
    task.value = task.error = None
    with lock:
        told, task.on_end = task.on_end, None
    for callback in told or ():
        callback()
