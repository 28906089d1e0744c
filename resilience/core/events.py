"""The news of the toolkit: immutable events, told to listeners outside of every lock and of every call.

Listeners run on one daemon thread made on first use, behind a bounded queue: one that raises or hangs costs events
(counted in `dropped`), never a call. Counting happens in the calls themselves; the stream is for telling only.
"""

from __future__ import annotations

import threading
from collections import deque

from .clock import SYSTEM
from .forks import living
from .logs import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .clock import Clock

    _Listeners = tuple[tuple[Callable[["Event"], object], frozenset[str] | None], ...]

KINDS = frozenset(
    ("attempt_failed", "retry_scheduled", "retries_exhausted", "recovered", "breaker_state_changed", "call_rejected",
     "timed_out", "abandoned", "reclaimed", "fallback_used", "degraded", "restored", "resource_registered",
     "resource_closed", "resource_leaked", "worker_started", "worker_lost", "store_lost", "store_restored",
     "alert_fired", "alert_cleared")
)
QUEUE_SIZE = 10_000
LINGER = 60.0  # seconds without news until the thread ends


class Event:
    """One piece of news: `kind`, the `name` of what it is about, `at` (wall clock, seconds) and fields by kind."""

    __slots__ = ("_fields", "at", "kind", "name")

    kind: str
    name: str
    at: float

    def __init__(self, kind: str, name: str, at: float, /, **fields: Any) -> None:
        put = object.__setattr__
        put(self, "kind", kind)
        put(self, "name", name)
        put(self, "at", at)
        put(self, "_fields", fields)

    def __getattr__(self, field: str) -> Any:
        if field != "_fields" and field in self._fields:
            return self._fields[field]
        raise AttributeError(f"{self.kind} event has no field {field!r}" if field != "_fields" else field)

    def __setattr__(self, field: str, value: object) -> None:
        raise AttributeError("events are immutable")

    def __delattr__(self, field: str) -> None:
        raise AttributeError("events are immutable")

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {"kind": self.kind, "name": self.name, "at": self.at, **self._fields}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.kind, self.name, self.at))

    def __repr__(self) -> str:
        return f"Event({', '.join(f'{key}={value!r}' for key, value in self.as_dict().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.kind, self.name, self.at, self._fields)


def _rebuild(kind: str, name: str, at: float, fields: dict[str, Any]) -> Event:
    return Event(kind, name, at, **fields)


class EventStream:
    """Tells events to its listeners, in order, on a thread of its own. Safe to use from any thread and any listener."""

    def __init__(self, *, clock: Clock | None = None, queue_size: int = QUEUE_SIZE) -> None:
        self._clock = clock or SYSTEM
        self._queue_size = queue_size
        self._listeners: _Listeners = ()
        self._wanted: frozenset[str] = frozenset()
        self._linger = LINGER
        self.on_subscribe: Callable[[frozenset[str]], object] | None = None  # hears of the kinds that are wanted now
        self._fresh_state()
        _streams.add(self)

    def _fresh_state(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Event] = deque()
        self._busy = False
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def subscribe(self, listener: Callable[[Event], object], kinds: Iterable[str] | None = None) -> Callable[[], None]:
        """Calls `listener(event)` for each later event of these `kinds` (None: all); returns what ends it.

        Raises `ConfigError` for an unknown kind.
        """
        if isinstance(kinds, str):
            kinds = (kinds,)
        chosen = None if kinds is None else frozenset(kinds)
        if chosen is not None and not chosen <= KINDS:
            from .errors import ConfigError

            unknown = sorted(chosen - KINDS)
            raise ConfigError(f"unknown event kinds {unknown}; known: {sorted(KINDS)}", key="kinds", value=unknown)
        entry = (listener, chosen)
        with self._changed:
            self._set_listeners_held((*self._listeners, entry))
        if self.on_subscribe is not None:
            self.on_subscribe(self._wanted)

        def unsubscribe() -> None:
            with self._changed:
                self._set_listeners_held(tuple(other for other in self._listeners if other is not entry))

        return unsubscribe

    def _set_listeners_held(self, listeners: _Listeners) -> None:
        self._listeners = listeners
        self._wanted = frozenset().union(*(KINDS if kinds is None else kinds for _, kinds in listeners))

    def wants(self, kind: str) -> bool:
        """Whether anybody listens to `kind`: ask before composing costly fields."""
        return kind in self._wanted

    def emit(self, kind: str, name: str, /, **fields: Any) -> None:
        """Queues one event for the listeners; nothing happens when nobody wants its kind. Never blocks or raises."""
        if kind not in self._wanted:
            return
        event = Event(kind, name, self._clock.time(), **fields)
        with self._changed:
            if len(self._queue) >= self._queue_size:
                self.dropped += 1
                return
            self._queue.append(event)
            if self._thread is None:
                self._start_held()
            self._changed.notify_all()

    def _start_held(self) -> None:
        self._thread = thread = threading.Thread(target=self._tell_all, name="resilience-events", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: the queue keeps the events, the next one tries again
            self._thread = None
            return
        except BaseException:  # a Ctrl-C: if the thread runs, it finds that it is not the one
            self._thread = None
            raise
        _drain_at_exit()

    def _tell_all(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                if self._thread is not me:
                    return
                self._busy = False
                if not self._queue:
                    self._changed.notify_all()
                    if not SYSTEM.wait(self._changed, self._linger) and not self._queue:
                        self._thread = None
                        return
                    continue
                event = self._queue.popleft()
                self._busy = True
            for listener, kinds in self._listeners:
                if kinds is None or event.kind in kinds:
                    try:
                        listener(event)
                    except BaseException:  # a SystemExit would end the thread, and with it the news
                        self._log_failure(listener, event)

    def let_go(self) -> None:
        """Ends the thread as soon as all is told, now and after later news: its manager is closed."""
        with self._changed:
            self._linger = 0.0
            self._changed.notify_all()

    @staticmethod
    def _log_failure(listener: Callable[[Event], object], event: Event) -> None:
        logger("events").warning("listener %r failed on %r", listener, event, exc_info=True)

    def flush(self, timeout: float = 1.0) -> bool:
        """Waits until all events emitted before are told, at most `timeout` real seconds; True when they are."""
        if threading.current_thread() is self._thread:
            return False
        end = SYSTEM.monotonic() + timeout
        with self._changed:
            while self._queue or self._busy:
                left = end - SYSTEM.monotonic()
                if left <= 0 or self._thread is None:
                    return False
                SYSTEM.wait(self._changed, left)
        return True


def _make_streams() -> Any:
    import weakref

    return weakref.WeakSet()


_streams: Any = _make_streams()
_exit_registered = False


def _drain_at_exit() -> None:
    global _exit_registered  # one registration a process, made with the first thread
    if not _exit_registered:
        import atexit

        _exit_registered = True
        atexit.register(_drain)


def _drain() -> None:
    end = SYSTEM.monotonic() + 1.0
    for stream in living(_streams):
        stream.flush(max(0.0, end - SYSTEM.monotonic()))


def _after_fork() -> None:
    for stream in living(_streams):
        stream._fresh_state()


def _register_at_fork() -> None:
    import os

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


_register_at_fork()
