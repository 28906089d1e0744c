"""The operation one is inside of: its deadline, its cancellation, and what travels with it to another thread.

The current context lives in a ContextVar. A nested deadline can only shorten what is left.
"""

from __future__ import annotations

import itertools
import os
import threading
from contextvars import ContextVar, copy_context

from . import lifecycle
from .clock import SYSTEM
from .errors import DeadlineExceeded, OperationCancelled, ShutdownInProgress, require_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context, Token
    from types import TracebackType
    from typing import Any, Protocol

    from .clock import Clock

    class AttemptGate(Protocol):
        """What a fan-out puts around each attempt of its items."""

        def enter(self) -> object:
            """Blocks until one more attempt may run."""

        def leave(self, failed: bool) -> object:
            """Says that the attempt has ended."""


# Set where a call hops to another thread: the retry that owns the attempts of this call tree (see strategies.nesting).
retry_owner: ContextVar[object | None] = ContextVar("resilience_retry_owner", default=None)

# Set by a fan-out for its items: every attempt passes it.
attempt_gate: ContextVar[AttemptGate | None] = ContextVar("resilience_attempt_gate", default=None)

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
        outside = _current.get()
        try:
            self._token = _current.set(self)
        except BaseException:  # a Ctrl-C on the way in
            _current.set(outside)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)

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


# A context, or an entry of the express lane: a tuple that becomes a context when somebody looks (see `entered`).
_outermost = _inherited()
_current: ContextVar[OperationContext | tuple[Any, ...] | None] = ContextVar("resilience_current", default=_outermost)

# The entries around the last one that was looked at, innermost first, with their contexts: after the call inside,
# `_current` is such an entry again, and whoever has its context may have cancelled it.
_made: ContextVar[tuple[tuple[tuple[Any, ...], OperationContext], ...]] = ContextVar("resilience_made", default=())


def deadline(seconds: float | None, *, clock: Clock | None = None) -> OperationContext:
    """Bounds everything in the `with` block to `seconds` in total; a nested one can only shorten it (None: no bound).

    It bounds the waits of this toolkit, its worker threads and its drivers. Raises `ConfigError` for a value that is
    negative or not finite.
    """
    require_seconds("seconds", seconds, optional=True)
    parent = current()
    return OperationContext(parent.operation if parent else "", seconds, clock=clock, parent=parent)


def current() -> OperationContext | None:
    """The innermost context: of a named operation, a `deadline()` or `timeouts.operation(...)`; None outside of all."""
    context = _current.get()
    return _entered(context) if context.__class__ is tuple else context  # type: ignore[return-value]  # a tuple is an entry


# The express lane of a named operation and a `Timeout` in the caller's thread make themselves known by these: one tuple
# a call instead of contexts.
around = _current.get
enter_lane = _current.set
leave_lane = _current.reset


def _entered(entry: tuple[Any, ...]) -> OperationContext:
    """The contexts of an entry: ((operation, total, timeout, clock), started, what was outside), in the express lane.

    That of one attempt by itself has its number at the end, and no operation of its own around it.
    """
    if (made := context_seen(entry)) is not None:
        _current.set(made)
        return made
    (name, total, timeout, clock), started, outside, *attempt = entry
    context: OperationContext | None = outside
    if outside.__class__ is tuple:
        context = _entered(outside)
        around = () if outside[2].__class__ is not tuple else _from(outside[2])
        _made.set(((outside, context), *around))
    if not attempt:
        context = OperationContext(name, total, clock=clock, parent=context, started=started)
    if timeout is not None:
        context = OperationContext(name, timeout, clock=clock, parent=context, is_attempt=True, started=started)
    assert context is not None
    if attempt:
        (context.attempt,) = attempt
    _current.set(context)
    return context


def _from(entry: tuple[Any, ...]) -> tuple[tuple[tuple[Any, ...], OperationContext], ...]:
    """The entries from this one outwards, as far as their contexts were made."""
    made = _made.get()
    return next((made[index:] for index, (known, _) in enumerate(made) if known is entry), ())


def context_seen(found: Any) -> OperationContext | None:
    """The context of what is in force (an entry or a context itself); None where nobody has looked at it."""
    if found.__class__ is not tuple:
        return found  # type: ignore[no-any-return]  # what is no entry is a context
    made = _from(found)
    return made[0][1] if made else None


def enter_attempt(name: str, timeout: float, clock: Clock, started: float, attempt: int) -> Token[Any]:
    """Enters one attempt of `timeout` seconds in the caller's thread, from `started`; leave it with `leave_lane`.

    Its context is made when somebody looks; that of its surroundings is, at the latest, made now.
    """
    outside = _current.get()
    if outside.__class__ is tuple:
        outside = current()
    return _current.set(((name, None, timeout, clock), started, outside, attempt))


def context_for_a_thread() -> Context:
    """A copy of the caller's context variables for another thread, which is then inside of the very same operation."""
    current()  # an entry would become another operation over there, and never hear of a cancellation here
    return copy_context()


def remaining() -> float | None:
    """Seconds left until the ambient deadline (0.0 when it has passed), None without one."""
    context = current()
    return None if context is None else context.remaining()


def time_left() -> tuple[float | None, bool]:
    """Seconds until the deadline that comes first (0.0 when it has passed, None without one), and whose it is.

    True: an operation's own timeout, which blames the dependency. Makes no context for a call in the express lane.
    """
    found = _current.get()
    if found is None:
        return None, False
    if found.__class__ is tuple:
        (_, total, timeout, clock), started, outside = found[:3]
        if outside is None or (outside.__class__ is OperationContext and outside.clock is clock):
            limit = outside.deadline if outside is not None else None
            is_own = False
            if total is not None and (limit is None or started + total < limit):
                limit = started + total
            elif limit is not None and outside is not None:
                is_own = outside.blames_dependency
            if timeout is not None and (limit is None or started + timeout <= limit):
                limit, is_own = started + timeout, True
            return (None, False) if limit is None else (max(0.0, limit - clock.monotonic()), is_own)
    context = current()
    assert context is not None
    return context.remaining(), context.blames_dependency


def checkpoint() -> None:
    """Raises `DeadlineExceeded`, `OperationCancelled` or `ShutdownInProgress` when this call should end; cheap."""
    if lifecycle.stopping():
        raise ShutdownInProgress()
    context = current()
    if context is not None:
        context.checkpoint()


def sleep(seconds: float) -> None:
    """Sleeps `seconds`, until the ambient deadline at most, and raises `DeadlineExceeded` then.

    Raises `OperationCancelled` on cancel and `ShutdownInProgress` on shutdown, at once.
    """
    pause(seconds, current())


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
