"""The bulkheads of one process that live in one store: who is told of changes, renews, and gives back at the end."""

from __future__ import annotations

import weakref

from ..core.forks import living
from ..stores.link import link_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..core.events import EventStream
    from ..stores.link import Link
    from ..stores.port import Store
    from .bulkhead_shared import SharedSlots

BULKHEADS = "bulkhead/"

_fleets: weakref.WeakSet[Fleet] = weakref.WeakSet()


class Fleet:
    """The shared bulkheads of this process in one store. Safe to share between threads."""

    prefix = BULKHEADS

    def __init__(self, link: Link) -> None:
        self.link = link
        self._all: weakref.WeakSet[SharedSlots] = weakref.WeakSet()

    def add(self, slots: SharedSlots) -> None:
        """Tells `slots` of changes from now on."""
        self._all.add(slots)
        self.link.join(self)
        _leave_at_exit(self)

    def told(self, key: str, data: Any) -> None:
        """Some leases have changed."""
        for slots in living(self._all):
            if slots.key == key:
                slots.told(data)

    def store_back(self, emptied: bool) -> None:
        """What is running needs its slots."""
        for slots in living(self._all):
            slots.store_back()

    def store_lost(self) -> None:
        """No answer comes any more."""
        for slots in living(self._all):
            slots.store_lost()

    def settle(self) -> None:
        """Nothing is decided without the store that it would have to hear of."""

    def keep(self) -> None:
        """Renews what is leased."""
        for slots in living(self._all):
            slots.renew()

    def leave(self) -> None:
        """Gives back what is not in use."""
        for slots in living(self._all):
            slots.leave()

    def streams(self) -> set[EventStream]:
        """Who hears of losing the store."""
        return {stream for slots in living(self._all) if (stream := slots.stream()) is not None}


def fleet_of(store: Store) -> Fleet:
    """The one fleet of this process in the store."""
    link = link_to(store)
    fleet = link.members.get(BULKHEADS) or link.members.setdefault(BULKHEADS, Fleet(link))
    assert isinstance(fleet, Fleet)
    return fleet


_exit_registered = False


def _leave_at_exit(fleet: Fleet) -> None:
    global _exit_registered  # one registration a process, after the clerk's, so that it comes before
    _fleets.add(fleet)
    if not _exit_registered:
        import atexit

        _exit_registered = True
        atexit.register(_leave)


def _leave() -> None:
    for fleet in living(_fleets):
        fleet.leave()
