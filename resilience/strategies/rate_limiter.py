"""Rate limiter: at most so many calls start in a period, evenly after a burst."""

from __future__ import annotations

import functools
import os
import threading
import weakref

from ..core import ambient
from ..core.clock import SYSTEM
from ..core.context import pause
from ..core.errors import RateLimitExceeded, StoreUnavailable, require, require_count, require_seconds
from ..core.forks import living
from ..core.pipeline import refuse_async, refuse_awaitable
from ..rules import bucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    from ..core.clock import Clock
    from ..core.events import EventStream
    from ..core.pipeline import Call
    from ..stores.port import Store
    from .rate_shared import SharedRate

    P = ParamSpec("P")
    R = TypeVar("R")


class RateLimiter:
    """`rate` calls per `per` seconds, `burst` of them at once (by default as many as `rate`, at least one).

    A call that would have to wait longer than `max_wait`, or than the deadline allows, is refused at once with
    `RateLimitExceeded`; others wait in the order they came. A call that ends with an HTTP error 429 and its Retry-After
    lets nothing more pass for that long. In any period at most `rate + burst` calls start. Safe to
    share between threads. With a `store` (or the URL of one) that holds for all processes that use the name there;
    while the store is away each process keeps to the rate on its own.
    """

    def __init__(
        self,
        name: str,
        rate: float,
        per: float = 1.0,
        burst: int | None = None,
        max_wait: float = 0.0,
        *,
        clock: Clock | None = None,
        events: EventStream | None = None,
        store: Store | str | None = None,
    ) -> None:
        fine = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < float("inf")
        require(fine, "rate", rate, "expected a finite number of calls above 0")
        require_seconds("per", per, positive=True)
        require_count("burst", burst, optional=True)
        require_seconds("max_wait", max_wait)
        self.name = name
        self.rate = rate
        self.per = per
        self.burst = max(1, int(rate)) if burst is None else burst
        self.max_wait = max_wait
        self.clock = clock or SYSTEM
        self.events = events
        self.interval = per / rate
        self.slack = (self.burst - 1) * self.interval
        self.tat = float("-inf")
        self._lock = threading.Lock()
        self.shared: SharedRate | None = None if store is None else _shared(store, self)
        _all.add(self)

    def acquire(self) -> float:
        """Takes the next place and waits for it; gives the seconds waited. Raises `RateLimitExceeded` at once."""
        is_granted, wait = self._take_shared() if self.shared is not None else self._take()
        if not is_granted:
            if self.events is not None:
                self.events.emit("call_rejected", self.name, reason="rate limit", retry_after=wait)
            raise RateLimitExceeded(name=self.name, retry_after=wait)
        if wait > 0:
            pause(wait, ambient.current(), self.clock)
        return wait

    def _take(self) -> tuple[bool, float]:
        """Whether the next place comes in time, and after how many seconds."""
        with self._lock:
            now = self.clock.monotonic()
            wait = bucket.wait_for(self.tat, now, self.interval, self.burst)
            left = ambient.remaining()
            if wait > self.max_wait or (left is not None and wait > 0 and wait >= left):
                return False, wait
            # one statement, as in the express lane: no place is given out twice
            self.tat = (tat if (tat := self.tat) > now else now) + self.interval
        return True, wait

    def _take_shared(self) -> tuple[bool, float]:
        assert self.shared is not None
        left = ambient.remaining()
        allowed = self.max_wait if left is None else min(self.max_wait, max(0.0, left - 1e-6))
        try:
            return self.shared.take(self.clock.monotonic(), allowed)
        except StoreUnavailable:
            return self._take()

    def drain(self, retry_after: float) -> None:
        """Lets nothing pass for `retry_after` seconds: the other side has said that it is too much (429)."""
        require_seconds("retry_after", retry_after)
        if self.shared is not None:
            self.shared.drain(retry_after)
        with self._lock:
            now = self.clock.monotonic()
            self.tat = bucket.drained(self.tat, now, self.interval, self.burst, retry_after)

    def heed(self, error: Exception) -> None:
        """Drains for the time that `error` names, where it is an HTTP answer 429 with a Retry-After."""
        from ..core.classify import classify

        verdict = classify(error)
        if verdict.retry_after and "http:429" in verdict.reason:
            self.drain(verdict.retry_after)

    def retry_after(self) -> float:
        """Seconds until a call would pass; 0.0 when one would now."""
        return bucket.wait_for(self.tat, self.clock.monotonic(), self.interval, self.burst)

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline at its place in the line."""
        if call.replay is None:  # else the express lane has taken this attempt's place already
            self.acquire()
        try:
            return proceed(call)
        except Exception as error:
            self.heed(error)
            raise

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn(*args, **kwargs)` at its place in the line."""
        self.acquire()
        try:
            return refuse_awaitable(fn, fn(*args, **kwargs))
        except Exception as error:
            self.heed(error)
            raise

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        refuse_async(fn)

        @functools.wraps(fn)
        def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.call(fn, *args, **kwargs)

        return limited

    def __repr__(self) -> str:
        return f"<RateLimiter {self.name!r}: {self.rate:g} per {self.per:g} s, burst {self.burst}>"


def _shared(store: Store | str, limiter: RateLimiter) -> SharedRate:
    from ..stores.opening import as_store
    from .rate_shared import SharedRate

    return SharedRate(as_store(store, limiter), limiter.name, limiter.interval, limiter.burst)


_all: weakref.WeakSet[RateLimiter] = weakref.WeakSet()


def _after_fork() -> None:
    for limiter in living(_all):
        limiter._lock = threading.Lock()
        if limiter.shared is not None:
            limiter.shared.fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
