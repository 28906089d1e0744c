"""Changes on their way to a store: handed in by calls, made by the clerk of the link."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any

    from ..core.errors import StoreUnavailable
    from .port import Change
    from .swap import Unanswered


class Task:
    """A change handed in, and what came of it."""

    __slots__ = ("answer", "can_wait", "change", "done", "error", "is_late", "key", "late", "question")

    def __init__(self, key: str, change: Change, late: Callable[[Any], object], can_wait: bool = True) -> None:
        self.key = key
        self.change = change
        self.late = late
        self.can_wait = can_wait
        self.is_late = False  # nobody waits any more: its answer goes to `late`
        self.question: Unanswered | None = None  # asked already
        self.done = threading.Event()
        self.answer: Any = None
        self.error: StoreUnavailable | None = None

    def fits(self, waiting: deque[Task]) -> bool:
        """Whether the first of those that wait can be made in one step with this one."""
        return bool(waiting) and self.key == waiting[0].key and self._is_plain() and waiting[0]._is_plain()

    def _is_plain(self) -> bool:
        return self.can_wait and self.question is None


def in_order(tasks: list[Task]) -> Change:
    """The changes of all of them as one; its answer has all answers."""

    def change(old: Any, now: float) -> tuple[Any, list[Any]]:
        answers = []
        for task in tasks:
            old, answer = task.change(old, now)
            answers.append(answer)
        return old, answers

    return change
