"""The retries of all processes together: the books of a budget, kept in a store.

A call that needs no retry asks nobody: first attempts are told ten times a second at most, by the store's clerk. Each
retry is asked for, unless the books as last seen have no room. While the store is away they go on with what happens
here, so that after `ttl` seconds they are those of this process alone.
"""

from __future__ import annotations

import threading

from ..core.errors import StoreUnavailable
from ..core.logs import logger
from ..rules import budget as rules
from ..stores.line import AWAY
from ..stores.link import link_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..stores.port import Change, Store
    from .retry_budget import RetryBudget

TELL_EVERY = 0.1  # seconds between two tales of first attempts
ON_CREDIT = 4  # retries from the minimum that a process makes while the store is slow
PREFIX = "budget/"


class SharedBudget:
    """The part of a retry budget that lives in a store. Safe to share between threads."""

    def __init__(self, store: Store, budget: RetryBudget) -> None:
        self.store = store
        self._link = link_to(store)
        self._key = f"{PREFIX}{budget.name}"
        self._clock = budget._clock
        self._ttl = budget.ttl
        self._limits = budget.ratio, budget.min_per_second
        self._has_warned = False
        self.fresh()
        self._link.start()  # reaches the store meanwhile, so that the first retry need not wait for that

    def fresh(self) -> None:
        """Empty books: the child of a fork has counted nothing, and nothing that its parent has not told."""
        self._lock = threading.Lock()
        self._books = rules.Spending()  # as last seen in the store, with what has happened here since
        self._ahead = 0.0  # of the store's time, in seconds
        self._firsts = self._retries = 0  # in the books and not told yet
        self._due = float("-inf")

    def first_attempt(self) -> None:
        """Counts a call that makes its first attempt; the store hears of it later."""
        now = self._clock.monotonic()
        with self._lock:
            rules.first_attempt(self._books, now + self._ahead, self._ttl)
            self._firsts += 1
            if now < self._due or self._link.state is AWAY:
                return
            self._due = now + TELL_EVERY
            untold = self._untold_held()
        self._link.later(self._key, self._change(*untold, asks=False), self._learn)

    def take_retry(self) -> bool:
        """Whether one more retry may be made; it is counted at once, for all processes."""
        at = self._clock.monotonic() + self._ahead
        with self._lock:
            if not rules.allows_retry(self._books, at, self._ttl, *self._limits):
                return False
            if self._link.state is AWAY:
                return self._take_here_held(at)
            firsts, retries = self._untold_held()
        try:
            answer = self._link.transact(
                self._key, self._change(firsts, retries, asks=True), self._learn, can_wait=False
            )
        except StoreUnavailable:
            with self._lock:
                self._retries += retries  # told twice, maybe: rather a retry too few than one too many
                return self._take_here_held(at)
        return self._learn(answer)

    def _take_here_held(self, at: float) -> bool:
        ratio, least = self._limits
        if self._retries >= ON_CREDIT and self._link.is_expected():
            least = 0.0  # the minimum is the fleet's, and it may be spent already
        is_granted = rules.take_retry(self._books, at, self._ttl, ratio, least)
        self._retries += is_granted
        return is_granted

    def _untold_held(self) -> tuple[int, int]:
        """What the store has not heard, as far as it is still in the books."""
        untold = min(self._firsts, self._books.total_firsts), min(self._retries, self._books.total_retries)
        self._firsts = self._retries = 0
        return untold

    def _change(self, firsts: int, retries: int, asks: bool) -> Change:
        ttl, (ratio, least) = self._ttl, self._limits
        limits = {"ratio": ratio, "min_per_second": least, "ttl": ttl}

        def change(old: Any, at: float) -> tuple[Any, Any]:
            books = rules.from_document(old, at, ttl)
            rules.first_attempt(books, at, ttl, firsts)
            rules.retries_made(books, at, ttl, retries)
            is_granted = asks and rules.take_retry(books, at, ttl, ratio, least)
            theirs = {key: old.get(key) for key in limits} if isinstance(old, dict) and "ttl" in old else limits
            return {"version": 1, **limits, **books.to_plain()}, (is_granted, books, at, theirs)

        return change

    def _learn(self, answer: Any) -> bool:
        """Takes over what the store says; whether it has granted a retry."""
        is_granted, books, at, theirs = answer
        with self._lock:
            self._ahead = at - self._clock.monotonic()
            rules.first_attempt(books, at, self._ttl, self._firsts)
            rules.retries_made(books, at, self._ttl, self._retries)
            self._books = books
            warns = not self._has_warned and tuple(theirs.values()) != (*self._limits, self._ttl)
            self._has_warned = self._has_warned or warns
        if warns:
            mine = f"ratio={self._limits[0]}, min_per_second={self._limits[1]}, ttl={self._ttl}"
            logger("store").warning(
                "%s: another process has the limits %s, this one keeps to its own (%s)", self._key, theirs, mine
            )
        return bool(is_granted)
