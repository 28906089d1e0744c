"""What a breaker is made of, and how a change of its state is published and told."""

from __future__ import annotations

import sys

from ..agent.presence import ask, switch, tell
from ..agent.sources import of_breaker
from ..core.clock import SYSTEM
from ..core.errors import require
from ..rules import breaker as rules
from ..rules.breaker_state import CLOSED, FORCED_OPEN, METRICS_ONLY, OPEN
from .breaker_config import CircuitBreakerConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from ..core.clock import Clock
    from ..core.events import EventStream
    from ..rules.breaker_state import CircuitState
    from ..stores.port import Store
    from .breaker_books import Books

    News: TypeAlias = tuple[CircuitState, CircuitState, int, str, str | None]

# Without the GIL `successes += 1` would lose counts: there the token stays 0 and every call goes by the lock.
HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
DEFAULTS = CircuitBreakerConfig()
NEVER = float("inf")


class Core:
    """The fields of a breaker, and what leads from one state to the next. Its lock is that of the books."""

    __slots__ = ("__weakref__", "_books", "clock", "config", "events", "name", "refusal", "rejected", "store",
                 "successes", "token")  # fmt: skip

    def __init__(
        self, name: str, config: CircuitBreakerConfig = DEFAULTS, *, clock: Clock | None = None, store: Any = None,
        events: EventStream | None = None,
    ) -> None:  # fmt: skip
        require(isinstance(config, CircuitBreakerConfig), "config", config, "expected a CircuitBreakerConfig")
        self.name = name
        self.config = config
        self.clock: Clock = SYSTEM if clock is None else clock
        self.store: Store | None = None if store is None else _as_store(store, self)
        self.events = events
        self.successes = 0  # those counted by a look at the token; the others are in the books
        self.token = 1 if config.is_silent and HAS_GIL and store is None else 0
        self.refusal: tuple[float, str, str, str | None] | None = None  # until, name, state, last error
        self.rejected = 0  # by a look at the refusal; the others are in the books
        self._books: Books | None = None
        if not switch.asked:
            ask()
        if switch.on:
            tell(self, of_breaker)

    def _order(self, mode: CircuitState, reason: str, until: float | None = None) -> None:
        books = self._books or self._open_books()
        now = self.clock.monotonic()
        state = books.state
        told = None if books.shared is None else books.shared.obey(self, books, mode, reason, until)
        with books.lock:
            if told is not None:
                news = told[1]
            else:
                before = state.mode
                answer = rules.order(state, self.config, mode, now, reason, self.successes, until)
                news = self._notice_held(books, before, answer)
        if news is not None and books.shared is not None and told is None:
            news = books.shared.confirm(self, books, news[2], news, None)
        if news is not None:
            self._tell(*news)

    def _open_books(self) -> Books:
        from .breaker_books import LOCKS, Books  # brings the table of errors: loaded with the first trouble

        now = self.clock.monotonic()
        shared = None
        if self.store is not None:
            from .breaker_fleet import fleet_of
            from .breaker_shared import SharedBreaker

            shared = SharedBreaker(fleet_of(self.store), self.name)
        with LOCKS[0]:
            if self._books is None:
                self._books = Books(self.config, now, HAS_GIL, shared)
            return self._books

    def _shared_books(self) -> Books:
        """The books, with what the store says taken over."""
        books = self._books or self._open_books()
        if books.shared is not None and not books.shared.is_attached:
            books.shared.attach(self, books)
        return books

    def _notice_held(self, books: Books, before: CircuitState, answer: str) -> News | None:
        """Publishes the change that `answer` speaks of; the news of it, to be told without the lock."""
        if answer is rules.COUNTED:
            return None
        state = books.state
        if answer is rules.LATE:  # published again, in case an interrupt came between a change and its publication
            books.late_results += 1
        mode = state.mode
        if books.shared is not None and mode is OPEN and before is not OPEN:
            books.shared.opened = True
        self._publish_held(books)
        if answer is rules.LATE or (mode is before and answer is not rules.SUPPRESSED):
            return None
        return before, mode, state.generation, state.reason, books.last_error()

    def _publish_held(self, books: Books) -> None:
        """Lets calls see the state without the lock: whether all may pass, or none."""
        state = books.state
        mode = state.mode
        closed = mode is CLOSED
        shared = books.shared
        books.passing = state.generation if closed or mode is METRICS_ONLY else 0
        if HAS_GIL:
            is_silent = self.config.is_silent and (shared is None or not shared.is_pending(books))
            self.token = state.generation if closed and is_silent else 0
            is_open = mode is OPEN or mode is FORCED_OPEN
            until = NEVER if state.until is None else state.until
            self.refusal = (until, self.name, mode.value, books.last_error()) if is_open else None

    def _tell(self, old: CircuitState, new: CircuitState, generation: int, reason: str, last: str | None) -> None:
        if new is not old and self.events is not None:
            self.events.emit(
                "breaker_state_changed", self.name, old=old.value, new=new.value, generation=generation, reason=reason
            )
        if new is OPEN or new is FORCED_OPEN or new is old:
            from .breaker_books import warn

            warn(self.name, new, reason, last)


def _as_store(store: Any, user: Core) -> Store:
    from ..stores.opening import as_store

    return as_store(store, user)
