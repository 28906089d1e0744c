"""One named operation: its parts, the pipeline built from them, and what its calls came to."""

from __future__ import annotations

from .core import ambient, lifecycle
from .core.context import OperationContext
from .core.errors import CallRejected, DeadlineExceeded, OperationCancelled, ShutdownInProgress
from .core.history import AttemptHistory, add_note, attach, history
from .core.pipeline import Call, Pipeline, compose
from .lane import LANES, Lane

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .core.pipeline import Strategy
    from .monitoring.operations import OperationStats
    from .parts import Parts, Surroundings
    from .workers.processes import ProcessWorkers
    from .workers.threads import ThreadWorkers


class OperationResult:
    """How a call ended: exactly one of `value` (when `success`) and `error`; `duration` in seconds.

    `recovered`: it succeeded after at least one retry. `fallback_used`: the value is a fallback's.
    """

    __slots__ = ("attempts", "duration", "error", "fallback_used", "history", "recovered", "success", "value")

    def __init__(self, call: Call, duration: float, value: Any = None, error: Exception | None = None) -> None:
        self.success = error is None
        self.value = value
        self.error = error
        self.attempts = call.attempt if call.history is None else max(len(call.history), call.attempt)
        self.duration = duration
        self.fallback_used = call.fallback_used
        self.recovered = self.success and not call.fallback_used and call.attempt > 1
        self.history: AttemptHistory = call.history or AttemptHistory(call.name)

    def __repr__(self) -> str:
        outcome = f"value={self.value!r}" if self.success else f"error={self.error!r}"
        return f"OperationResult({outcome}, attempts={self.attempts}, duration={self.duration:.3g})"


class Operation:
    """A name and everything that protects the calls made under it. Safe to share between threads.

    Small as long as it is idle: what a call needs is made by the first one that needs it.
    """

    __slots__ = (
        "__weakref__",
        "_adapt",
        "_around",
        "_lanes_due",
        "_parts",
        "_pipelines",
        "_processes",
        "_threads",
        "caller_lane",
        "clock",
        "critical",
        "name",
        "own_lane",
        "stats",
    )

    def __init__(
        self,
        name: str,
        surroundings: Surroundings,
        stats: OperationStats,
        adapt: Callable[[Parts], Parts] | None = None,
    ) -> None:
        self.name = name
        self.stats = stats
        self.clock = surroundings.clock
        self.critical = False
        self._around = surroundings
        self._adapt = adapt
        self._threads: ThreadWorkers | None = None
        self._processes: ProcessWorkers | None = None

    def build(self, parts: Parts) -> None:
        """Takes these parts for all later calls; calls that run end under the ones they began with."""
        self._parts = parts if self._adapt is None else self._adapt(parts)
        self._pipelines: dict[str | None, Pipeline] | None = None
        self._forget_lanes()

    def _forget_lanes(self) -> None:
        self.own_lane: Lane | None = None
        self.caller_lane: Lane | None = None
        self._lanes_due = sum(LANES.values())

    def open_lane(self, isolation: str | None) -> bool:
        """Opens the express lane at the first call that could use it; False where there is none or it was open."""
        parts = self._parts
        mine = LANES.get(isolation, 0)
        if not self._lanes_due & mine:
            return False
        self._lanes_due &= ~mine
        lane = Lane.of(self, isolation or parts.isolation)
        if isolation is None:
            self.own_lane = lane
        else:
            self.caller_lane = lane
        if self._parts is not parts:  # new parts have come meanwhile: the next call makes it of those
            self._forget_lanes()
        if self.is_closed():
            self.close_lanes()
        return lane is not None

    @property
    def parts(self) -> Parts:
        """What guards the operation now."""
        return self._parts

    def pipeline(self, isolation: str | None = None) -> Pipeline:
        """The composed pipeline, for the operation's own isolation (None) or another one."""
        pipelines = self._pipelines
        if pipelines is None:
            pipelines = self._pipelines = {}
        try:
            return pipelines[isolation]
        except KeyError:
            strategies = self.strategies(self._parts, isolation or self._parts.isolation)
            return pipelines.setdefault(isolation, Pipeline(*strategies, name=self.name))

    def strategies(self, parts: Parts, isolation: str) -> tuple[Any, ...]:
        """The strategies that these parts are, in their order, outermost first."""
        return parts.strategies(self.name, isolation, self.clock, self._around.events, self._workers(isolation))

    def _workers(self, isolation: str) -> ThreadWorkers | ProcessWorkers | None:
        if isolation == "caller":
            return None
        if isolation == "process":
            return self._process_workers()
        if self._threads is None:
            from .workers.threads import ThreadWorkers

            around = self._around
            with around.making:  # first calls at once share one set: `end_workers` knows no other
                if self._threads is None:
                    self._threads = ThreadWorkers(
                        self.name, max_abandoned=self._parts.max_abandoned, register=around.register
                    )
        return self._threads

    def _process_workers(self) -> ProcessWorkers:
        from .workers.processes import ProcessWorkers

        around, limit = self._around, self._parts.memory_limit
        with around.making:
            known = workers = self._processes
            if workers is None or workers.memory_limit != limit:
                workers = self._processes = ProcessWorkers(
                    self.name, memory_limit=limit, events=around.events, register=around.register
                )
        if known is not None and known is not workers:
            known.shutdown(wait=False)
        return workers

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls `fn(*args, **kwargs)` under everything that guards this operation."""
        return self.run(Call(fn, args, kwargs, self.name))

    def run(self, call: Call, *, isolation: str | None = None, fallback: Strategy | None = None) -> Any:
        """Runs one call and counts what it came to; `fallback` stands outside of everything else."""
        if self.is_closed():
            raise self.refused()
        pipeline = self.pipeline(isolation)
        guarded = pipeline.composed if fallback is None else compose((fallback,), pipeline.composed)
        outer = ambient.current()
        context = OperationContext(self.name, self._parts.total, clock=self.clock, parent=outer)
        return self._tracked(call, context, guarded)

    def result_of(self, call: Call, *, fallback: Strategy | None = None) -> OperationResult:
        """Runs one call and tells how it ended instead of raising; only what is no `Exception` still passes."""
        started = self.clock.monotonic()
        try:
            value = self.run(call, fallback=fallback)
        except Exception as error:
            if call.history is None:
                call.history = history(error)
            return OperationResult(call, self.clock.monotonic() - started, error=error)
        return OperationResult(call, self.clock.monotonic() - started, value)

    def end_workers(self) -> None:
        """Ends the idle worker threads and processes now, the others with their calls."""
        for workers in (self._threads, self._processes):
            if workers is not None:
                workers.shutdown(wait=False, cancel_futures=True)

    def close_lanes(self) -> None:
        """Sends every later call through `run`, which refuses it when the manager is closed or the process stops."""
        self.own_lane = self.caller_lane = None
        self._lanes_due = 0

    def is_closed(self) -> bool:
        """Whether nothing more is admitted."""
        return self._around.timeouts.closed or lifecycle.stopping()

    def refused(self) -> ShutdownInProgress:
        """What tells a call that nothing more is admitted."""
        return ShutdownInProgress(f"shutdown in progress, {self.name!r} was not started")

    def resume(self, call: Call, lane: Lane, started: float, seen: OperationContext | None = None) -> Any:
        """Goes on with a call whose first attempt failed in the express lane: under all that guards it but the slot.

        `seen` is the innermost context of that attempt, where it was made: a cancel of the call holds on.
        """
        context = seen if seen is None or not seen.is_attempt else seen.parent
        if context is None or context.started != started:
            context = OperationContext(
                self.name, self._parts.total, clock=self.clock, parent=ambient.current(), started=started
            )
        call.started = started
        return self._tracked(call, context, lane.remainder(self))

    def _tracked(self, call: Call, context: OperationContext, guarded: Callable[[Call], Any]) -> Any:
        """Runs the call as an active operation, and counts what it came to."""
        call.context = context
        tracked = self._around.timeouts.track(context)
        try:
            with tracked:
                try:
                    value = guarded(call)
                except BaseException as error:
                    self._count_error(call, context, error)
                    raise
        except BaseException as error:
            tracked.leave(error)
            raise
        self._count_value(call, context)
        return value

    def _count_value(self, call: Call, context: OperationContext) -> None:
        now = self.clock.monotonic()
        outcome = "success"
        if call.fallback_used:
            outcome = "rejection" if isinstance(call.saved_from, CallRejected) else "failure"
            if call.saved_from is not None:
                self._around.errors.add(call.saved_from, operation=self.name)
        self.stats.record(
            now,
            now - context.started,
            outcome,
            retries=call.attempt - 1,
            timed_out=isinstance(call.saved_from, DeadlineExceeded),
            fell_back=call.fallback_used,
        )

    def _count_error(self, call: Call, context: OperationContext, error: BaseException) -> None:
        now = self.clock.monotonic()
        if not isinstance(error, Exception) or isinstance(error, OperationCancelled):
            outcome = "cancelled"
        else:
            outcome = "rejection" if isinstance(error, CallRejected) else "failure"
            self._describe(error)
            self._around.errors.add(error, operation=self.name)
        self.stats.record(
            now,
            now - context.started,
            outcome,
            retries=call.attempt - 1,
            timed_out=isinstance(error, DeadlineExceeded),
        )

    def _describe(self, error: Exception) -> None:
        """Lets the final error tell which operation it comes from."""
        record = history(error)
        if not record.operation:
            record.operation = self.name
            attach(error, record)
        # a list: the end of a generator would swallow a Ctrl-C
        if not [note for note in getattr(error, "__notes__", ()) if repr(self.name) in str(note)]:
            add_note(error, f"in operation {self.name!r}")
