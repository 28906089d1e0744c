"""Timeout: one attempt ends for its caller after so many seconds, wherever it hangs.

`isolation="thread"` (rung 2 of the ladder) runs the function on a replaceable worker thread; `"caller"` (rung 1) runs
it in the caller's thread, where the deadline binds what looks at it: sleeps and waits of ours and the aware drivers;
`"process"` (rung 3) runs it in a worker process that is killed at the deadline with everything below it.
"""

from __future__ import annotations

import functools
import threading

from ..core.ambient import current
from ..core.clock import SYSTEM
from ..core.context import OperationContext
from ..core.entries import around, enter_attempt, enter_lane, leave_lane
from ..core.errors import DeadlineExceeded, require, require_count, require_seconds
from ..core.pipeline import AWAITABLES, Call, invoke, refuse_async, refuse_awaitable
from ..core.signature import Template
from .nesting import pickled_policies, policies_outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    from ..core.clock import Clock
    from ..core.events import EventStream
    from ..workers.processes import ProcessWorkers
    from ..workers.threads import ThreadWorkers

    P = ParamSpec("P")
    R = TypeVar("R")

ISOLATIONS = ("thread", "caller", "process")
_NOBODY: tuple[list[Any], bytes] = ([], b"")
START_METHODS = ("forkserver", "spawn", "fork")


# What a function decorated for the caller's thread does: `Timeout._in_caller` in one frame.
_TIMED = Template(
    """
    def wrapper({parameters}):
        outside = around()
        if outside.__class__ is tuple:
            outside = current()
        started = now()
        mark = None
        try:
            mark = enter_lane((entry, started, outside, 1))
            result = fn({arguments})
        except DeadlineExceeded as error:
            timeout._blame(error, current(), timeout.name)
            raise
        finally:
            if mark is None:
                enter_lane(outside)  # interrupted on the way in
            else:
                leave_lane(mark)
        return result if result.__class__ not in AWAITABLES else refuse_awaitable(fn, result)
""",
    names=("timeout", "entry", "now"),
    scope={
        "AWAITABLES": AWAITABLES,
        "DeadlineExceeded": DeadlineExceeded,
        "around": around,
        "current": current,
        "enter_lane": enter_lane,
        "leave_lane": leave_lane,
        "refuse_awaitable": refuse_awaitable,
    },
)


def require_isolation(isolation: str) -> None:
    """Raises `ConfigError` for what is no place for an attempt to run."""
    require(isolation in ISOLATIONS, "isolation", isolation, f"expected one of {', '.join(ISOLATIONS)}")


class Timeout:
    """Bounds one attempt to `seconds`, or to what is left of the ambient deadline; itself a strategy.

    Raises `DeadlineExceeded`: on a thread with `reclaimed=False` (the attempt may still run; at most `max_abandoned` of
    them, then `WorkersExhausted`). In the caller's thread a value that comes late is still a value and is returned.
    In a process with `reclaimed=True`: it has ended for certain. There the function, its arguments and its result must
    be picklable (`TypeError` says what to do; `start_method="fork"` takes any function), a process that dies raises
    `WorkerCrashed`, and `memory_limit` (bytes) bounds its address space. Safe to share between threads.
    """

    def __init__(
        self,
        seconds: float,
        isolation: str = "thread",
        max_abandoned: int = 8,
        memory_limit: int | None = None,
        *,
        name: str = "",
        clock: Clock | None = None,
        events: EventStream | None = None,
        workers: ThreadWorkers | ProcessWorkers | None = None,
        start_method: str = "forkserver",
    ) -> None:
        require_seconds("seconds", seconds, positive=True)
        require_isolation(isolation)
        require_count("max_abandoned", max_abandoned, minimum=0)
        require_count("memory_limit", memory_limit, optional=True)
        only = 'expected None: it applies to isolation="process"'
        require(memory_limit is None or isolation == "process", "memory_limit", memory_limit, only)
        require(start_method in START_METHODS, "start_method", start_method, f"expected one of {START_METHODS}")
        self.seconds = seconds
        self.isolation = isolation
        self.max_abandoned = max_abandoned
        self.memory_limit = memory_limit
        self.name = name
        self.clock = clock or SYSTEM
        self.events = events
        self._workers = workers
        self.start_method = start_method
        self._sets: dict[str, Any] = {}  # by operation, where no workers were given
        self._owners = _NOBODY  # the policies that were around the last call, pickled

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline as one attempt with this time limit."""
        if self.isolation == "caller":
            return self._in_caller(proceed, call)
        outer = current()
        name = self.name or call.name
        context = OperationContext(name, self.seconds, clock=self.clock, parent=outer, is_attempt=True)
        context.attempt = call.attempt
        try:
            if self.isolation == "thread":
                limit = context.remaining()
                return self._workers_of(name).call(_within, (context, proceed, call), None, limit, clock=self.clock)
            return self._in_process(name, context, proceed, call)
        except DeadlineExceeded as error:
            self._blame(error, context, name)
            raise

    def _in_caller(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline in this thread; no context is made as long as nobody looks at the deadline."""
        name = self.name or call.name
        started = self.clock.monotonic()
        outside, mark = around(), None
        try:
            mark = enter_attempt(name, self.seconds, self.clock, started, call.attempt)
            return proceed(call)
        except DeadlineExceeded as error:
            self._blame(error, current(), name)
            raise
        finally:
            if mark is None:
                enter_lane(outside)
            else:
                leave_lane(mark)

    def _blame(self, error: DeadlineExceeded, context: OperationContext | None, name: str) -> None:
        """Says whose deadline it was, and tells it."""
        if self.isolation != "process" and (not error.reclaimed or error.phase == "queued"):
            error.ambient = context is None or not context.is_own_deadline
        self._tell(name, error)

    def _in_process(self, name: str, context: OperationContext, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs what is inside here, and the function itself in a worker process, within the same time limit."""
        fn, workers = call.fn, self._workers_of(name)

        def there(*args: Any, **kwargs: Any) -> Any:
            return workers.call(fn, args, kwargs, clock=self.clock, owners=self._pickled_owners())

        there.__qualname__ = getattr(fn, "__qualname__", repr(fn))
        call.fn = there
        try:
            with context:
                return proceed(call)
        finally:
            call.fn = fn

    def _pickled_owners(self) -> bytes:
        """The retry policies around the call, for one owner of retries over there too."""
        policies = policies_outside(2)
        known, data = self._owners
        if len(known) != len(policies) or any(one is not other for one, other in zip(known, policies, strict=True)):
            data = pickled_policies(policies)
            self._owners = policies, data
        return data

    def _workers_of(self, name: str) -> Any:
        if self._workers is not None:
            return self._workers
        workers = self._sets.get(name)
        if workers is None:
            fresh = self._new_workers(name or "timeout")
            workers = self._sets.setdefault(name, fresh)  # atomic: the first calls may come at once
        return workers

    def _new_workers(self, name: str) -> ThreadWorkers | ProcessWorkers:
        if self.isolation == "process":
            from ..workers.processes import ProcessWorkers

            return ProcessWorkers(
                name, memory_limit=self.memory_limit, start_method=self.start_method, events=self.events
            )
        from ..workers.threads import ThreadWorkers

        return ThreadWorkers(name, max_abandoned=self.max_abandoned)

    def _tell(self, name: str, error: DeadlineExceeded) -> None:
        if self.events is None:
            return
        self.events.emit("timed_out", name, timeout=error.timeout, phase=error.phase, reclaimed=error.reclaimed)
        kind = "reclaimed" if error.reclaimed else "abandoned"
        self.events.emit(kind, name, timeout=error.timeout, stack=error.stack)

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn(*args, **kwargs)` within the time limit."""
        return self.run(invoke, Call(fn, args, kwargs, self.name))  # type: ignore[no-any-return]  # R by composition

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        refuse_async(fn)
        if self.isolation == "caller":
            return self._in_this_thread(fn)

        @functools.wraps(fn)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.run(invoke, Call(fn, args, kwargs, self.name))  # type: ignore[no-any-return]  # R by composition

        return timed

    def _in_this_thread(self, fn: Callable[P, R]) -> Callable[P, R]:
        """`fn` with this time limit in the caller's thread."""
        entry = self.name, None, self.seconds, self.clock
        return _TIMED.wrap(fn, self, entry, self.clock.monotonic)  # type: ignore[no-any-return]  # of the signature of fn

    def __repr__(self) -> str:
        return f"Timeout({self.seconds:g}, isolation={self.isolation!r})"


def _within(context: OperationContext, proceed: Callable[[Call], Any], call: Call) -> Any:
    """What a worker thread does: it begins nothing once the time is over, however late it was woken."""
    if context.remaining() == 0.0:
        raise context.deadline_error("queued")
    enter_lane(context)  # the variables of this thread are a copy that ends with the call
    outer = context.parent
    if outer is None:
        return proceed(call)
    outer.worker = thread = threading.get_ident()
    try:
        return proceed(call)
    finally:
        if outer.worker == thread:
            outer.worker = None
