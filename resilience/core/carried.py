"""What travels with a call to another process: the chain of its contexts as data, and the child's environment.

Points in time are those of the machine's monotonic clock, which all its processes share; what another clock measures is
carried over to it.
"""

from __future__ import annotations

from .clock import SYSTEM
from .context import ATTEMPT_VARIABLE, DEADLINE_VARIABLE, OperationContext

__all__ = ["ATTEMPT_VARIABLE", "DEADLINE_VARIABLE", "carried", "child_environment", "restored"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # operation, id, timeout, started, is_attempt, attempt
    Facts = tuple[tuple[str, str, float | None, float, bool, int], ...]


def carried(context: OperationContext | None) -> Facts:
    """The context and all around it, outermost first, as plain data."""
    chain: list[Any] = []
    while context is not None:
        started = context.started
        if context.clock is not SYSTEM:
            started += SYSTEM.monotonic() - context.clock.monotonic()
        chain.append(
            (context.operation, context.operation_id, context.timeout, started, context.is_attempt, context.attempt)
        )
        context = context.parent
    return tuple(reversed(chain))


def restored(facts: Facts) -> OperationContext | None:
    """The context that `carried` was given, on the machine's clock; a cancel over there does not reach it."""
    context: OperationContext | None = None
    for operation, given_id, timeout, started, is_attempt, attempt in facts:
        context = OperationContext(
            operation, timeout, operation_id=given_id, clock=SYSTEM, parent=context, is_attempt=is_attempt,
            started=started,
        )  # fmt: skip
        context.attempt = attempt
    return context


def child_environment(context: OperationContext | None) -> dict[str, str]:
    """What a child process has to find in its environment to inherit the deadline and to know its attempt."""
    if context is None:
        return {}
    left = context.remaining()
    told = {ATTEMPT_VARIABLE: str(context.attempt)}
    if left is not None:
        told[DEADLINE_VARIABLE] = f"{left:.3f}"
    return told
