"""The operation one is inside of, for who asks: its time left, its end, and what goes with it to another thread."""

from __future__ import annotations

from contextvars import ContextVar, copy_context

from . import lifecycle
from .context import OperationContext, innermost, pause
from .entries import entered
from .errors import ShutdownInProgress, require_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Protocol

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
    context = innermost.get()
    return entered(context) if context.__class__ is tuple else context  # type: ignore[return-value]  # a tuple is an entry


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
    found = innermost.get()
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
