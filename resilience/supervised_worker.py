"""One supervised periodic worker: its thread, its turns, and what has become of it."""

from __future__ import annotations

import threading

from .core.clock import SYSTEM
from .core.context import OperationContext
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
    from .workers.ledger import Living

NEW = "new"  # the state of a worker that was not started yet
POLL = 0.002  # real seconds between two looks at a clock that is not the system's


class SupervisedWorker:
    """One worker: what it runs, how it is supervised, and what has become of it."""

    def __init__(
        self,
        name: str,
        fn: Callable[[], object],
        rules: Supervision,
        operation: str | None,
        *,
        group: str,
        manager: ErrorRecoveryManager,
        clock: Clock,
        changed: threading.Condition,
    ) -> None:
        self.name = name
        self.fn = fn
        self.rules = rules
        self.operation = operation
        self.ordered_off = False
        self.runs = self.failures = 0
        self.last_error: str | None = None
        self.last_success: float | None = None
        self._group = group
        self._manager = manager
        self._clock = clock
        self.fresh(changed)

    def fresh(self, changed: threading.Condition) -> None:
        """Without a thread, as if never started; `changed` is the group's, held for each change of a state."""
        self._changed = changed  # told of each change
        self._life: object | None = None  # what its thread, running or about to, was started for; None: it has none
        self._begun: object | None = None  # the last of them whose thread has begun
        self.state = WorkerState(NEW, self.rules.interval)
        self.thread: threading.Thread | None = None
        self.context: OperationContext | None = None  # of the run that is under way

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def is_running(self) -> bool:
        """Whether it works as it should: neither stopped nor given up."""
        return self.state.mode == RUNNING and self._life is not None and not self.ordered_off

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

    @property
    def is_busy(self) -> bool:
        """Whether it runs or waits for its next run, or its last run has not ended."""
        waits = self._life is not None and self.state.mode == RUNNING and not self.ordered_off
        return waits or self.context is not None

    def begin_held(self) -> object | None:
        """It is to run now, with nothing counted against it; gives what to `launch` it for, None if its thread goes on.

        Who holds the lock: there is never a second instance.
        """
        life = object()
        state = supervision.begin(self.rules, self._clock.monotonic())
        self._changed.notify_all()
        self.state = state  # from here on nothing is called: a Ctrl-C comes before it or after it
        if self._life is not None:
            return None
        self._life = life
        return life

    def launch(self, life: object) -> None:
        """Starts its thread."""
        owned = self._manager.resources.own("thread", f"worker {self.name}")
        entry = LEDGER.enter("thread", f"worker {self.name}", owned=owned)
        try:
            self.thread = threading.Thread(
                target=self._live, args=(life, entry), name=f"worker-{self.name}", daemon=True
            )
            self.thread.start()
        except BaseException:
            LEDGER.leave(entry)
            raise
        self.tell_started()

    def forget(self, life: object) -> None:
        """Its thread could not be started, unless it has begun all the same."""
        with self._changed:
            if self._life is life and self._begun is not life:
                self._life, self.state = None, WorkerState(NEW, self.rules.interval)

    def tell_started(self) -> None:
        """Tells the monitor and the listeners that it runs."""
        self.record()
        self._manager.events.emit("worker_started", self.name, group=self._group, restarts=len(self.state.restarts))

    def record(self) -> None:
        """Tells the monitor whether it works."""
        self._manager.monitor.record_worker_health(self.name, self.is_running, self.state.errors)

    def _live(self, life: object, entry: Living) -> None:
        try:
            while (context := self._await_turn(life)) is not None:
                self._run_once(context)
        finally:
            with self._changed:
                if self._life is life:
                    self._life = self.context = None
            LEDGER.leave(entry)

    def _await_turn(self, life: object) -> OperationContext | None:
        """Waits until the worker's next run; None when the thread is to end, which nobody can restart from then on."""
        with self._changed:
            self._begun = life
            while self._life is life and not self.ordered_off and self.state.next_run is not None:
                left = self.state.next_run - self._clock.monotonic()
                if left <= 0:
                    break
                SYSTEM.wait(self._changed, left if self._clock is SYSTEM else POLL)
            else:
                self._life = None if self._life is life else self._life
                return None
            context = self.context = OperationContext(self.name, clock=self._clock)
            restarts = self.state.mode == STOPPED
            if restarts:
                self.state = supervision.restarted(self.state, self.rules, self._clock.monotonic())
        if restarts:
            self.tell_started()
        return context

    def _run_once(self, context: OperationContext) -> None:
        began = self._clock.monotonic()
        error: BaseException | None = None
        try:
            with context:
                if self.operation is None:
                    self.fn()
                else:
                    self._manager.operation(self.operation).call(self.fn)
        except BaseException as raised:  # a crash of the worker is not one of the program
            error = raised
        now = self._clock.monotonic()
        with self._changed:
            self.context = None
            self.runs += 1
            if self.ordered_off and error is not None:
                return
            self._judge_held(error, began, now)
            state = self.state
        self._count(error, now - began)
        self.record()
        if state.mode != RUNNING:
            self._tell_lost(state, error, now)

    def _judge_held(self, error: BaseException | None, began: float, now: float) -> None:
        rules = self.rules
        if error is None:
            self.last_success = self._clock.time()
            self.state = supervision.succeeded(self.state, rules, began, now)
            return
        self.failures += 1
        self.last_error = error_text(error)
        if isinstance(error, Exception):
            self.state = supervision.failed(self.state, rules, began, now)
        else:
            self.state = supervision.lost(self.state, rules, now)

    def _count(self, error: BaseException | None, duration: float) -> None:
        """Counts a run that is no call of an operation under the worker's own name."""
        if self.operation is None:
            if error is not None:
                self._manager.errors.add(error, operation=self.name)
            self._manager.monitor.record_operation(self.name, max(0.0, duration), success=error is None)

    def _tell_lost(self, state: WorkerState, error: BaseException | None, now: float) -> None:
        again = None if state.next_run is None else max(0.0, state.next_run - now)
        crashed = error is not None and not isinstance(error, Exception)
        reason = "it crashed" if crashed else f"{state.errors} failures in a row"
        text = error_text(error) if error is not None else None
        self._manager.events.emit(
            "worker_lost", self.name, group=self._group, reason=reason, error=text, restart_in=again
        )
        _log().warning(
            "worker %r stopped after %s (last error: %s); %s", self.name, reason, text,
            "it stays stopped" if again is None else f"it starts again in {again:g} s",
        )  # fmt: skip


def _log() -> Any:
    return logger("workers")
