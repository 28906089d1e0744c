"""What a manager watches while its calls run: alerts, the limits of the process, what the health score needs."""

from __future__ import annotations

import os
import threading
import weakref

from .core.clock import SYSTEM
from .core.forks import living
from .monitoring.alerts import KINDS, Alerts, Observation, rates
from .monitoring.sampling import Sampler
from .workers.ledger import LEDGER
from .workers.throttle import Throttle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from .core.clock import Clock
    from .core.events import EventStream
    from .monitoring.operations import OperationStats
    from .monitoring.performance import PerformanceMonitor
    from .operation import Operation
    from .resources import ResourceManager
    from .strategies.bulkhead import Bulkhead
    from .strategies.circuit_breaker import CircuitBreaker

INTERVAL = 5.0  # seconds between two looks while nobody asks
_REFUSING = frozenset(("open", "half_open", "forced_open"))


class Watch:
    """Looks at the parts of one manager. `breakers` and `operations` are the manager's own, by name.

    Alerts are judged when they are read, at each failure that somebody listens for, and every 5 s on a thread once
    somebody listens (with the system's clock; under another one time passes only for who reads it).
    """

    def __init__(
        self,
        monitor: PerformanceMonitor,
        resources: ResourceManager,
        events: EventStream,
        *,
        clock: Clock,
        breakers: Mapping[str, CircuitBreaker],
        operations: Mapping[str, Operation],
        critical: Iterable[str] = (),
    ) -> None:
        self._monitor = monitor
        self._resources = resources
        self._events = events
        self.clock = self._clock = clock
        self._breakers = breakers
        self._operations = operations
        self._critical = frozenset(critical)
        self.alerts = Alerts(self.observations, clock=clock, events=events)
        self.throttle = Throttle(monitor.usage, clock=clock, events=events)
        self._starting = threading.Lock()
        self._wanted = False
        self._sampler: Sampler | None = None
        me = weakref.ref(self)
        monitor.on_trouble = lambda stats: _call(me(), "_on_trouble", stats)
        monitor.on_tally = lambda: _call(me(), "_on_tally")
        monitor.on_sample = lambda: _call(me(), "sample")
        events.on_subscribe = lambda kinds: _call(me(), "_on_subscribe", kinds)
        _all.add(self)

    def now(self) -> float:
        """The manager's clock, in seconds."""
        return self._clock.monotonic()

    def breakers(self) -> dict[str, CircuitBreaker]:
        """The breakers by name."""
        return dict(self._breakers)

    def bulkheads(self) -> dict[str, Bulkhead]:
        """The bulkheads of the operations that have one, by name of the operation."""
        found = ((name, operation.parts.bulkhead) for name, operation in list(self._operations.items()))
        return {name: bulkhead for name, bulkhead in found if bulkhead is not None}

    # -- alerts --------------------------------------------------------------------------------------------------

    def observations(self) -> list[Observation]:
        """Everything the five rules look at, as it is now."""
        now = self._clock.monotonic()
        seen = rates(self._monitor.recent(), self.critical())
        for name, breaker in list(self._breakers.items()):
            if str(breaker.state) in _REFUSING:
                since = breaker.stats.not_closed_since
                seen.append(Observation("breaker_open", name, None if since is None else now - since))
        seen += [Observation("resource_usage", name, share, "resource") for name, share in self.usage().items()]
        return seen

    def critical(self) -> set[str]:
        """The operations that the error-rate alert looks at."""
        marked = (name for name, operation in list(self._operations.items()) if operation.critical)
        return {*self._critical, *marked}

    def usage(self) -> dict[str, float | None]:
        """The share of each limit in use: of the process, and of the resource types that have one."""
        return {**self._resources.usage(), **self._monitor.usage()}

    def _on_trouble(self, stats: OperationStats) -> None:
        """Judges the rates of one operation after a failure or retry, in its call, when somebody listens."""
        if self._events.wants("alert_fired"):
            recent = {stats.name: stats.recent(self._clock.monotonic())[0]}
            self.alerts.judge(rates(recent, self.critical()))

    # -- while nobody asks ---------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Judges everything once."""
        self.throttle.look()
        self.alerts.evaluate()
        self._resources.detect_leaks()

    def start(self) -> None:
        """Judges every 5 s on a daemon thread until `stop()`; idempotent."""
        self._wanted = True
        if self._clock is not SYSTEM:
            return
        with self._starting:
            if self._sampler is None:
                try:
                    self._sampler = Sampler(self, INTERVAL, name="resilience-watch")
                except RuntimeError:  # no thread to be had: the next call tries again
                    pass

    def stop(self) -> None:
        """Ends the thread; idempotent."""
        self._wanted = False
        with self._starting:
            sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    def _on_subscribe(self, kinds: frozenset[str]) -> None:
        if not kinds.isdisjoint(KINDS):
            self.start()

    def _on_tally(self) -> None:
        self.throttle.look()
        if self._wanted and self._sampler is None:
            self.start()

    def _after_fork(self) -> None:
        self._starting = threading.Lock()
        self._sampler = None

    # -- health --------------------------------------------------------------------------------------------------

    def surroundings(self) -> dict[str, Any]:
        """What the health score needs beside the monitor's own figures."""
        breakers = {name: str(breaker.state) for name, breaker in list(self._breakers.items())}
        mine = set(self._operations)
        abandoned = sum(count for name, count in LEDGER.abandoned_by_operation().items() if name in mine)
        leaks = sum(counters["leaks_detected"] for counters in self._resources.stats().values())
        return {"breakers": breakers, "abandoned": abandoned, "leaks": leaks}


def _call(watch: Watch | None, method: str, *args: Any) -> Any:
    return None if watch is None else getattr(watch, method)(*args)


_all: weakref.WeakSet[Watch] = weakref.WeakSet()


def _after_fork() -> None:
    for watch in living(_all):
        watch._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
