"""Stand-ins for tests: a function that fails as told, a gate that holds calls, a log of events; and a patient look."""

from __future__ import annotations

import threading

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ..core.events import Event

    T = TypeVar("T")

LOOK_EVERY = 0.002  # seconds


def eventually(condition: Callable[[], T], within: float = 60.0) -> T:
    """Waits until `condition()` is true, and gives what it answered: for what another thread or process is to do.

    Looks every 2 ms of real time; raises `AssertionError` that names the condition after `within` real seconds.
    """
    end = SYSTEM.monotonic() + within
    while not (answer := condition()):
        if SYSTEM.monotonic() > end:
            raise AssertionError(f"not true within {within:g} s: {_named(condition)}")
        SYSTEM.sleep(LOOK_EVERY)
    return answer


def _named(condition: object) -> str:
    code = getattr(condition, "__code__", None)
    return f"{condition!r} of {code.co_filename}:{code.co_firstlineno}" if code else repr(condition)


class Flaky:
    """Callable that raises the given `errors` one after another (None: no error), then gives `value`.

    `Flaky(3)` raises three `ConnectionError`s first. `calls` counts, `peak` is the most calls under way at once.
    """

    def __init__(self, errors: Any = 1, value: Any = "ok") -> None:
        if isinstance(errors, int):
            errors = [ConnectionError(f"failure {number + 1}") for number in range(errors)]
        self._errors = list(errors)
        self._value = value
        self._lock = threading.Lock()
        self._under_way = 0
        self.calls = 0
        self.peak = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            turn = self.calls
            self.calls += 1
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)
        try:
            error = self._errors[turn] if turn < len(self._errors) else None
            if error is not None:
                raise error
            return self._value(*args, **kwargs) if callable(self._value) else self._value
        finally:
            with self._lock:
                self._under_way -= 1


class Gate:
    """Callable that holds its callers until `open()`; `arrived(n)` waits until n of them are inside."""

    def __init__(self, value: Any = None) -> None:
        self._value = value
        self._changed = threading.Condition()
        self._is_open = False
        self.inside = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self.inside += 1
            self._changed.notify_all()
            try:
                while not self._is_open:
                    if not SYSTEM.wait(self._changed, 60.0):
                        raise AssertionError("the gate was never opened")
            finally:
                self.inside -= 1
        return self._value

    def arrived(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Waits until `count` callers are inside; False after `timeout` real seconds."""
        end = SYSTEM.monotonic() + timeout
        with self._changed:
            while self.inside < count:
                if not SYSTEM.wait(self._changed, end - SYSTEM.monotonic()) and self.inside < count:
                    return False
        return True

    def open(self) -> None:
        """Lets everybody through from now on."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


class EventLog:
    """A listener that keeps the events: `stream.subscribe(log)`; flush the stream before looking."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def kinds(self) -> list[str]:
        """The kinds of all events, in order."""
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[Event]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.kind == kind]


__all__ = ["EventLog", "Flaky", "Gate", "eventually"]
