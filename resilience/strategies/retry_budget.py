"""A budget that bounds the retries of all calls together, so that a fleet of callers cannot bury a sick service."""

from __future__ import annotations

import os
import threading
import weakref

from ..core.clock import SYSTEM
from ..core.errors import ConfigError, require, require_seconds
from ..core.forks import living
from ..rules import budget as rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..core.clock import Clock
    from ..stores.port import Store
    from .budget_shared import SharedBudget

_by_name: weakref.WeakValueDictionary[tuple[str, Store | None], RetryBudget] = weakref.WeakValueDictionary()
_living: weakref.WeakSet[RetryBudget] = weakref.WeakSet()
_names = threading.Lock()
SHORTEST = 1e-3  # seconds: below it the clock is no finer than the slots of the window


class RetryBudget:
    """Allows retries while they are fewer than `ratio` of the first attempts of the last `ttl` seconds.

    At least `min_per_second * ttl` are always allowed. The same `name` gives the same budget; other parameters under a
    living name, or another `clock`, raise `ConfigError`. Safe to share between threads; a forked child begins with
    empty books. Pickled by its parameters (source of the defaults: Finagle's RetryBudget).

    With a `store` (or the URL of one) all processes that use the `name` there spend one budget. First attempts are told
    to it from time to time, each retry is asked for (50 ms at most). While it is away each process goes on with what it
    knew, and after `ttl` seconds has a budget of its own. One that others use with other parameters warns once.
    """

    name: str | None
    ratio: float
    min_per_second: float
    ttl: float

    def __new__(
        cls,
        ratio: float = 0.2,
        min_per_second: float = 1.0,
        ttl: float = 10.0,
        name: str | None = None,
        *,
        clock: Clock | None = None,
        store: Store | str | None = None,
    ) -> RetryBudget:
        _require_number("ratio", ratio)
        _require_number("min_per_second", min_per_second)
        require_seconds("ttl", ttl, positive=True)
        require(ttl >= SHORTEST, "ttl", ttl, f"expected at least {SHORTEST} seconds")
        require(name is None or isinstance(name, str), "name", name, "expected a name or None")
        budget = super().__new__(cls)
        shares = None if store is None else _as_store(store, budget)
        require(shares is None or name is not None, "name", name, "expected a name: a store shares a budget by it")
        with _names:
            living = _by_name.get((name, shares)) if name is not None else None
            if living is not None:
                if (living.ratio, living.min_per_second, living.ttl) != (ratio, min_per_second, ttl):
                    raise ConfigError(f"budget {name!r} lives with {living!r}", key="name", value=name)
                if clock is not None and clock is not living._clock:
                    raise ConfigError(f"budget {name!r} lives with {living._clock!r}", key="clock", value=clock)
                return living
            budget.name, budget.ratio, budget.min_per_second, budget.ttl = name, ratio, min_per_second, ttl
            budget._clock = clock or SYSTEM
            budget._shared = None if shares is None else _shared(shares, budget)
            budget._fresh()
            _living.add(budget)
            if name is not None:
                _by_name[name, shares] = budget
            return budget

    if TYPE_CHECKING:
        _clock: Clock
        _lock: threading.Lock
        _shared: SharedBudget | None
        _spending: rules.Spending

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._spending = rules.Spending()
        if self._shared is not None:
            self._shared.fresh()

    def first_attempt(self) -> None:
        """Counts a call that makes its first attempt."""
        if self._shared is not None:
            self._shared.first_attempt()
            return
        now = self._clock.monotonic()
        with self._lock:
            rules.first_attempt(self._spending, now, self.ttl)

    def take_retry(self) -> bool:
        """Whether one more retry may be made; it is counted at once, also while it still sleeps."""
        if self._shared is not None:
            return self._shared.take_retry()
        now = self._clock.monotonic()
        with self._lock:
            return rules.take_retry(self._spending, now, self.ttl, self.ratio, self.min_per_second)

    def __copy__(self) -> RetryBudget:
        return self

    def __deepcopy__(self, memo: Any) -> RetryBudget:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        where = None if self._shared is None else self._shared.store.url
        return _revived, (self.ratio, self.min_per_second, self.ttl, self.name, where)

    def __repr__(self) -> str:
        limits = f"ratio={self.ratio}, min_per_second={self.min_per_second}, ttl={self.ttl}"
        return f"RetryBudget({limits}, name={self.name!r})"


def _require_number(key: str, value: object) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
    require(fine, key, value, "expected a finite number of 0 or more")


def _revived(ratio: float, min_per_second: float, ttl: float, name: str | None, store: str | None) -> RetryBudget:
    """A budget in another process, or a copy in this one."""
    if store is not None:
        for budget in living(_living):
            shared = budget._shared
            if budget.name == name and shared is not None and shared.store.url == store:
                return budget
    return RetryBudget(ratio, min_per_second, ttl, name, store=store)


def _as_store(store: Store | str, user: RetryBudget) -> Store:
    from ..stores.opening import as_store

    return as_store(store, user)


def _shared(store: Store, budget: RetryBudget) -> SharedBudget:
    from .budget_shared import SharedBudget

    return SharedBudget(store, budget)


def _after_fork() -> None:
    global _names  # a lock that another thread of the parent held is nobody's in the child
    _names = threading.Lock()
    for budget in living(_living):
        budget._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
