"""The timeout manager: how long each kind of operation may take, and which operations run now."""

from __future__ import annotations

import threading

from .agent import presence
from .agent.sources import of_timeouts
from .config.model import TIMEOUT_DEFAULTS, timeout_of
from .core import ambient
from .core.clock import SYSTEM
from .core.context import OperationContext, innermost
from .core.errors import ConfigError, DeadlineExceeded, OperationCancelled, ShutdownInProgress, require_seconds
from .core.forks import afresh_in_children
from .core.stacks import stacks_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from .core.clock import Clock
    from .workers.ledger import Register


class ActiveOperation:
    """An operation that runs now: `id`, `kind`, `age` and `timeout` in seconds, `thread`, its `stack` on request."""

    __slots__ = ("age", "id", "kind", "stack", "thread", "timeout")

    def __init__(self, context: OperationContext, thread: int | None, stack: str | None) -> None:
        self.id = context.operation_id
        self.kind = context.operation
        self.age = context.clock.monotonic() - context.started
        self.timeout = context.timeout
        self.thread = thread
        self.stack = stack

    def as_dict(self) -> dict[str, Any]:
        """The operation as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"ActiveOperation({self.id!r}, {self.kind!r}, age={self.age:.3f}, timeout={self.timeout!r})"


class _Tracked:
    """An operation for the length of a `with` block: its context is current, and it is active."""

    __slots__ = ("context", "manager", "outside", "thread")

    def __init__(self, manager: TimeoutManager, context: OperationContext) -> None:
        self.manager = manager
        self.context = context
        self.outside: Any = self  # what was current before it; itself as long as it was not entered
        self.thread: int | None = None

    def __enter__(self) -> OperationContext:
        self.thread = threading.get_ident()
        try:
            self.manager._enter(self)
            self.outside = innermost.get()
            return self.context.__enter__()
        except BaseException as error:  # refused, or a Ctrl-C on the way in
            self.manager._leave(self.context, error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        manager = self.manager
        try:
            innermost.reset(self.context._token)
        finally:  # single calls: a Ctrl-C falls before or after what they do
            if manager._active.pop(self.context, None) is not None:
                manager._count_end(self.context, error)

    def leave(self, error: BaseException) -> None:
        """Leaves it for certain: a Ctrl-C may have fallen where `__exit__` began. Harmless once it is left."""
        if self.outside is not self:
            innermost.set(self.outside)
        self.manager._leave(self.context, error)


class TimeoutManager:
    """Deadlines by kind of operation, and the list of those that run. Safe to use from any thread.

    `TimeoutManager(api_call=5.0)` changes kinds or adds new ones; times in seconds. The defaults are the
    specification's; a kind it does not know has 30 s.
    """

    def __init__(self, *, clock: Clock | None = None, **kinds: float) -> None:
        self._clock = clock or SYSTEM
        self._timeouts: dict[str, float] = dict(TIMEOUT_DEFAULTS)
        self._active: dict[OperationContext, _Tracked] = {}
        self.fresh_locks()
        self._counts: dict[str, dict[str, int]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._workers: dict[tuple[str, str], Any] = {}  # of `execute_with_timeout`, by kind and isolation
        self.register: Register | None = None  # hears of its worker threads and processes
        self.closed = False
        self.update_config(**kinds)
        afresh_in_children(self)
        presence.tell(self, of_timeouts)

    def fresh_locks(self) -> None:
        """Locks of its own: at the start, and in a forked child, where only what its one thread has begun is active."""
        self._lock = threading.RLock()  # re-entrant: a finalizer or a signal's handler may ask in the middle
        self._ended = threading.Condition(self._lock)
        here = threading.get_ident()
        self._active = {context: tracked for context, tracked in self._active.items() if tracked.thread == here}

    # -- configuration -------------------------------------------------------------------------------------------

    def timeout_of(self, kind: str) -> float:
        """The seconds an operation of this kind may take."""
        return timeout_of(self._timeouts, kind)

    def update_config(self, /, **kinds: float) -> None:
        """Changes the timeouts of these kinds, also new ones, for later operations. All or nothing: `ConfigError`."""
        for kind, seconds in kinds.items():
            require_seconds(kind, seconds, positive=True)
        with self._lock:
            self._timeouts.update(kinds)
        for listener in self._listeners:
            listener()

    def config(self) -> dict[str, float]:
        """The timeouts by kind, in seconds."""
        return dict(self._timeouts)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener()` after each change of the configuration."""
        self._listeners.append(listener)

    # -- operations ----------------------------------------------------------------------------------------------

    def operation(self, kind: str, operation_id: str | None = None, timeout: float | None = None) -> _Tracked:
        """`with timeouts.operation("backfill") as ctx:` bounds the block by the kind's timeout, or by `timeout`.

        Entering raises `ConfigError` for an id that is active.
        """
        require_seconds("timeout", timeout, positive=True, optional=True)
        return self.track(self._context(kind, operation_id, timeout))

    def _context(self, kind: str, operation_id: str | None, timeout: float | None) -> OperationContext:
        limit = self.timeout_of(kind) if timeout is None else timeout
        return OperationContext(kind, limit, operation_id=operation_id, clock=self._clock, parent=ambient.current())

    def track(self, context: OperationContext) -> _Tracked:
        """Makes `context` current and active for the length of a `with` block."""
        if self.closed:
            raise ShutdownInProgress(f"the timeout manager is shut down, {context.operation!r} was not started")
        return _Tracked(self, context)

    def create_operation_context(self, kind: str, operation_id: str | None = None) -> OperationContext:
        """A context that is active until `complete_operation(id)`; it is not made current.

        Raises `ConfigError` for an id that is active, `ShutdownInProgress` after `shutdown()`.
        """
        tracked = self.track(self._context(kind, operation_id, None))
        tracked.thread = threading.get_ident()
        self._enter(tracked)
        return tracked.context

    def complete_operation(self, operation_id: str) -> bool:
        """Ends what `create_operation_context` began; False when there is no such operation."""
        tracked = self._find(operation_id)
        if tracked is None:
            return False
        self._leave(tracked.context, None)
        return True

    def execute_with_timeout(
        self,
        kind: str,
        operation_id: str | None,
        fn: Callable[[OperationContext], Any],
        isolation: str = "thread",
        timeout: float | None = None,
    ) -> Any:
        """Calls `fn(ctx)` within the kind's timeout; where it runs is up to `isolation`, as for `Timeout`."""
        from .strategies.timeout import Timeout

        with self.operation(kind, operation_id, timeout) as context:
            limit = self.timeout_of(kind) if timeout is None else timeout
            workers = self._workers_of(kind, isolation) if isolation in ("thread", "process") else None
            return Timeout(limit, isolation=isolation, name=kind, clock=self._clock, workers=workers).call(fn, context)

    def _workers_of(self, kind: str, isolation: str) -> Any:
        workers = self._workers.get((kind, isolation))
        if workers is None:
            workers = self._workers.setdefault((kind, isolation), _new_workers(kind, isolation, self.register))
        return workers

    def cancel_operation(self, operation_id: str, reason: str = "cancelled") -> bool:
        """Ends the waits of one operation with `OperationCancelled`; False when there is no such operation."""
        tracked = self._find(operation_id)
        if tracked is None:
            return False
        tracked.context.cancel(reason)
        return True

    def cancel_all_operations(self, reason: str = "cancelled") -> int:
        """Cancels every active operation; gives how many."""
        with self._lock:
            contexts = list(self._active)
        for context in contexts:
            context.cancel(reason)
        return len(contexts)

    def active_operations(self, *, stacks: bool = False) -> list[ActiveOperation]:
        """What runs now, oldest first; with `stacks` each with the stack of the thread it runs on as text."""
        with self._lock:
            every = sorted(self._active.values(), key=lambda tracked: tracked.context.started)
        threads = [tracked.context.worker or tracked.thread for tracked in every]
        texts = stacks_of(thread for thread in threads if thread is not None) if stacks else {}
        return [
            ActiveOperation(tracked.context, thread, texts.get(thread or -1))
            for tracked, thread in zip(every, threads, strict=True)
        ]

    def active_contexts(self) -> list[tuple[OperationContext, int | None]]:
        """The contexts of what runs now, each with the thread that entered it, where there is one."""
        with self._lock:
            return [(tracked.context, tracked.thread) for tracked in list(self._active.values())]

    def operation_stats(self) -> dict[str, dict[str, int]]:
        """By kind: started, completed, failed, timed_out, cancelled and active."""
        with self._lock:
            active: dict[str, int] = {}
            for context in list(self._active):
                active[context.operation] = active.get(context.operation, 0) + 1
            return {kind: {**counts, "active": active.get(kind, 0)} for kind, counts in sorted(self._counts.items())}

    def shutdown(self, grace: float = 0.0) -> None:
        """Refuses new operations, waits up to `grace` seconds for the active ones and cancels the rest."""
        require_seconds("grace", grace)
        self.closed = True
        end = SYSTEM.monotonic() + grace
        try:
            with self._ended:
                while self._active and SYSTEM.monotonic() < end:
                    SYSTEM.wait(self._ended, end - SYSTEM.monotonic())
        finally:  # a Ctrl-C cuts the wait short, not the end
            self.cancel_all_operations("shutdown")
            for workers in list(self._workers.values()):
                workers.shutdown(wait=False, cancel_futures=True)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _find(self, operation_id: str) -> _Tracked | None:
        with self._lock:
            for context, tracked in list(self._active.items()):
                if context.operation_id == operation_id:
                    return tracked
        return None

    def _enter(self, tracked: _Tracked) -> None:
        given = tracked.context.given_id
        with self._lock:
            if given is not None and any(context.given_id == given for context in list(self._active)):
                raise ConfigError(f"operation {given!r} is active", key="operation_id", value=given)
            self._active[tracked.context] = tracked
            self._counts_of(tracked.context.operation)["started"] += 1

    def _leave(self, context: OperationContext, error: BaseException | None) -> None:
        if self._active.pop(context, None) is not None:
            self._count_end(context, error)

    def _count_end(self, context: OperationContext, error: BaseException | None) -> None:
        if error is None:
            outcome = "completed"
        elif isinstance(error, DeadlineExceeded):
            outcome = "timed_out"
        elif isinstance(error, OperationCancelled) or not isinstance(error, Exception):
            outcome = "cancelled"
        else:
            outcome = "failed"
        with self._ended:
            self._counts_of(context.operation)[outcome] += 1
            self._ended.notify_all()

    def _counts_of(self, kind: str) -> dict[str, int]:
        return self._counts.setdefault(
            kind, {"started": 0, "completed": 0, "failed": 0, "timed_out": 0, "cancelled": 0}
        )


def _new_workers(kind: str, isolation: str, register: Register | None) -> Any:
    if isolation == "process":
        from .workers.processes import ProcessWorkers

        return ProcessWorkers(kind, register=register)
    from .workers.threads import ThreadWorkers

    return ThreadWorkers(kind, register=register)
