"""What an operation is built of: the parts that guard it, and the surroundings it shares with others of its manager.

The order is that of the contract, outermost first: fallback, bulkhead, total deadline, retry, breaker, rate limit,
attempt timeout, function. The total deadline is armed on entry, before everything.
"""

from __future__ import annotations

import threading

from .core.forks import afresh_in_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .core.clock import Clock
    from .core.events import EventStream
    from .core.pipeline import Strategy
    from .monitoring.error_report import ErrorReport
    from .strategies.bulkhead import Bulkhead
    from .strategies.circuit_breaker import CircuitBreaker
    from .strategies.rate_limiter import RateLimiter
    from .strategies.retry import RetryPolicy
    from .timeouts import TimeoutManager
    from .workers.ledger import Register
    from .workers.processes import ProcessWorkers
    from .workers.threads import ThreadWorkers


class Surroundings:
    """What all operations of a manager have in common."""

    __slots__ = ("__weakref__", "clock", "errors", "events", "making", "register", "timeouts")

    def __init__(
        self,
        *,
        clock: Clock,
        events: EventStream,
        errors: ErrorReport,
        timeouts: TimeoutManager,
        register: Register | None = None,
    ) -> None:
        self.clock = clock
        self.events = events
        self.errors = errors
        self.timeouts = timeouts
        self.register = register
        self.fresh_locks()
        afresh_in_children(self)

    def fresh_locks(self) -> None:
        """A lock of its own: at the start, and in a forked child."""
        self.making = threading.RLock()  # held while an operation makes its workers


class Parts:
    """What guards one operation; None where nothing does. Times in seconds."""

    __slots__ = (
        "breaker",
        "bulkhead",
        "fallback",
        "isolation",
        "limiter",
        "max_abandoned",
        "memory_limit",
        "policy",
        "timeout",
        "total",
    )

    def __init__(
        self,
        *,
        policy: RetryPolicy | None = None,
        breaker: CircuitBreaker | None = None,
        bulkhead: Bulkhead | None = None,
        limiter: RateLimiter | None = None,
        fallback: Strategy | None = None,
        timeout: float | None = None,
        total: float | None = None,
        isolation: str = "thread",
        max_abandoned: int = 8,
        memory_limit: int | None = None,
    ) -> None:
        self.policy = policy
        self.breaker = breaker
        self.bulkhead = bulkhead
        self.limiter = limiter
        self.fallback = fallback
        self.timeout = timeout
        self.total = total
        self.isolation = isolation
        self.max_abandoned = max_abandoned
        self.memory_limit = memory_limit

    def replaced(self, **changes: Any) -> Parts:
        """A copy with these parts changed."""
        return Parts(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})

    def strategies(
        self,
        name: str,
        isolation: str,
        clock: Clock,
        events: EventStream,
        workers: ThreadWorkers | ProcessWorkers | None,
    ) -> tuple[Any, ...]:
        """The strategies in their order, outermost first."""
        from .strategies.retry import Retry
        from .strategies.timeout import Timeout

        retry = None if self.policy is None else Retry(self.policy, name=name, clock=clock, events=events)
        timeout = None
        if self.timeout is not None:
            timeout = Timeout(
                self.timeout,
                isolation=isolation,
                max_abandoned=self.max_abandoned,
                name=name,
                clock=clock,
                events=events,
                workers=workers,
            )
        every = (self.fallback, self.bulkhead, retry, self.breaker, self.limiter, timeout)
        return tuple(part for part in every if part is not None)
