"""Worker processes that are killed at the deadline: what hangs in them, crashes or eats memory ends with them.

The surface is that of `ThreadWorkers`. The caller's own thread talks to its worker, so that a call costs one exchange
over a socket; a worker that has to be ended is ended with SIGKILL, with everything below it, and the next call gets a
new one. So a call that ran out of time is reclaimed for certain, and may be made again.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Executor, Future

from ..core.ambient import current
from ..core.carried import carried
from ..core.clock import SYSTEM
from ..core.errors import OperationCancelled, ShutdownInProgress, require, require_count
from ..core.forks import living
from ..core.lifecycle import on_shutdown, stopping
from .envelope import pack_call, unpack_error, unpack_value
from .process_pool import ProcessPool, Turn
from .process_start import START_METHODS
from .process_wait import Interrupter, Limit
from .threads import ThreadWorkers
from .wire import VALUE
from .worker_process import Interrupted, WorkerProcess

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
        self._pool = ProcessPool(
            name,
            self.max_workers,
            start_method,
            memory_limit=memory_limit,
            max_tasks=max_tasks,
            max_rss=max_rss,
            idle=idle,
            events=events,
            register=register,
        )
        self._fresh()
        _all_sets.add(self)

    def _fresh(self) -> None:
        self._lock = threading.Lock()
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
        limit = Limit(timeout, clock, context)
        surroundings = (carried(context), limit.end if limit.clock is SYSTEM else None, owners)
        task = (fn, args, {} if kwargs is None else kwargs, surroundings)
        inherited = None
        try:
            payload = pack_call(*task)
        except TypeError:
            if self.start_method != "fork":
                raise
            payload, inherited = b"", task
        interrupter = Interrupter()
        detach = context.on_cancel(interrupter) if context is not None else None
        forget = on_shutdown(interrupter)
        turn = Turn()
        try:
            self._pool.take(turn, limit, interrupter, inherited)
            return self._run(turn, payload, limit, interrupter)
        except BaseException as error:  # whoever raises it, and where: nobody else shall get this worker
            self._pool.leave(turn)
            if isinstance(error, Interrupted):
                raise self._why_interrupted(context) from None
            raise
        finally:
            interrupter.target = None
            forget()
            if detach is not None:
                detach()

    def _run(self, turn: Turn, payload: bytes, limit: Limit, interrupter: Interrupter) -> Any:
        """One call on the worker of this turn, which is given back or ended."""
        worker = turn.worker
        assert worker is not None
        worker.is_interrupted = interrupter.is_woken
        interrupter.aim(worker.interrupt)
        if not worker.wait_until_ready(limit.end, limit.clock):
            self._pool.give(turn)  # it is still starting: good for the next call
            raise limit.error(self.name, "queued")
        got = worker.call(payload, limit.end, limit.clock)
        if got is None:
            late = limit.error(self.name, "running")
            late.stack = worker.stack()
            late.reclaimed = self._pool.lose(turn)
            raise late
        self._pool.give_back(turn)
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

    @property
    def abandoned(self) -> int:
        """How many killed workers the kernel has not let go of (a dead disk or network file system)."""
        return self._pool.count_undead()

    def warm(self, count: int = 1, timeout: float = 30.0) -> None:
        """Starts workers ahead of the first call, until `count` are idle or `timeout` seconds have passed.

        Raises `WorkerCrashed` when one dies while it starts; those that live serve the calls that come.
        """
        require_count("count", count)
        limit = Limit(timeout, SYSTEM, None)
        turns = [Turn() for _ in range(min(count, self.max_workers))]
        taken: list[WorkerProcess] = []
        try:
            for turn in turns:
                self._pool.take(turn, limit, Interrupter(), None)
                assert turn.worker is not None
                taken.append(turn.worker)
            for worker in taken:
                worker.wait_until_ready(limit.end, SYSTEM)
        finally:
            for turn in turns:
                if turn.worker is None or turn.worker.is_gone():  # it died while it started: no call shall get it
                    self._pool.leave(turn)
                else:
                    self._pool.give(turn)

    # -- the Executor's interface ------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Starts `fn(*args, **kwargs)` and gives its Future; the ambient deadline holds, a new retry tree begins."""
        with self._lock:
            if self._pool.is_closed:
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
        self._pool.close(wait, cancel_futures)

    def __repr__(self) -> str:
        return f"<ProcessWorkers {self.name!r}: {len(self._pool.held)} processes, {len(self._pool.idle)} idle>"


_all_sets: weakref.WeakSet[ProcessWorkers] = weakref.WeakSet()


def _after_fork() -> None:
    for workers in living(_all_sets):
        workers._pool.forget()
        workers._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
