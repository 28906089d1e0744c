"""The rate of all processes together: places in one line, kept in a store and leased in blocks.

A place is a moment at which one call may start. A process takes as many at once as it is about to use in 20 ms, so that
a fast limiter asks the store seldom; a slow one asks for each call. A place that is not used within 20 ms is lost.
"""

from __future__ import annotations

import threading
from collections import deque

from ..core.errors import StoreUnavailable
from ..rules import bucket
from ..stores.link import link_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..stores.port import Store

SPAN = 0.02  # seconds that a block reaches ahead, and that a place may be used late
YEAR = 366 * 86400.0  # seconds: no place is further away
PREFIX = "rate/"


class SharedRate:
    """The part of a rate limiter that lives in a store. Safe to share between threads; times are local ones."""

    def __init__(self, store: Store, name: str, interval: float, burst: int) -> None:
        self._link = link_to(store)
        self._key = PREFIX + name
        self._interval = interval
        self._burst = burst
        self._most = max(1, int(SPAN / interval))
        self.fresh()
        self._link.start()  # reaches the store meanwhile, so that the first call need not wait for that

    def fresh(self) -> None:
        """Forgets what was leased: the child of a fork has none of it."""
        self._lock = threading.Lock()
        self._places: deque[float] = deque()
        self._block = 1
        self._alone_tat = float("-inf")
        self._next = float("-inf")  # no place is free before, as far as is known

    def take(self, now: float, allowed: float) -> tuple[bool, float]:
        """Whether a call may start within `allowed` seconds, and after how many.

        Raises `StoreUnavailable` where the store does not say.
        """
        with self._lock:
            lost = False
            while self._places and self._places[0] < now - SPAN:
                self._places.popleft()
                lost = True
            if lost:
                self._block = 1
            if self._places:
                wait = max(0.0, self._places[0] - now)
                if wait > allowed:
                    return False, wait
                self._places.popleft()
                return True, wait
            if self._next - now > allowed:
                return False, self._next - now
            wanted, self._block = self._block, min(self._most, self._block * 2)
        try:
            is_granted, waits = self._lease(wanted, allowed)
        except StoreUnavailable:
            if not self._link.is_expected():
                raise
            return self._on_credit(now, allowed)
        if not is_granted:
            self._next = now + waits
            return False, waits
        first, *others = waits
        if others:
            with self._lock:
                self._places.extend(now + wait for wait in others)
        return True, first

    def _on_credit(self, now: float, allowed: float) -> tuple[bool, float]:
        """A place while the store is slow: without any burst, and charged to it once it answers."""
        with self._lock:
            wait = bucket.wait_for(self._alone_tat, now, self._interval, 1)
            if wait > allowed:
                return False, wait
            self._alone_tat = bucket.take(self._alone_tat, now, self._interval)
        self._link.later(self._key, lambda old, at: (self._doc(bucket.take(_tat(old, at), at, self._interval)), None))
        return True, wait

    def _doc(self, tat: float) -> dict[str, Any]:
        return {"version": 1, "tat": tat, "interval": self._interval, "burst": self._burst}

    def _lease(self, wanted: int, allowed: float) -> Any:
        interval, burst = self._interval, self._burst

        def change(old: Any, at: float) -> tuple[Any, Any]:
            tat = _tat(old, at)
            wait = bucket.wait_for(tat, at, interval, burst)
            if wait > allowed:
                return old, (False, wait)
            waits: list[float] = []
            while len(waits) < wanted and (not waits or bucket.wait_for(tat, at, interval, burst) <= SPAN):
                waits.append(bucket.wait_for(tat, at, interval, burst))
                tat = bucket.take(tat, at, interval)
            return self._doc(tat), (True, waits)

        return self._link.transact(self._key, change, _lost, can_wait=False)

    def drain(self, seconds: float) -> None:
        """Lets nothing pass for so long, in any process."""
        interval, burst = self._interval, self._burst
        with self._lock:
            self._places.clear()

        def change(old: Any, at: float) -> tuple[Any, None]:
            return self._doc(bucket.drained(_tat(old, at), at, interval, burst, seconds)), None

        try:
            self._link.transact(self._key, change, _lost)
        except StoreUnavailable:
            pass


def _tat(doc: Any, at: float) -> float:
    """The number in a document; that of an unused limiter for none and for garbage."""
    tat = doc.get("tat") if isinstance(doc, dict) else None
    return float(tat) if isinstance(tat, (int, float)) and abs(at) + YEAR > tat > at - YEAR else at


def _lost(answer: Any) -> None:
    """Places that came too late for their call are lost."""
