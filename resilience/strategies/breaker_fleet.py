"""The breakers of one process that live in one store: who is told when a document changes."""

from __future__ import annotations

import os
import weakref

from ..core.clock import SYSTEM
from ..core.forks import living
from ..stores.link import link_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..core.events import EventStream
    from ..rules.breaker_state import CircuitState
    from ..stores.link import Link
    from ..stores.port import Change, Store
    from .breaker_core import Core

BREAKERS = "breaker/"
EVENTS = "breaker-events/"
MOST_EVENTS = 20  # kept of each breaker, for people

_fleets: weakref.WeakSet[Fleet] = weakref.WeakSet()


class Fleet:
    """All shared breakers of this process in one store. Safe to share between threads."""

    prefix = BREAKERS

    def __init__(self, link: Link) -> None:
        self.link = link
        self.unsettled: weakref.WeakSet[Core] = weakref.WeakSet()  # have decided something that the store has not heard
        self._unsettled_before: weakref.WeakSet[Core] = weakref.WeakSet()
        self._by_key: dict[str, tuple[weakref.ref[Core], ...]] = {}
        _fleets.add(self)

    def add(self, key: str, breaker: Core) -> None:
        """Tells `breaker` of changes of `key` from now on."""
        others = tuple(ref for ref in self._by_key.get(key, ()) if ref() not in (None, breaker))
        self._by_key[key] = (*others, weakref.ref(breaker))
        self.link.join(self)

    def living(self) -> list[Core]:
        """The breakers that are still in use."""
        return [breaker for refs in list(self._by_key.values()) for ref in refs if (breaker := ref()) is not None]

    def told(self, key: str, data: Any) -> None:
        """A document has changed; one that is gone is written again by the next look at the store."""
        for ref in self._by_key.get(key, ()):
            breaker = ref()
            if breaker is not None and (books := breaker._books) is not None and books.shared is not None:
                books.shared.told(breaker, data)

    def store_back(self, emptied: bool) -> None:
        """Brings the store up to date, breakers that are not closed first."""
        for breaker in sorted(self.living(), key=lambda breaker: breaker.token != 0):
            books = breaker._books
            if books is not None and books.shared is not None:
                books.shared.bring_back(breaker, emptied)

    def store_lost(self) -> None:
        """Tells of what breakers have decided since, and the store will not confirm."""
        for breaker in self.living():
            if (books := breaker._books) is not None and books.shared is not None:
                books.shared.tell(breaker)

    def settle(self) -> None:
        """Brings up what was decided before the last look: what was since may not be counted yet."""
        due, self._unsettled_before, self.unsettled = self._unsettled_before, self.unsettled, weakref.WeakSet()
        for breaker in due:
            if (books := breaker._books) is not None and books.shared is not None:
                books.shared.bring_back(breaker, False)

    def keep(self) -> None:
        """Breakers have nothing to renew."""

    def streams(self) -> set[EventStream]:
        """Who hears of losing the store."""
        return {breaker.events for breaker in self.living() if breaker.events is not None}

    def note(self, name: str, old: CircuitState, new: CircuitState, reason: str, last_error: str | None) -> None:
        """Keeps a change of state for people to read."""
        last = last_error if new.value == "open" else None
        self.link.later(EVENTS + name, appended(event_of(SYSTEM.time(), old, new, reason, last)))


def event_of(
    at: float, old: CircuitState, new: CircuitState, reason: str, last_error: str | None = None
) -> dict[str, Any]:
    """A change of state as plain data; `at` is the wall clock's."""
    event: dict[str, Any] = {"at": at, "old": old.value, "new": new.value, "reason": reason, "pid": os.getpid()}
    return event if last_error is None else {**event, "last_error": last_error}


def appended(event: dict[str, Any]) -> Change:
    """The change of a store that keeps one more event of a breaker."""

    def change(old: Any, now: float) -> tuple[Any, None]:
        kept = old["events"] if isinstance(old, dict) and isinstance(old.get("events"), list) else []
        return {"version": 1, "events": [*kept, event][-MOST_EVENTS:]}, None

    return change


def fleet_of(store: Store) -> Fleet:
    """The one fleet of this process in the store."""
    link = link_to(store)
    fleet = link.members.get(BREAKERS) or link.members.setdefault(BREAKERS, Fleet(link))
    assert isinstance(fleet, Fleet)
    return fleet


def _after_fork() -> None:
    for fleet in living(_fleets):
        for breaker in fleet.living():
            books = breaker._books
            if books is not None and books.shared is not None:
                books.shared.detach(breaker, books)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
