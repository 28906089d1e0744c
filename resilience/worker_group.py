"""Supervised periodic workers: one thread each, slower while they fail, restarted within limits, their health known."""

from __future__ import annotations

import threading

from .core import lifecycle
from .core.clock import SYSTEM
from .core.context import OperationContext
from .core.errors import ConfigError, ShutdownInProgress, require, require_count, require_seconds
from .core.history import error_text
from .core.logs import logger
from .rules import supervision
from .rules.supervision import RUNNING, STOPPED, Supervision, WorkerState
from .workers.ledger import LEDGER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .core.clock import Clock
    from .manager import ErrorRecoveryManager
    from .resources.handles import Owned
    from .workers.ledger import Living

POLL = 0.002  # real seconds between two looks at a clock that is not the system's
SLOWEST = 8  # times the interval, where no `max_interval` is given


class _Worker:
    """One worker: what it runs, how it is supervised, and what has become of it."""

    def __init__(self, name: str, fn: Callable[[], object], rules: Supervision, operation: str | None) -> None:
        self.name = name
        self.fn = fn
        self.rules = rules
        self.operation = operation
        self.state = WorkerState("new", rules.interval)
        self.thread: threading.Thread | None = None
        self.context: OperationContext | None = None  # of the run that is under way
        self.ordered_off = False
        self.runs = self.failures = 0
        self.last_error: str | None = None
        self.last_success: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def is_running(self) -> bool:
        """Whether it works as it should: neither stopped nor given up."""
        return self.state.mode == RUNNING and self.is_alive and not self.ordered_off

    def as_dict(self) -> dict[str, Any]:
        """What is known of it, as plain data."""
        return {
            "is_running": self.is_running,
            "state": "cancelled" if self.ordered_off else self.state.mode,
            "error_count": self.state.errors,
            "interval": self.state.interval,
            "runs": self.runs,
            "failures": self.failures,
            "restarts": len(self.state.restarts),
            "last_error": self.last_error,
            "last_success": self.last_success,
        }


class WorkerGroup:
    """Runs functions periodically, each on a thread of its own and never twice at once. Safe to use from any thread.

    Started by `start()` or `with`, ended by `stop()`, by the manager's `close()` and by a shutdown of the process, each
    of which wakes every wait. Health goes to `manager.monitor`, errors to `manager.errors`, `worker_started` and
    `worker_lost` to `manager.events`; without a manager it has one of its own.
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
        self._changed = threading.Condition()
        self._workers: dict[str, _Worker] = {}
        self._started = False
        self._stopping = False
        self._owned: Owned | None = None
        self._forget: Callable[[], None] | None = None

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
        worker = _Worker(name, fn, rules, operation)
        with self._changed:
            self._refuse_if_stopped_held(name)
            if name in self._workers:
                raise ConfigError(f"worker {name!r} is in this group already", key="name", value=name)
            self._workers[name] = worker
        self._record(worker)
        if self._started:
            self._launch(worker)

    def start(self) -> WorkerGroup:
        """Starts every worker; idempotent."""
        with self._changed:
            if self._started or self._stopping:
                return self
            self._started = True
            workers = list(self._workers.values())
        self._owned = self._manager.resources.own("custom", f"worker group {self.name}", self.stop)
        self._forget = lifecycle.on_shutdown(self._order_off)
        for worker in workers:
            self._launch(worker)
        return self

    def stop(self, timeout: float = 5.0) -> list[str]:
        """Ends every worker and waits up to `timeout` real seconds; gives the names of those that still run.

        A run that is under way is cancelled: its waits of ours end at once.
        """
        require_seconds("timeout", timeout)
        self._order_off()
        end = SYSTEM.monotonic() + timeout
        for worker in self._workers.values():
            if worker.thread is not None and worker.thread is not threading.current_thread():
                worker.thread.join(max(0.0, end - SYSTEM.monotonic()))
            self._record(worker)
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
        with self._changed:
            worker.ordered_off = True
            context = worker.context
            self._changed.notify_all()
        if context is not None:
            context.cancel(f"worker {name!r} was cancelled")
        self._record(worker)

    def restart(self, name: str) -> bool:
        """Starts a worker that was stopped, given up or cancelled, with nothing counted against it.

        False when it runs, or when its last run has not ended: there is never a second instance.
        """
        worker = self._worker(name)
        with self._changed:
            self._refuse_if_stopped_held(name)
            if worker.is_alive and (worker.ordered_off or worker.state.mode != STOPPED):
                return False
            worker.ordered_off = False
            worker.state = supervision.begin(worker.rules, self._clock.monotonic())
            self._changed.notify_all()
            waits = worker.is_alive  # for its restart: it goes on now
        if waits:
            self._tell_started(worker)
        else:
            self._launch(worker)
        return True

    def is_healthy(self, min_ratio: float = 0.5) -> bool:
        """Whether at least `min_ratio` of the workers run; without workers it is not healthy (specification)."""
        require(0 <= min_ratio <= 1, "min_ratio", min_ratio, "expected a share between 0 and 1")
        running = [worker.is_running for worker in list(self._workers.values())]
        return bool(running) and sum(running) / len(running) >= min_ratio

    def status(self) -> dict[str, dict[str, Any]]:
        """Every worker by name: is_running, state, error_count (in a row), interval, runs, failures, restarts, ..."""
        with self._changed:
            return {name: worker.as_dict() for name, worker in sorted(self._workers.items())}

    def __enter__(self) -> WorkerGroup:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        running = sum(worker.is_running for worker in list(self._workers.values()))
        return f"<WorkerGroup {self.name!r}: {running} of {len(self._workers)} run>"

    # -- the workers' side -----------------------------------------------------------------------------------------

    def _worker(self, name: str) -> _Worker:
        try:
            return self._workers[name]
        except KeyError:
            known = sorted(self._workers)
            raise ConfigError(f"no such worker; there are {known}", key="name", value=name) from None

    def _refuse_if_stopped_held(self, name: str) -> None:
        if self._stopping:
            raise ShutdownInProgress(f"worker group {self.name!r} was stopped, {name!r} was not started")

    def _order_off(self) -> None:
        """Lets every worker end, without waiting for it."""
        with self._changed:
            self._stopping = True
            contexts = [worker.context for worker in self._workers.values() if worker.context is not None]
            for worker in self._workers.values():
                worker.ordered_off = True
            self._changed.notify_all()
        for context in contexts:
            context.cancel("the worker group was stopped")

    def _launch(self, worker: _Worker) -> None:
        owned = self._manager.resources.own("thread", f"worker {worker.name}")
        entry = LEDGER.enter("thread", f"worker {worker.name}", owned=owned)
        thread = threading.Thread(target=self._live, args=(worker, entry), name=f"worker-{worker.name}", daemon=True)
        with self._changed:
            worker.state = supervision.begin(worker.rules, self._clock.monotonic())
            worker.thread = thread
        try:
            thread.start()
        except RuntimeError:
            LEDGER.leave(entry)
            raise
        self._tell_started(worker)

    def _tell_started(self, worker: _Worker) -> None:
        self._record(worker)
        self._manager.events.emit("worker_started", worker.name, group=self.name, restarts=len(worker.state.restarts))

    def _live(self, worker: _Worker, entry: Living) -> None:
        try:
            while self._await_turn(worker):
                if worker.state.mode == STOPPED:
                    with self._changed:
                        worker.state = supervision.restarted(worker.state, worker.rules, self._clock.monotonic())
                    self._tell_started(worker)
                self._run_once(worker)
                if worker.state.next_run is None:
                    return
        finally:
            LEDGER.leave(entry)

    def _await_turn(self, worker: _Worker) -> bool:
        """Waits until the worker's next run; False when it is to end."""
        with self._changed:
            while not worker.ordered_off and worker.state.next_run is not None:
                left = worker.state.next_run - self._clock.monotonic()
                if left <= 0:
                    return True
                SYSTEM.wait(self._changed, left if self._clock is SYSTEM else POLL)
            return False

    def _run_once(self, worker: _Worker) -> None:
        began = self._clock.monotonic()
        error: BaseException | None = None
        with self._changed:
            if worker.ordered_off:
                return
            context = worker.context = OperationContext(worker.name, clock=self._clock)
        try:
            with context:
                if worker.operation is None:
                    worker.fn()
                else:
                    self._manager.operation(worker.operation).call(worker.fn)
        except BaseException as raised:  # a crash of the worker is not one of the program
            error = raised
        now = self._clock.monotonic()
        with self._changed:
            worker.context = None
            worker.runs += 1
            if worker.ordered_off and error is not None:
                return
            self._judge_held(worker, error, began, now)
        self._count(worker, error, now - began)
        self._record(worker)
        if worker.state.mode != RUNNING:
            self._tell_lost(worker, error, now)

    def _judge_held(self, worker: _Worker, error: BaseException | None, began: float, now: float) -> None:
        rules = worker.rules
        if error is None:
            worker.last_success = self._clock.time()
            worker.state = supervision.succeeded(worker.state, rules, began, now)
            return
        worker.failures += 1
        worker.last_error = error_text(error)
        if isinstance(error, Exception):
            worker.state = supervision.failed(worker.state, rules, began, now)
        else:
            worker.state = supervision.lost(worker.state, rules, now)

    def _count(self, worker: _Worker, error: BaseException | None, duration: float) -> None:
        """Counts a run that is no call of an operation under the worker's own name."""
        if worker.operation is None:
            if error is not None:
                self._manager.errors.add(error, operation=worker.name)
            self._manager.monitor.record_operation(worker.name, max(0.0, duration), success=error is None)

    def _record(self, worker: _Worker) -> None:
        self._manager.monitor.record_worker_health(worker.name, worker.is_running, worker.state.errors)

    def _tell_lost(self, worker: _Worker, error: BaseException | None, now: float) -> None:
        state = worker.state
        again = None if state.next_run is None else max(0.0, state.next_run - now)
        crashed = error is not None and not isinstance(error, Exception)
        reason = "it crashed" if crashed else f"{state.errors} failures in a row"
        text = error_text(error) if error is not None else None
        self._manager.events.emit(
            "worker_lost", worker.name, group=self.name, reason=reason, error=text, restart_in=again
        )
        _log().warning(
            "worker %r stopped after %s (last error: %s); %s", worker.name, reason, text,
            "it stays stopped" if again is None else f"it starts again in {again:g} s",
        )  # fmt: skip


def _log() -> Any:
    return logger("workers")
