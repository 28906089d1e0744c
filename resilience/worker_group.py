"""Supervised periodic workers: one thread each, slower while they fail, restarted within limits, their health known."""

from __future__ import annotations

import functools
import threading

from .core import lifecycle
from .core.clock import SYSTEM
from .core.errors import ConfigError, ShutdownInProgress, require, require_count, require_seconds
from .core.forks import afresh_in_children
from .rules.supervision import Supervision
from .supervised_worker import NEW, SupervisedWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .core.clock import Clock
    from .manager import ErrorRecoveryManager
    from .resources.handles import Owned

SLOWEST = 8  # times the interval, where no `max_interval` is given


class WorkerGroup:
    """Runs functions periodically, each on a thread of its own and never twice at once. Safe to use from any thread.

    Started by `start()` or `with`, ended by `stop()`, by the manager's `close()` and by a shutdown of the process, each
    of which wakes every wait; in a forked child it is not started. Health goes to `manager.monitor`, errors to
    `manager.errors`, `worker_started` and `worker_lost` to `manager.events`; without a manager it has one of its own.
    """

    def __init__(
        self, manager: ErrorRecoveryManager | None = None, *, name: str = "workers", clock: Clock | None = None
    ) -> None:
        self._own_manager = manager is None
        if manager is None:
            from .manager import ErrorRecoveryManager

            manager = ErrorRecoveryManager(clock=clock)
        self.name = name
        self._manager = manager
        self._clock = clock or manager.watch.clock
        self._workers: dict[str, SupervisedWorker] = {}
        self._stopping = False
        self.fresh_locks()
        afresh_in_children(self)

    def fresh_locks(self) -> None:
        """Starts with no worker that runs: in a forked child, where none of the threads lives."""
        self._lock = threading.RLock()  # a Ctrl-C inside of `Condition.__enter__` would leave it taken
        self._changed = threading.Condition(self._lock)
        self._started = False
        self._owned: Owned | None = None
        self._forget: Callable[[], None] | None = None
        for worker in self._workers.values():
            worker.fresh(self._changed)

    def add(
        self,
        name: str,
        fn: Callable[[], object],
        interval: float,
        *,
        operation: str | None = None,
        max_errors: int = 10,
        slow_after: int = 3,
        max_interval: float | None = None,
        restart_after: float | None = 60.0,
        max_restarts: int = 3,
        restart_window: float = 3600.0,
    ) -> None:
        """Adds a worker that calls `fn()` every `interval` seconds, at once for the first time.

        After `slow_after` failures in a row, and each further so many, the interval is doubled up to `max_interval`
        (8 intervals by default); a success restores it. After `max_errors` failures in a row, or a crash, it is stopped
        and starts again after `restart_after` seconds (None: not by itself), at most `max_restarts` times within
        `restart_window` seconds. With `operation` each run is a call of that operation of the manager. Raises
        `ConfigError` for a name that is taken, `ShutdownInProgress` after `stop()`.
        """
        require(callable(fn), "fn", fn, "expected a function without parameters")
        for key, seconds in (("interval", interval), ("restart_window", restart_window)):
            require_seconds(key, seconds, positive=True)
        require_seconds("max_interval", max_interval, positive=True, optional=True)
        require_seconds("restart_after", restart_after, optional=True)
        require_count("max_errors", max_errors)
        require_count("slow_after", slow_after)
        require_count("max_restarts", max_restarts, minimum=0)
        longest = SLOWEST * interval if max_interval is None else max(interval, max_interval)
        rules = Supervision(interval, longest, slow_after, max_errors, restart_after, max_restarts, restart_window)
        worker = SupervisedWorker(
            name, fn, rules, operation, group=self.name, manager=self._manager, clock=self._clock, changed=self._changed
        )
        with self._lock:
            self._refuse_if_stopped_held(name)
            if name in self._workers:
                raise ConfigError(f"worker {name!r} is in this group already", key="name", value=name)
            self._workers[name] = worker
        worker.record()
        self._launch(worker, lambda: self._started and _is_new(worker))

    def start(self) -> WorkerGroup:
        """Starts every worker; idempotent. Where one cannot be, those before it run; a second call starts the rest."""
        is_first = False
        try:
            with self._lock:
                if self._started or self._stopping:
                    return self
                self._started = is_first = True
            self._start()
        except BaseException:
            if is_first:
                self._started = False
            raise
        return self

    def _start(self) -> None:
        if self._owned is None:
            self._owned = self._manager.resources.own("custom", f"worker group {self.name}", self.stop)
            self._forget = lifecycle.on_shutdown(self._order_off)
        for worker in list(self._workers.values()):
            self._launch(worker, functools.partial(_is_new, worker))  # else somebody was faster

    def stop(self, timeout: float = 5.0) -> list[str]:
        """Ends every worker and waits up to `timeout` real seconds; gives the names of those that still run.

        A run that is under way is cancelled: its waits of ours end at once.
        """
        require_seconds("timeout", timeout)
        self._order_off()
        end = SYSTEM.monotonic() + timeout
        for worker in self._workers.values():
            thread = worker.thread
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - SYSTEM.monotonic()))
            worker.record()
        if self._forget is not None:
            self._forget()
        if self._owned is not None:
            self._owned()
        if self._own_manager:
            self._manager.close(grace=0.0)
        return [name for name, worker in self._workers.items() if worker.is_alive]

    def cancel(self, name: str) -> None:
        """Ends one worker; `restart` brings it back."""
        worker = self._worker(name)
        with self._lock:
            worker.ordered_off = True
            context = worker.context
            self._changed.notify_all()
        if context is not None:
            context.cancel(f"worker {name!r} was cancelled")
        worker.record()

    def restart(self, name: str) -> bool:
        """Starts a worker that was stopped, given up or cancelled, with nothing counted against it.

        False when it runs, or when its last run has not ended: there is never a second instance.
        """
        worker = self._worker(name)

        def may() -> bool:
            self._refuse_if_stopped_held(name)
            if worker.is_busy:
                return False
            worker.ordered_off = False
            return True

        return self._launch(worker, may)

    def is_healthy(self, min_ratio: float = 0.5) -> bool:
        """Whether at least `min_ratio` of the workers run; without workers it is not healthy (specification)."""
        require(0 <= min_ratio <= 1, "min_ratio", min_ratio, "expected a share between 0 and 1")
        running = [worker.is_running for worker in list(self._workers.values())]
        return bool(running) and sum(running) / len(running) >= min_ratio

    def status(self) -> dict[str, dict[str, Any]]:
        """Every worker by name: is_running, state, error_count (in a row), interval, runs, failures, restarts, ..."""
        with self._lock:
            return {name: worker.as_dict() for name, worker in sorted(self._workers.items())}

    def __enter__(self) -> WorkerGroup:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        running = sum(worker.is_running for worker in list(self._workers.values()))
        return f"<WorkerGroup {self.name!r}: {running} of {len(self._workers)} run>"

    def _worker(self, name: str) -> SupervisedWorker:
        try:
            return self._workers[name]
        except KeyError:
            known = sorted(self._workers)
            raise ConfigError(f"no such worker; there are {known}", key="name", value=name) from None

    def _launch(self, worker: SupervisedWorker, may: Callable[[], bool]) -> bool:
        """Starts a worker if it `may()`, asked under the lock; whether it did. A Ctrl-C leaves it to the next one."""
        life = None
        try:
            with self._lock:
                if not may():
                    return False
                life = worker.begin_held()
            if life is None:  # it waits for its restart, or is just about to end: it goes on
                worker.tell_started()
            else:
                worker.launch(life)
        except BaseException:
            if life is not None:
                worker.forget(life)
            raise
        return True

    def _refuse_if_stopped_held(self, name: str) -> None:
        if self._stopping:
            raise ShutdownInProgress(f"worker group {self.name!r} was stopped, {name!r} was not started")

    def _order_off(self) -> None:
        """Lets every worker end, without waiting for it."""
        with self._lock:
            self._stopping = True
            contexts = [worker.context for worker in self._workers.values() if worker.context is not None]
            for worker in self._workers.values():
                worker.ordered_off = True
            self._changed.notify_all()
        for context in contexts:
            context.cancel("the worker group was stopped")


def _is_new(worker: SupervisedWorker) -> bool:
    return worker.state.mode == NEW and not worker.ordered_off
