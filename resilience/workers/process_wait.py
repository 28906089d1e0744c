"""What a call on a worker process waits by: until when it may take, and who may wake it before."""

from __future__ import annotations

from ..core.errors import DeadlineExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.clock import Clock
    from ..core.context import OperationContext


class Limit:
    """Until when a call may take, on which clock, and whose deadline that is."""

    __slots__ = ("clock", "context", "end", "own", "timeout")

    def __init__(self, timeout: float | None, clock: Clock, context: OperationContext | None) -> None:
        left = None if context is None else context.remaining()
        self.own = left is None or (timeout is not None and timeout < left)
        self.context = context
        self.timeout = timeout
        self.clock = clock if self.own or context is None else context.clock
        seconds = timeout if self.own else left
        self.end = None if seconds is None else self.clock.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds that remain."""
        return None if self.end is None else max(0.0, self.end - self.clock.monotonic())

    def error(self, name: str, phase: str) -> DeadlineExceeded:
        """The error that says that they are over."""
        if self.own or self.context is None:
            return DeadlineExceeded(name=name, timeout=self.timeout, elapsed=self.timeout, phase=phase)
        return self.context.deadline_error(phase)


class Interrupter:
    """What a cancel or a shutdown wakes: the ticket or the worker that the call waits for just now."""

    __slots__ = ("target", "woken")

    def __init__(self) -> None:
        self.woken = False
        self.target: Callable[[], None] | None = None

    def __call__(self) -> None:
        self.woken = True
        target = self.target
        if target is not None:
            target()

    def is_woken(self) -> bool:
        """Whether somebody has called."""
        return self.woken

    def aim(self, target: Callable[[], None]) -> None:
        """Wakes `target` from now on; at once when it has already been called."""
        self.target = target
        if self.woken:
            target()
