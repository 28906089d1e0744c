"""One fan-out as it runs: its checked parameters, what drives its job, and how it ends."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Sized

from .agent import presence
from .agent.sources import of_fan_out
from .batch_unique import Unique
from .core import ambient, lifecycle
from .core.clock import SYSTEM
from .core.errors import (
    BulkheadFullError,
    DeadlineExceeded,
    ShutdownInProgress,
    require,
    require_count,
    require_seconds,
)
from .core.pipeline import Call, refuse_async
from .monitoring.error_report import ErrorReport
from .monitoring.system import SystemReader
from .outcomes import FanOutItem, FanOutResult
from .workers.fan_out import Job
from .workers.gate import Gate, Place
from .workers.threads import ThreadWorkers
from .workers.throttle import Throttle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .core.events import EventStream
    from .manager import ErrorRecoveryManager
    from .workers.fan_out import Slot
    from .workers.processes import ProcessWorkers

CONCURRENT_SHARE = 0.8  # of the job's time: then the concurrent pass is over
PATIENCE = 0.05  # seconds in which input that is no collection is read on once the time is over


class Run:
    """One fan-out: its checked parameters, and what drives its job from the caller's thread."""

    def __init__(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        max_workers: int | None,
        operation: str | None,
        failure_threshold: float,
        window: int,
        min_calls: int,
        executor: Any,
        isolation: str,
        deadline: float | None,
        key: Callable[[Any], Any] | None,
        on_progress: Callable[[FanOutItem], object] | None,
        restore_after: int,
        manager: ErrorRecoveryManager | None,
        events: EventStream | None,
        streams: bool = False,
        look_ahead: int | None = None,
    ) -> None:
        require(callable(fn), "fn", fn, "expected a function of one item")
        refuse_async(fn)
        require_count("max_workers", max_workers, optional=True)
        fine = isinstance(failure_threshold, (int, float)) and 0 < failure_threshold <= 1
        require(fine, "failure_threshold", failure_threshold, "expected a share above 0, 1 at most")
        require_count("window", window)
        require_count("min_calls", min_calls)
        require_count("restore_after", restore_after)
        require_count("look_ahead", look_ahead, optional=True)
        require_seconds("deadline", deadline, positive=True, optional=True)
        known = ("thread", "caller", "process")
        require(isolation in known, "isolation", isolation, f"expected one of {', '.join(known)}")
        self.operation = operation
        self.name = operation or "fan_out"
        self.manager = manager = manager or _manager_for(operation)
        self.events = events or (manager.events if manager is not None else None)
        self.context = ambient.deadline(deadline)
        self.seconds = self.context.remaining()
        now = SYSTEM.monotonic()
        self.until = None if self.seconds is None else now + self.seconds
        self.fall_at = None if self.seconds is None else now + CONCURRENT_SHARE * self.seconds
        self.in_caller = isolation == "caller" and executor is None
        self.in_processes = isolation == "process" and executor is None
        self.processes: ProcessWorkers | None = None
        self.remote = None
        if executor is not None:
            from .workers.executors import Remote

            self.remote = Remote(fn, executor)
            max_workers = max_workers or self.remote.workers
        self.is_collection = key is None and isinstance(items, (list, tuple, range, set, frozenset, dict, deque))
        self.unique = None if key is None else Unique(items, key)
        is_degraded = manager is not None and manager.in_degradation_mode
        workers = 1 if is_degraded or self.in_caller else max_workers or min(32, (os.cpu_count() or 1) + 4)
        self.workers = max(1, min(workers, len(items))) if isinstance(items, Sized) else workers
        self.gate = Gate(
            self.workers,
            failure_threshold=failure_threshold,
            window=window,
            min_calls=min_calls,
            restore_after=restore_after,
            tell=self._tell,
            throttle=_process_throttle() if manager is None else manager.watch.throttle,
            until=self.until,
        )
        self.gate.look()
        ahead = max(look_ahead or 2 * self.workers, self.workers) if streams else None
        self.on_progress = on_progress
        finished = None if on_progress is None else self._finished
        work = self._work(self.remote or fn)
        self.job = Job(work, self.unique or items, self.gate, look_ahead=ahead, finished=finished)
        self.job.name = self.name
        presence.tell(self.job, of_fan_out)
        if self.remote is not None:
            self.remote.job = self.job
        if is_degraded:
            self.gate.fall("degradation mode")

    def _work(self, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if self.in_processes:
            return self._work_in_processes(fn)
        if self.operation is None or self.manager is None:
            return fn
        run = self.manager.operation(self.operation).call
        return lambda item: run(fn, item)

    def _work_in_processes(self, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Each attempt in a worker process: the operation's, or one of this fan-out that ends with it."""
        if self.operation is None or self.manager is None:
            from .workers.processes import ProcessWorkers

            register = None if self.manager is None else self.manager.resources.own
            self.processes = ProcessWorkers(
                self.name, max_workers=self.workers, events=self.events, register=register
            )
            call = self.processes.call
            return lambda item: call(fn, (item,))
        operation, name = self.manager.operation(self.operation), self.operation
        return lambda item: operation.run(Call(fn, (item,), None, name), isolation="process")

    def _end_processes(self) -> None:
        if self.processes is not None:
            self.processes.shutdown(wait=False, cancel_futures=True)

    def _tell(self, kind: str, reason: str) -> None:
        if self.events is not None:
            self.events.emit(kind, self.name, reason=reason)

    def _finished(self, index: int, slot: Slot) -> None:
        assert self.on_progress is not None
        self.on_progress(self.item(index, slot))

    def item(self, index: int, slot: Slot) -> FanOutItem:
        """An outcome as it is shown: under its place in the input."""
        return FanOutItem(index if self.unique is None else self.unique.positions[index], slot)

    # -- running ---------------------------------------------------------------------------------------------------

    def start(self) -> Callable[[], bool] | None:
        """Starts the workers; where there are none gives what runs one item in the caller's thread."""
        job, started = self.job, 0
        with self.context:
            if not self.in_caller:
                register = None if self.manager is None else self.manager.resources.own
                threads = ThreadWorkers(self.name, max_workers=self.workers, register=register)
                started = job.start(threads.submit, self.workers)
                threads.shutdown(wait=False)
                if started < self.workers:
                    self.gate.limit_to(max(1, started))
                    self.gate.fall(f"only {started} of {self.workers} threads could be started")
            if started:
                return None
            place = Place(self.gate, 0)
            surroundings = job.surroundings(place)
        return lambda: job.work_here(surroundings, place)

    def gather(self) -> None:
        """Runs the whole job; every item read has its outcome afterwards."""
        try:
            self._gather()
        finally:
            self._end_processes()

    def _gather(self) -> None:
        job = self.job
        in_time = not self.is_late()
        here = self.start() if in_time else None
        if here is not None:
            while (in_time := not self.is_late()) and here():
                self.look(SYSTEM.monotonic())
        elif in_time:
            in_time = job.wait(self.until, self.look)
        self.raise_if_stopped()
        if not in_time or self.gate.starved is not None:
            self.give_up()
        job.tell_the_rest()
        if job.source_error is not None:
            raise job.source_error

    def stream(self) -> Iterator[FanOutItem]:
        """The outcomes in input order, as they come."""
        try:
            yield from self._stream()
        finally:
            self._end_processes()

    def _stream(self) -> Iterator[FanOutItem]:
        job = self.job
        if not self.is_late():
            here = self.start()
            for index, slot in job.stream(self.until, self.look, here):
                yield self.item(index, slot)
        self.raise_if_stopped()
        if self.gate.starved is not None or self.is_late():
            self.give_up()
            for index in range(job.consumed, job.read):
                yield self.item(index, job.slots.pop(index))
        if job.source_error is not None:
            raise job.source_error

    def watch(self) -> Callable[[], None]:
        """Lets a shutdown and a cancelled operation close the job; gives what ends that."""
        forget = lifecycle.on_shutdown(self.gate.close)
        detach = self.context.on_cancel(self.gate.close)

        def end() -> None:
            forget()
            detach()

        return end

    def look(self, now: float) -> float | None:
        """Falls back when the concurrent pass has had its time, obeys the limits of the process; when to look again."""
        self.gate.look()
        if self.fall_at is not None and now >= self.fall_at:
            self.fall_at = None
            if not self.gate.has_fallen:
                self.gate.fall("the deadline of the concurrent pass")
        return self.fall_at

    def is_late(self) -> bool:
        """Whether the time is over: nothing is begun then."""
        return self.until is not None and SYSTEM.monotonic() >= self.until

    def raise_if_stopped(self) -> None:
        """Raises what ended the job before its time: an item's exception that is no `Exception`, a stop, a cancel."""
        if self.job.stopped_by is not None:
            raise self.job.stopped_by
        if self.gate.closed and self.gate.starved is None:
            if lifecycle.stopping():
                raise ShutdownInProgress("shutdown in progress, the fan-out was stopped")
            self.context.checkpoint()

    def give_up(self) -> None:
        """Gives every item that has none an outcome: the time is over."""
        self.job.give_up(self.name, self.late, None if self.is_collection else PATIENCE)

    def late(self, started: bool, stack: str = "") -> DeadlineExceeded | BulkheadFullError:
        """The error of an item without an outcome: the time was over, or the limits of the process let nothing in."""
        if self.gate.starved is not None and (self.until is None or SYSTEM.monotonic() < self.until):
            return BulkheadFullError(self.gate.starved, name=self.name)
        return DeadlineExceeded(
            name=self.name,
            timeout=self.seconds,
            elapsed=self.context.clock.monotonic() - self.context.started,
            phase="running" if started else "queued",
            reclaimed=not started,
            stack=stack,
            ambient=True,
        )

    def close(self, end: Callable[[], None]) -> None:
        """Lets the workers go."""
        end()
        is_done = self.job.active == 0
        self.gate.close()
        if self.remote is not None:
            self.remote.close(is_done)
        self.gate.tell = _tell_nobody  # no cycle is left: who forgets the result frees it at once
        self.gate.on_fall_held = _nothing

    def result(self) -> FanOutResult:
        """What became of the items, in input order; the job keeps nothing of it.

        Frames of an error's traceback hold the job: it must not hold the error.
        """
        job = self.job
        slots = [job.slots.pop(index) for index in range(job.read)]
        if self.unique is not None:
            slots = self.unique.spread(slots)
        errors = ErrorReport()
        errors.count_call(len(slots))
        last, times, item = None, 0, None
        for slot in [*slots, (None, None, None, 0, False, 0.0)]:
            if slot[2] is not last:
                if last is not None:
                    errors.add(last, operation=self.operation, item=item, times=times)
                last, times, item = slot[2], 0, slot[0]
            times += 1
        return FanOutResult(slots, errors, self.gate.degraded)


@functools.lru_cache(maxsize=1)
def _process_throttle() -> Throttle:
    """What narrows the fan-outs without a manager: the limits of the process alone."""
    return Throttle(SystemReader().usage)


def _tell_nobody(kind: str, reason: str) -> None:
    pass


def _nothing() -> None:
    pass


def _manager_for(operation: str | None) -> ErrorRecoveryManager | None:
    """The process-wide manager where a named operation needs it, or where it exists (it may be in degradation mode)."""
    import sys

    if operation is None and (module := sys.modules.get(f"{__package__}.manager")) is None:
        return None
    from .manager import default_manager

    if operation is not None:
        return default_manager()
    return default_manager() if default_manager.cache_info().currsize and module else None
