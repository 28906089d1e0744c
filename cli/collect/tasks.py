"""What the scheduler moves about: an item on its way, one request for it, its end, and the rules of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.strategies.circuit_breaker import Permit
    from resilience.strategies.retry import RetryPolicy

    from .answer import Answer, Onward
    from .hosts import Host
    from .inputs import Item

NEVER = float("inf")
MAX_RETRY_AFTER = 300.0  # seconds; an item told to wait longer is left for another run


class Task:
    """One item on its way: how often it was tried, what came of it last, where a redirect has led it.

    `left` are the seconds that an attempt which a redirect led to another host goes on with, else None.
    """

    __slots__ = ("attempts", "began", "delay", "host", "is_over", "item", "last", "left", "onward")

    def __init__(self, item: Item, host: Host) -> None:
        self.item = item
        self.host = host
        self.attempts = 0
        self.began: float | None = None
        self.delay: float | None = None
        self.last: Answer | None = None
        self.left: float | None = None
        self.onward: Onward | None = None
        self.is_over = False


class Attempt:
    """One request that a worker was given: it ends at `deadline`."""

    __slots__ = ("deadline", "is_over", "permit", "started", "task")

    def __init__(self, task: Task, permit: Permit, started: float, deadline: float) -> None:
        self.task = task
        self.permit = permit
        self.started = started
        self.deadline = deadline
        self.is_over = False


@dataclass(slots=True)
class Final:
    """The end of an item in this run."""

    task: Task
    answer: Answer
    elapsed: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user asked for. Times in seconds; `deadline` is a point in time."""

    retry: RetryPolicy
    attempts: int
    timeout: float
    per_host: int
    max_retry_after: float = MAX_RETRY_AFTER
    deadline: float = NEVER
    wait_open: bool = False

    def next_try(self, task: Task, answer: Answer, draw: Callable[[], float], now: float) -> float | None:
        """When the item is tried again after this answer; None for never. Says so where that is for its own good."""
        if answer.ok or not answer.is_retryable:
            return None
        if not (task.item.is_idempotent or answer.may_repeat):
            answer.category = "permanent"  # what may have taken effect is not for a resumed run to repeat, either
            answer.error += "; not repeated: it may have taken effect"
            return None
        if task.attempts >= self.attempts:
            return None
        task.delay = self.retry.jittered_delay(task.attempts - 1, draw, task.delay)
        spent = now + task.delay - (now if task.began is None else task.began)
        if self.retry.max_elapsed is not None and spent > self.retry.max_elapsed:
            return None
        when = max(now + task.delay, task.host.paused_until if answer.retry_after is not None else now)
        return None if when >= self.deadline or task.host.too_long is not None else when
