"""One running operation: its deadline, its cancellation, and the wait that both of them end.

The innermost one lives in a ContextVar. A nested deadline can only shorten what is left.
"""

from __future__ import annotations

import itertools
import os
import threading
from contextvars import ContextVar

from . import lifecycle
from .clock import SYSTEM
from .errors import DeadlineExceeded, OperationCancelled, ShutdownInProgress, require_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from .clock import Clock

_ids = itertools.count(1)
_cancelling = threading.Lock()  # guards the callbacks of all contexts: held for a dict operation


class OperationContext:
    """One running operation: its name, its deadline and its cancellation.

    `deadline` is a point in time of `clock.monotonic()`, or None. All methods are safe to call from any thread.
    """

    __slots__ = (
        "_callbacks",
        "_id",
        "_token",
        "attempt",
        "cancelled",
        "clock",
        "deadline",
        "is_attempt",
        "operation",
        "parent",
        "reason",
        "started",
        "timeout",
        "worker",
    )

    def __init__(
        self,
        operation: str = "",
        timeout: float | None = None,
        *,
        operation_id: str | None = None,
        clock: Clock | None = None,
        parent: OperationContext | None = None,
        is_attempt: bool = False,
        started: float | None = None,
    ) -> None:
        self.clock: Clock = clock or (parent.clock if parent is not None else SYSTEM)
        self.operation = operation
        self._id = operation_id
        self.is_attempt = is_attempt  # its timeout is the operation's own: it blames the dependency
        self.parent = parent
        self.attempt: int = parent.attempt if parent is not None else 1
        self.timeout = timeout
        self.started = self.clock.monotonic() if started is None else started
        self.deadline = None if timeout is None else self.started + timeout
        if parent is not None and parent.deadline is not None and parent.clock is self.clock:
            self.deadline = parent.deadline if self.deadline is None else min(self.deadline, parent.deadline)
        self.cancelled = False
        self.reason = ""
        self.worker: int | None = None  # the thread that runs its attempt, where that is another one
        self._callbacks: dict[object, Callable[[], object]] | None = None

    @property
    def operation_id(self) -> str:
        """The id that was given, or one of its own."""
        if self._id is None:
            self._id = f"{self.operation or 'call'}-{next(_ids)}"
        return self._id

    @property
    def given_id(self) -> str | None:
        """The id that was given or made up, None as long as nobody has asked for one."""
        return self._id

    def remaining(self) -> float | None:
        """Seconds left until the nearest deadline (0.0 when it has passed), None without one."""
        left = None if self.deadline is None else max(0.0, self.deadline - self.clock.monotonic())
        if self.parent is not None and self.parent.clock is not self.clock:
            outer = self.parent.remaining()
            left = outer if left is None or (outer is not None and outer < left) else left
        return left

    @property
    def is_own_deadline(self) -> bool:
        """Whether the nearest deadline is the one this context brought, not one of its surroundings."""
        return self.timeout is not None and self.deadline == self.started + self.timeout

    def cancel(self, reason: str = "") -> None:
        """Ends every wait of this operation and those inside it with `OperationCancelled`; the first reason stays."""
        with _cancelling:
            if self.cancelled:
                return
            self.cancelled = True
            self.reason = reason
            told = list((self._callbacks or {}).values())
            self._callbacks = None
        for callback in told:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Calls `callback` once when this operation or one around it is cancelled; returns what detaches it.

        It runs in the thread that cancels, at once when that has already happened; it must not raise or block.
        """
        key = object()
        with _cancelling:
            late = self.cancelled
            if not late:
                if self._callbacks is None:
                    self._callbacks = {}
                self._callbacks[key] = callback
        if late:
            callback()
            return _nothing
        outer = self.parent.on_cancel(callback) if self.parent is not None else _nothing

        def detach() -> None:
            outer()
            with _cancelling:
                if self._callbacks is not None:
                    self._callbacks.pop(key, None)

        return detach

    def checkpoint(self) -> None:
        """Raises `OperationCancelled` when cancelled, `DeadlineExceeded` when no time is left, else nothing."""
        context: OperationContext | None = self
        while context is not None:
            if context.cancelled:
                raise OperationCancelled(name=context.operation, reason=context.reason)
            context = context.parent
        if self.remaining() == 0.0:
            raise self.deadline_error("running")

    def _deadline_owner(self) -> OperationContext:
        owner: OperationContext = self
        while not owner.is_own_deadline and owner.parent is not None:
            owner = owner.parent
        return owner

    @property
    def blames_dependency(self) -> bool:
        """Whether the deadline that comes first is an operation's own timeout, rather than the caller's."""
        return self._deadline_owner().is_attempt

    def deadline_error(self, phase: str) -> DeadlineExceeded:
        """The error that says this context's deadline has passed while `phase`."""
        owner = self._deadline_owner()
        return DeadlineExceeded(
            name=owner.operation or self.operation,
            timeout=owner.timeout,
            elapsed=owner.clock.monotonic() - owner.started,
            phase=phase,
            ambient=not owner.is_attempt,
        )

    def sleep(self, seconds: float) -> None:
        """Sleeps `seconds`; raises `DeadlineExceeded` at the deadline, `OperationCancelled` on cancel.

        A shutdown raises `ShutdownInProgress`. A sleep of 0 does not wait.
        """
        pause(seconds, self, self.clock)

    def __enter__(self) -> OperationContext:
        outside = innermost.get()
        try:
            self._token = innermost.set(self)
        except BaseException:  # a Ctrl-C on the way in
            innermost.set(outside)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        innermost.reset(self._token)

    def __reduce__(self) -> tuple[Any, ...]:
        from .carried import carried, restored

        return restored, (carried(self),)

    def __repr__(self) -> str:
        return f"OperationContext({self.operation!r}, id={self.operation_id!r}, remaining={self.remaining()!r})"


def _nothing() -> None:
    pass


DEADLINE_VARIABLE = "RESILIENCE_DEADLINE"  # seconds left when the process was started
ATTEMPT_VARIABLE = "RESILIENCE_ATTEMPT"  # which attempt of its caller the process is


def _inherited() -> OperationContext | None:
    """The deadline this process was started under; what is no number of seconds is ignored."""
    try:
        seconds = float(os.environ[DEADLINE_VARIABLE])
    except (KeyError, ValueError):
        return None
    if not seconds < float("inf"):
        return None
    context = OperationContext("", max(0.0, seconds))
    attempt = os.environ.get(ATTEMPT_VARIABLE, "")
    context.attempt = int(attempt) if attempt.isdecimal() else 1
    return context


# A context, or an entry of the express lane: a tuple that becomes a context when somebody looks (see `core.entries`).
_outermost = _inherited()
innermost: ContextVar[OperationContext | tuple[Any, ...] | None] = ContextVar("resilience_current", default=_outermost)


def pause(seconds: float, context: OperationContext | None, clock: Clock | None = None) -> None:
    """Sleeps on `clock` within `context`, with the errors of `sleep()`: the one wait that all of ours go through."""
    require_seconds("seconds", seconds)
    clock = clock or (context.clock if context is not None else SYSTEM)
    if lifecycle.stopping():
        raise ShutdownInProgress()
    left = None
    if context is not None:
        context.checkpoint()
        left = context.remaining()
    if seconds == 0:
        return
    short = left is not None and left < seconds
    wake = threading.Event()
    detach = context.on_cancel(wake.set) if context is not None else _nothing
    forget = lifecycle.on_shutdown(wake.set)
    try:
        woken = clock.sleep(left if short and left is not None else seconds, wake)
    finally:
        forget()
        detach()
    if woken and lifecycle.stopping():
        raise ShutdownInProgress()
    if context is not None:
        if woken:
            context.checkpoint()
        elif short:
            raise context.deadline_error("waiting")


def _after_fork() -> None:
    global _cancelling  # a lock that another thread of the parent held is nobody's in the child
    _cancelling = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
