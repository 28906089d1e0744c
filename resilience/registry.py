"""What guards each name: what was registered for it or configured, and the operations built from that."""

from __future__ import annotations

import threading
import weakref

from .core.errors import ConfigError
from .core.forks import afresh_in_children
from .operation import Operation
from .parts import Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .config.sources import Settings
    from .core.clock import Clock
    from .core.events import EventStream
    from .strategies.bulkhead import Bulkhead
    from .strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
    from .timeouts import TimeoutManager

    Adapt = Callable[[Parts], Parts]


class Registry:
    """The guards and operations of one manager, by name. Safe to use from any thread.

    `make(name, adapt)` gives a bare operation; `obey(bulkhead)` is told of each bulkhead before it is used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        events: EventStream,
        timeouts: TimeoutManager,
        store: Any,
        make: Callable[[str, Adapt | None], Operation],
        obey: Callable[[Bulkhead], object],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._local: dict[str, Any] = {"clock": clock, "events": events}
        self._shared: dict[str, Any] = {**self._local, "store": store}
        self._timeouts = timeouts
        self._make = make
        self._obey = obey
        self._registered: dict[str, dict[str, Any]] = {}
        self._configured: dict[str, dict[str, Any]] = {}
        self._adapted: dict[str, weakref.WeakSet[Operation]] = {}
        self.operations: dict[str, Operation] = {}
        self.breakers: dict[str, CircuitBreaker] = {}
        self.fresh_locks()
        afresh_in_children(self)

    def fresh_locks(self) -> None:
        """A lock of its own: at the start, and in a forked child."""
        self._lock = threading.RLock()

    # -- guards ------------------------------------------------------------------------------------------------

    def register(self, name: str, **parts: Any) -> None:
        """Guards the operation `name` with these parts from now on."""
        if (bulkhead := parts.get("bulkhead")) is not None:
            self._obey(bulkhead)
        with self._lock:
            self._registered.setdefault(name, {}).update(parts)
            self._rebuild_held(name)

    def adopt_breaker(self, name: str, breaker: CircuitBreaker) -> None:
        """Guards the operation `name` with a breaker made elsewhere."""
        with self._lock:
            self.breakers[name] = breaker
            self._rebuild_held(name)

    def breaker(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        """The breaker of this name, made at the first call. Raises `ConfigError` for another `config`."""
        from .strategies.circuit_breaker import CircuitBreaker

        with self._lock:
            breaker = self.breakers.get(name)
            if breaker is None:
                breaker = CircuitBreaker(name, config or self._settings.breaker_config(name), **self._shared)
                self.breakers[name] = breaker
                self._rebuild_held(name)
            elif config is not None and config != breaker.config:
                raise ConfigError(
                    f"breaker {name!r} lives with {breaker.config}; a different configuration needs another name",
                    key="config", value=config,
                )  # fmt: skip
            return breaker

    def living_breaker(self, name: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        """The breaker of this name whatever its configuration, made with `config` where there is none yet."""
        with self._lock:
            return self.breakers.get(name) or self.breaker(name, config)

    def breaker_config(self, name: str) -> CircuitBreakerConfig:
        """The configuration of the operation's breaker where one lives, else the configured one."""
        with self._lock:
            breaker = self.breakers.get(name)
        return self._settings.breaker_config(name) if breaker is None else breaker.config

    # -- operations --------------------------------------------------------------------------------------------

    def operation(self, name: str) -> Operation:
        """The named operation, made at its first use."""
        with self._lock:
            if name not in self.operations:
                self.operations[name] = self._built_held(name)
            return self.operations[name]

    def adapted(self, name: str, adapt: Adapt) -> Operation:
        """An operation under the same name whose parts `adapt` changes; it lives as long as who asked for it."""
        with self._lock:
            operation = self._built_held(name, adapt)
            self._adapted.setdefault(name, weakref.WeakSet()).add(operation)
            return operation

    def every(self) -> list[Operation]:
        """All living operations."""
        with self._lock:
            return [*self.operations.values(), *(one for many in self._adapted.values() for one in many)]

    def rebuild(self) -> None:
        """Builds every operation anew: what was configured for all of them has changed."""
        with self._lock:
            for name in {*self.operations, *self._adapted}:
                self._rebuild_held(name)

    def _built_held(self, name: str, adapt: Adapt | None = None) -> Operation:
        operation = self._make(name, adapt)
        operation.critical = self._settings.is_critical(name)
        operation.build(self._parts_held(name))
        return operation

    def _rebuild_held(self, name: str) -> None:
        operation = self.operations.get(name)
        for living in (*([operation] if operation is not None else ()), *self._adapted.get(name, ())):
            living.build(self._parts_held(name))

    def _parts_held(self, name: str) -> Parts:
        settings = self._settings
        if settings.has_breaker(name) and name not in self.breakers:
            self.breaker(name)
        limits = dict(self._limits_held(name))
        chosen = {
            "policy": settings.retry_policy(name, limits.pop("budget", None)),
            "fallback": None,
            "timeout": None if settings.is_untimed(name) else self._timeouts.timeout_of(name),
            "total": settings.total_timeout(name),
            "memory_limit": settings.memory_limit(name),
            **limits,
            **self._registered.get(name, {}),
        }
        return Parts(breaker=self.breakers.get(name), isolation=settings.isolation(name), **chosen)

    def _limits_held(self, name: str) -> dict[str, Any]:
        """The configured bulkhead, rate limiter and retry budget, made once: they know who is inside."""
        limits = self._configured.get(name)
        if limits is None:
            bulkhead = self._settings.bulkhead(name, **self._shared)
            if bulkhead is not None:
                self._obey(bulkhead)
            found = {
                "bulkhead": bulkhead,
                "limiter": self._settings.rate_limit(name, **self._shared),
                "budget": self._settings.retry_budget(name, store=self._store, clock=self._clock),
            }
            if not any(found.values()):
                return _NONE
            limits = self._configured[name] = found
        return limits


_NONE: dict[str, Any] = {}
