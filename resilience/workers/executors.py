"""A fan-out's items on somebody else's `concurrent.futures.Executor`, also where that breaks in the middle.

Each worker of the fan-out hands its item over and waits for the outcome, so that the gate, the deadline and the retries
are the same wherever the items run. Only `submit`, the futures and `shutdown` are used.
"""

from __future__ import annotations

import threading
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor

from ..core.ambient import context_for_a_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .fan_out import Job


class Remote:
    """Called with an item, runs it on the executor, and gives its value or raises its error.

    An executor that breaks makes the fan-out fall back and is replaced: by the factory where one was given, a pool of
    processes by one with a single process (an item that broke one must never run in this process); other executors are
    left, and the items run on the fan-out's own threads.
    """

    def __init__(self, fn: Callable[[Any], Any], given: Executor | Callable[[], Executor]) -> None:
        self._fn = fn
        self.job: Job | None = None  # the fan-out, once it is made
        self._lock = threading.Lock()
        self._make: Callable[[], Executor] | None = given if not isinstance(given, Executor) else None
        self._executor: Executor | None = given if isinstance(given, Executor) else given()
        self._is_ours = self._make is not None
        self._flying: set[Future[Any]] = set()
        self.workers = getattr(self._executor, "_max_workers", None)
        self._warm(self._executor)

    @staticmethod
    def _warm(executor: Executor | None) -> None:
        """Lets a pool that forks do so now, before this fan-out has threads."""
        from concurrent.futures import process

        if isinstance(executor, process.ProcessPoolExecutor):
            try:
                executor.submit(int).result()
            except (BrokenExecutor, RuntimeError):  # the first item finds out, and replaces it
                pass

    def __call__(self, item: Any) -> Any:
        executor = self._executor
        for _ in range(3):
            if executor is None:
                return self._fn(item)
            try:
                future = self._submit(executor, item)
            except (BrokenExecutor, RuntimeError) as error:  # broken or shut down: this item did not run
                executor = self._replace(executor, error)
                continue
            self._flying.add(future)
            try:
                return future.result()
            except CancelledError:
                if self.job is not None and self.job.gate.closed:
                    raise
                executor = self._replace(executor, RuntimeError("its futures were cancelled"))
            except BrokenExecutor as error:
                self._replace(executor, error)
                raise
            finally:
                self._flying.discard(future)
        raise RuntimeError(f"{executor!r} takes no work, three times in a row")

    def _submit(self, executor: Executor, item: Any) -> Future[Any]:
        if isinstance(executor, ThreadPoolExecutor):
            return _Turn(self._fn, item).taken_by(executor)
        return executor.submit(self._fn, item)

    def _replace(self, broken: Executor, error: BaseException) -> Executor | None:
        """Gives what to use instead of `broken`; who comes first makes it."""
        with self._lock:
            if self._executor is not broken:
                return self._executor
            made = self._successor(broken, error)
            if self._is_ours:
                broken.shutdown(wait=False)
            self._executor = made
            self._is_ours = True
        if self.job is not None and not self.job.gate.is_sequential:
            self.job.gate.fall(f"the executor broke ({type(error).__name__})")
        return made

    def _successor(self, broken: Executor, error: BaseException) -> Executor | None:
        from concurrent.futures import process

        if self._make is not None:
            return self._make()
        if isinstance(broken, process.ProcessPoolExecutor) or isinstance(error, process.BrokenProcessPool):
            return process.ProcessPoolExecutor(
                1,
                mp_context=getattr(broken, "_mp_context", None),
                initializer=getattr(broken, "_initializer", None),
                initargs=getattr(broken, "_initargs", ()),
            )
        return None

    def close(self, in_time: bool) -> None:
        """Drops what did not start; an executor of our own is shut down, and awaited when all its work is done."""
        for future in list(self._flying):
            future.cancel()
        if self._is_ours and self._executor is not None:
            processes = list((getattr(self._executor, "_processes", None) or {}).values())
            self._executor.shutdown(wait=in_time)
            if not in_time and self._make is None:
                for process in processes:  # they would hold up the interpreter's exit
                    process.kill()


class _Turn:
    """One item's turn on a pool of threads: taken once, whatever the pool does with it.

    `ThreadPoolExecutor.submit` raises when it can start no thread, with the work already in its queue.
    """

    __slots__ = ("context", "fn", "future", "item")

    def __init__(self, fn: Callable[[Any], Any], item: Any) -> None:
        self.fn = fn
        self.item = item
        self.future: Future[Any] = Future()
        self.context = context_for_a_thread()

    def taken_by(self, pool: ThreadPoolExecutor) -> Future[Any]:
        """Submits it; where that fails though the pool has begun it all the same, its future counts."""
        try:
            pool.submit(self).add_done_callback(self._dropped)
        except RuntimeError:
            if self.future.cancel():
                raise
        return self.future

    def _dropped(self, outer: Future[Any]) -> None:
        if outer.cancelled():
            self.future.cancel()
        elif not self.future.done():  # the pool broke before its turn
            error = outer.exception()
            if error is not None:
                self.future.set_exception(error)

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            value = self.context.run(self.fn, self.item)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)
