"""The store inside one process: for tests, and for programs that share state between threads only."""

from __future__ import annotations

import threading
import weakref

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from .port import PATIENCE, Store, Subscriptions, check_key, from_text, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.clock import Clock
    from .port import Change, Listener


class _Room:
    """What all handles of one named memory share."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.lock = threading.RLock()
        self.telling = threading.RLock()  # so that what is told last is what is there
        self.listeners: weakref.WeakSet[Subscriptions] = weakref.WeakSet()  # of the handles, which own them


_rooms: weakref.WeakValueDictionary[str, _Room] = weakref.WeakValueDictionary()
_naming = threading.Lock()


class MemoryStore(Store):
    """`memory://NAME`: shared by all handles of this name in the process; `memory://` is the handle's own.

    Its time is that of `clock`. Changes are told in the thread that makes them, once they are made. A forked child goes
    on with a copy.
    """

    is_local = is_near = True

    def __init__(self, url: str = "memory://", *, clock: Clock | None = None) -> None:
        super().__init__(url)
        self._clock = clock or SYSTEM
        name = url.partition("://")[2]
        with _naming:
            self._room = (_rooms.setdefault(name, _Room())) if name else _Room()
        self._subscriptions = Subscriptions()

    def transact(self, key: str, change: Change, *, within: float = PATIENCE) -> Any:
        room = self._open_room(check_key(key))
        with room.lock:
            old = room.texts.get(key)
            new, answer = change(from_text(old), self._clock.monotonic())
            text = to_text(new)
            if text is None:
                room.texts.pop(key, None)
            else:
                room.texts[key] = text
            listeners = list(room.listeners) if text != old else ()
        if listeners:
            with room.telling:
                for subscriptions in listeners:
                    subscriptions.tell(key, from_text(room.texts.get(key)))
        return answer

    def read(self, key: str, *, within: float = PATIENCE) -> Any:
        return from_text(self._open_room(check_key(key)).texts.get(key))

    def keys(self, prefix: str = "") -> list[str]:
        room = self._open_room()
        with room.lock:
            return sorted(key for key in room.texts if key.startswith(prefix))

    def now(self) -> float:
        self._open_room()
        return self._clock.monotonic()

    def guess_now(self) -> float | None:
        return self._clock.monotonic()

    def subscribe(self, prefix: str, callback: Listener) -> Callable[[], None]:
        room = self._open_room()
        with room.lock:
            room.listeners.add(self._subscriptions)
        return self._subscriptions.add(prefix, callback)

    def _open_room(self, key: str = "") -> _Room:
        if self.closed:
            raise StoreUnavailable(f"{self!r}")
        return self._room

    def _end(self) -> None:
        super()._end()
        self._subscriptions.clear()

    def after_fork(self, in_child: bool) -> None:
        if in_child:
            self._room.lock = threading.RLock()
            self._room.telling = threading.RLock()
