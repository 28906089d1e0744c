"""The deadline of one exchange with PostgreSQL: the time the server has for it, and what is raised when it is over."""

from __future__ import annotations

from ...core.ambient import time_left as context_time_left
from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded

GRACE = 0.2  # seconds between the deadline, at which a living server answers, and the end of the socket


class Limit:
    """The deadline of one exchange with the server: `until` for the server, `grace` later for the socket."""

    __slots__ = ("ambient", "grace", "seconds", "started", "until")

    def __init__(self, seconds: float, ambient: bool, grace: float = GRACE) -> None:
        self.seconds = seconds
        self.ambient = ambient
        self.grace = grace
        self.started = SYSTEM.monotonic()
        self.until = self.started + seconds

    def error(self, doing: str, outcome: str) -> DeadlineExceeded:
        """The error that says that the time was over while `doing`."""
        elapsed = SYSTEM.monotonic() - self.started
        return deadline_error(doing, self.seconds, elapsed, self.ambient, outcome)


def deadline_error(doing: str, seconds: float, elapsed: float, ambient: bool, outcome: str) -> DeadlineExceeded:
    """A `DeadlineExceeded` that tells what became of the statement."""
    error = DeadlineExceeded(
        f"PostgreSQL: {doing} exceeded its deadline of {seconds:.3g} s after {elapsed:.3g} s",
        name="postgres", timeout=seconds, elapsed=elapsed, phase="running", ambient=ambient,
    )  # fmt: skip
    error.outcome = outcome  # type: ignore[attr-defined]  # for classify()
    return error


def time_left(own: float | None) -> tuple[float | None, bool]:
    """Seconds until the ambient deadline, else `own`; and whether that deadline is the caller's rather than ours."""
    left, is_own = context_time_left()
    return (own, False) if left is None else (left, not is_own)


def limit_of(limit: Limit) -> Limit:
    """A limit of its own for a trip before the statement: it ends with the same deadline."""
    return Limit(max(0.0, limit.until - SYSTEM.monotonic()), limit.ambient)
