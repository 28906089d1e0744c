"""Compare and set: how a change in Python becomes one atomic step in a store that knows nothing of the rules.

Each key has a version that grows with every change. What was seen last is kept here, so that a change costs one trip
when nobody else has touched the key, and two when somebody has.
"""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from .listener import listening_thread
from .port import PATIENCE, Contended, NotMade, Store, Subscriptions, check_key, from_text, redacted, time_left, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from .listener import Ear
    from .port import Change, Listener

    Seen: TypeAlias = tuple[int, str | None]  # version (0: never there) and text (None: deleted)

MOST_SEEN = 10_000  # keys of which the last text is kept
LONGEST_PAUSE = 0.002  # seconds before the next try for a key that others change all the time


class Unanswered(StoreUnavailable):
    """The store was asked for a change and has not answered yet: `go_on` waits for the answer, on any thread."""

    def __init__(self, store: SwapStore) -> None:
        super().__init__(f"{store!r} has not answered yet")
        self.store = store
        self.key = ""
        self.change: Change | None = None
        self.text: str | None = None  # what the key would hold; None too where the question was what it holds
        self.answer: Any = None
        self.is_answered = False
        self.after: Seen | None = None  # what the key holds, where the change was made

    def go_on(self, within: float) -> Any:
        """The answer of `transact`; makes the change anew where somebody else was faster."""
        assert self.change is not None
        with self.store._turn(within) as end:
            if not self.is_answered:
                self.store._settle_held(self, end)
            if self.after is not None:
                return self.store._keep(self.key, self.after, self.answer)
        return self.store.transact(self.key, self.change, within=time_left(end))


class SwapStore(Store):
    """The part that stores with compare-and-set have in common. A kind of store gives the methods with `_held`.

    They run with the lock held, one at a time, have until `end` (of `SYSTEM.monotonic()`) and raise `StoreUnavailable`.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._thread: threading.Thread | None = None  # listens
        self._ear: Any = None
        self._fresh()
        self._subscriptions = Subscriptions()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._is_hasty = False  # while a call that has little time holds the lock
        self._seen: dict[str, Seen] = {}
        self._told_versions: dict[str, int] = {}  # touched by the thread that listens only

    def _fetch_held(self, key: str, end: float) -> Seen:
        """Version and text of a key."""
        raise NotImplementedError

    def _swap_held(self, key: str, seen: Seen, text: str | None, end: float) -> Seen | None:
        """Puts `text` there if the key still is as `seen`; what is there now, or None when it was changed before.

        What it was changed to may be left in `_seen`, to spare the next try a trip.
        """
        raise NotImplementedError

    def _settle_held(self, question: Unanswered, end: float) -> None:
        """Waits for the answer to a question; raises `StoreUnavailable` where it will not come any more."""
        raise NotImplementedError

    def _now_held(self, end: float) -> float:
        """The store's time."""
        raise NotImplementedError

    def _keys_held(self, prefix: str, end: float) -> list[str]:
        """The keys that begin with `prefix` and hold data."""
        raise NotImplementedError

    def _stop_held(self) -> None:
        """Closes the connection, if there is one."""
        raise NotImplementedError

    def _open_ear(self) -> Ear:
        """What hears of all that changes from now on. Runs without the lock."""
        raise NotImplementedError

    def _tell_news(self, ear: Any) -> None:
        """Calls `_told` for what others have changed. Runs without the lock, on the thread that listens."""
        raise NotImplementedError

    def _listen(self) -> None:
        """Sees to it that `_tell_news` is called for everything that happens from now on."""
        if self._thread is not None:
            return
        ear: Ear | None = self._open_ear()
        try:
            with self._turn(PATIENCE):
                if self._thread is None:
                    self._start_held(ear)
                    ear = None
        finally:
            if ear is not None:
                ear.close()

    def _start_held(self, ear: Any) -> None:
        self._thread, self._ear = listening_thread(self, ear), ear
        try:
            self._thread.start()
        except RuntimeError as error:  # there is no thread to be had
            self._thread = self._ear = None
            raise StoreUnavailable(f"{redacted(self.url)}: {error}") from error

    @contextmanager
    def _turn(self, within: float) -> Iterator[float]:
        """The lock, held until the end of the block; gives the moment at which the time is up."""
        end = SYSTEM.monotonic() + within
        self._take_turn(within)
        try:
            yield end
        finally:
            self._end_turn_held()

    def _take_turn(self, within: float) -> None:
        if within <= 0 or not self._lock.acquire(timeout=within):
            raise NotMade(f"{self!r} was busy for too long")
        if self.closed:
            self._end_turn_held()
            raise StoreUnavailable(f"{self!r}")

    def _end_turn_held(self) -> None:
        try:
            if self.closed:  # meanwhile: whoever did that has not waited
                self._stop_held()
        finally:
            self._lock.release()

    def transact(self, key: str, change: Change, *, within: float = PATIENCE) -> Any:
        return self._transact(key, change, within, False)

    def begin(self, key: str, change: Change, *, within: float) -> Any:
        return self._transact(key, change, within, True)

    def _transact(self, key: str, change: Change, within: float, is_hasty: bool) -> Any:
        seen = self._seen.get(check_key(key))
        is_fresh = False
        end = give_up = SYSTEM.monotonic() + within
        while True:
            text = answer = None
            self._take_turn(end - SYSTEM.monotonic())
            try:
                self._is_hasty = is_hasty
                if seen is None:
                    seen, is_fresh = self._fetch_held(key, end), True
                new, answer = change(from_text(seen[1]), self._now_held(end))
                text = to_text(new)
                if text == seen[1]:
                    if is_fresh:
                        return self._keep(key, seen, answer)
                    current = self._fetch_held(key, end)  # what was seen may be old: then the answer is
                    if current == seen:
                        return answer
                    seen, is_fresh = current, True
                    continue
                self._seen.pop(key, None)
                after = self._swap_held(key, seen, text, end)
                if after is not None:
                    return self._keep(key, after, answer)
                seen, is_fresh = self._seen.get(key), key in self._seen
            except Unanswered as question:
                question.key, question.change, question.text, question.answer = key, change, text, answer
                raise
            finally:
                self._is_hasty = False
                self._end_turn_held()
            if (now := SYSTEM.monotonic()) >= give_up:
                raise Contended(f"others have changed {key!r} all the time, for {within:g} s")
            if not is_hasty:
                end = now + within  # the store is there: it gets its time again
            SYSTEM.sleep(random.random() * LONGEST_PAUSE)

    def _keep(self, key: str, seen: Seen, answer: Any) -> Any:
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[key] = seen
        return answer

    def read(self, key: str, *, within: float = PATIENCE) -> Any:
        check_key(key)
        with self._turn(within) as end:
            seen = self._fetch_held(key, end)
        self._keep(key, seen, None)
        return from_text(seen[1])

    def keys(self, prefix: str = "") -> list[str]:
        with self._turn(PATIENCE) as end:
            return sorted(self._keys_held(prefix, end))

    def now(self) -> float:
        with self._turn(PATIENCE) as end:
            return self._now_held(end)

    def subscribe(self, prefix: str, callback: Listener) -> Callable[[], None]:
        with self._turn(PATIENCE):
            detach = self._subscriptions.add(prefix, callback)
        try:
            self._listen()
        except BaseException:
            detach()
            raise
        return detach

    def _told(self, key: str, seen: Seen) -> None:
        """Somebody has changed `key`: called by the thread that listens. What is no news is not told."""
        if 0 < seen[0] <= self._told_versions.get(key, 0):
            return
        if len(self._told_versions) >= MOST_SEEN:
            self._told_versions.clear()
        self._told_versions[key] = seen[0]
        known = self._seen.get(key)
        if known is not None and known[0] < seen[0]:
            self._seen[key] = seen
        self._subscriptions.tell(key, from_text(seen[1]))

    def forget(self) -> None:
        """Takes nothing for known any more: the store may be another one than it was."""
        self._seen = {}
        self._told_versions = {}

    def _end(self) -> None:
        super()._end()
        if self._lock.acquire(timeout=PATIENCE):
            try:
                self._stop_held()
            finally:
                self._lock.release()
