"""Entries: what a call in the express lane leaves for who asks, one tuple in place of the contexts it becomes then."""

from __future__ import annotations

from contextvars import ContextVar

from .context import OperationContext, innermost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Token
    from typing import Any

    from .clock import Clock

# The entries around the last one that was looked at, innermost first, with their contexts: after the call inside,
# `innermost` is such an entry again, and whoever has its context may have cancelled it.
_made: ContextVar[tuple[tuple[tuple[Any, ...], OperationContext], ...]] = ContextVar("resilience_made", default=())

# The express lane of a named operation and a `Timeout` in the caller's thread make themselves known by these: one tuple
# a call instead of contexts.
around = innermost.get
enter_lane = innermost.set
leave_lane = innermost.reset


def entered(entry: tuple[Any, ...]) -> OperationContext:
    """The contexts of an entry: ((operation, total, timeout, clock), started, what was outside), in the express lane.

    That of one attempt by itself has its number at the end, and no operation of its own around it.
    """
    if (made := context_seen(entry)) is not None:
        innermost.set(made)
        return made
    (name, total, timeout, clock), started, outside, *attempt = entry
    context: OperationContext | None = outside
    if outside.__class__ is tuple:
        context = entered(outside)
        around = () if outside[2].__class__ is not tuple else _from(outside[2])
        _made.set(((outside, context), *around))
    if not attempt:
        context = OperationContext(name, total, clock=clock, parent=context, started=started)
    if timeout is not None:
        context = OperationContext(name, timeout, clock=clock, parent=context, is_attempt=True, started=started)
    assert context is not None
    if attempt:
        (context.attempt,) = attempt
    innermost.set(context)
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
    outside = innermost.get()
    if outside.__class__ is tuple:
        outside = entered(outside)
    return innermost.set(((name, None, timeout, clock), started, outside, attempt))
