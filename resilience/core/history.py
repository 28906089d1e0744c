"""What happened to a call: its attempts, told as text and numbers only, so that a kept error holds no frames."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_ATTRIBUTE = "__resilience_history__"


class Attempt:
    """One attempt: `start` (wall clock), `duration` and the `delay` after it in seconds, `error` as text or None."""

    __slots__ = ("breaker_state", "category", "delay", "duration", "error", "number", "started")

    def __init__(
        self,
        number: int,
        started: float,
        duration: float,
        error: str | None = None,
        category: str | None = None,
        delay: float | None = None,
        breaker_state: str | None = None,
    ) -> None:
        self.number = number
        self.started = started
        self.duration = duration
        self.error = error
        self.category = category
        self.delay = delay
        self.breaker_state = breaker_state

    @property
    def start(self) -> float:
        """When it began: wall clock, seconds."""
        return self.started

    def as_dict(self) -> dict[str, Any]:
        """The attempt as plain data."""
        return {name: getattr(self, name) for name in sorted(self.__slots__)}

    def __repr__(self) -> str:
        return f"Attempt({self.number}, error={self.error!r}, duration={self.duration:.3g}, delay={self.delay!r})"


class AttemptHistory:
    """The attempts of one call, in order, why they ended (`stop_reason`) and of which `operation`."""

    __slots__ = ("attempts", "operation", "stop_reason")

    def __init__(self, operation: str = "") -> None:
        self.operation = operation
        self.attempts: list[Attempt] = []
        self.stop_reason: str | None = None

    def __len__(self) -> int:
        return len(self.attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self.attempts)

    def as_dict(self) -> dict[str, Any]:
        """The history as plain data, ready for JSON."""
        return {
            "operation": self.operation,
            "stop_reason": self.stop_reason,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
        }

    def __repr__(self) -> str:
        return f"AttemptHistory({self.operation!r}, {self.attempts!r}, stop_reason={self.stop_reason!r})"


def error_text(error: BaseException) -> str:
    """Type and message of an error, as one line for a history or a log; never raises."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def history(error: BaseException) -> AttemptHistory:
    """The history of the call that raised `error`; an empty one when no policy of ours handled it."""
    found = getattr(error, _ATTRIBUTE, None)
    return found if isinstance(found, AttemptHistory) else AttemptHistory()


def attach(error: BaseException, record: AttemptHistory) -> None:
    """Makes `record` the history of `error`; an error without room for attributes keeps none."""
    try:
        setattr(error, _ATTRIBUTE, record)
    except (AttributeError, TypeError):
        pass


def add_note(error: BaseException, text: str) -> None:
    """Adds a note (PEP 678) to `error`, once; Python 3.10 gets it as plain `__notes__`."""
    try:
        notes = getattr(error, "__notes__", None)
        if isinstance(notes, list):
            if text not in notes:
                notes.append(text)
        else:
            error.__notes__ = [text]  # type: ignore[attr-defined, unused-ignore]  # absent before Python 3.11
    except (AttributeError, TypeError):
        pass
