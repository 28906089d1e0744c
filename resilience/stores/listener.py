"""The thread that hears what others change in a store. It holds on to the store only while it has something to tell."""

from __future__ import annotations

import threading
import weakref

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .swap import SwapStore

    class Ear(Protocol):
        """What a store hears with. It knows nothing of the store; for one thread, which closes it."""

        def wait(self, seconds: float) -> None:
            """Returns when there may be news, after `seconds` at most; may raise when it can hear no more."""

        def close(self) -> None:
            """Lets go of everything."""


LOOK_EVERY = 0.5  # seconds between two looks at the store, if only to see whether it is still there
LISTEN_AGAIN = 0.5  # seconds between two tries


def listening_thread(store: SwapStore, ear: Ear) -> threading.Thread:
    """The thread, not started yet: it listens until the store is closed, has another thread, or is gone."""
    return threading.Thread(target=_listen, args=(weakref.ref(store), ear), name="resilience-store", daemon=True)


def _listen(store_of: weakref.ref[SwapStore], ear: Ear | None) -> None:
    me = threading.current_thread()
    try:
        while (store := store_of()) is not None and store._thread is me and not store.closed:
            try:
                if ear is None:
                    ear = store._ear = store._open_ear()
                store._tell_news(ear)
                del store
                ear.wait(LOOK_EVERY)
                continue
            except Exception:  # whatever it was: what is missed is told once it can be heard again
                store = None
            if ear is not None:
                ear.close()
                ear = None
            SYSTEM.sleep(LISTEN_AGAIN)
    finally:
        if ear is not None:
            ear.close()
