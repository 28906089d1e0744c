"""The error recovery manager: named operations, and one place that knows them all."""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
import weakref

from .agent import presence
from .agent.sources import of_manager
from .core import lifecycle
from .core.clock import SYSTEM
from .core.errors import require_seconds
from .core.events import EventStream
from .core.forks import afresh_in_children, living
from .core.pipeline import Call, refuse_async
from .lane import express
from .operation import Operation, OperationResult
from .parts import Parts, Surroundings
from .registry import Registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from typing import Any, ParamSpec, TypeVar

    from .config.sources import Settings
    from .core.clock import Clock
    from .monitoring.alerts import Alerts
    from .monitoring.error_report import ErrorReport
    from .monitoring.performance import PerformanceMonitor
    from .resources import ResourceManager
    from .strategies.bulkhead import Bulkhead
    from .strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
    from .strategies.rate_limiter import RateLimiter
    from .strategies.retry import RetryPolicy
    from .timeouts import TimeoutManager
    from .workers.threads import ThreadWorkers

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["ErrorRecoveryManager", "OperationResult", "default_manager", "protect", "shutdown"]

_managers: weakref.WeakSet[ErrorRecoveryManager] = weakref.WeakSet()
_default: dict[str, ErrorRecoveryManager] = {}  # the one of this process; single operations only: atomic without a lock


class ErrorRecoveryManager:
    """Runs calls under the name of an operation, with every policy that is registered for the name.

    Without settings the defaults of the specification apply. Files and the environment are read by `from_config` only.
    Safe to use from any thread; a context manager. `clock` governs all waits and durations in process. In `store` it
    leaves an account of its calls, errors and alerts for `resilience report`. A store given by its URL is shared by all
    in this process that name the same one; closing the last of them closes it.
    """

    def __init__(self, *, store: Any = None, clock: Clock | None = None, settings: Settings | None = None) -> None:
        from .config.sources import default_settings
        from .monitoring.error_report import ErrorReport
        from .monitoring.performance import PerformanceMonitor
        from .resources import ResourceManager
        from .stores.opening import as_store
        from .timeouts import TimeoutManager
        from .watch import Watch

        self._clock = clock or SYSTEM
        self._store = None if store is None else as_store(store, self)
        self._settings = settings or default_settings()
        self.fresh_locks()
        self._submitters: dict[str, ThreadWorkers] = {}
        self._degraded = False
        self._closed = False
        self.events = EventStream(clock=self._clock)
        self.errors: ErrorReport = ErrorReport(clock=self._clock)
        self.monitor: PerformanceMonitor = PerformanceMonitor(clock=self._clock)
        self.errors.count_calls = self.monitor.count_calls
        self.timeouts: TimeoutManager = TimeoutManager(clock=self._clock)
        self.timeouts.update_config(**self._settings.timeouts)
        self.resources: ResourceManager = ResourceManager(clock=self._clock, events=self.events)
        self.timeouts.register = self.resources.own
        self._surroundings = Surroundings(
            clock=self._clock, events=self.events, errors=self.errors, timeouts=self.timeouts,
            register=self.resources.own,
        )  # fmt: skip
        me = weakref.ref(self)
        self._registry = Registry(
            self._settings, clock=self._clock, events=self.events, timeouts=self.timeouts, store=self._store,
            make=lambda name, adapt: me()._make(name, adapt),  # type: ignore[union-attr]  # called by a living manager
            obey=lambda bulkhead: me().watch.throttle.obey(bulkhead),  # type: ignore[union-attr]
        )  # fmt: skip
        self.timeouts.on_change(self._registry.rebuild)
        self._breakers, self._operations = self._registry.breakers, self._registry.operations
        self.watch = Watch(
            self.monitor, self.resources, self.events, clock=self._clock, breakers=self._breakers,
            operations=self._operations, critical=filter(self._settings.is_critical, self._settings.operation_names),
        )  # fmt: skip
        self.alerts: Alerts = self.watch.alerts
        self.monitor.surroundings = self.watch.surroundings
        self._heed_shutdown()
        _managers.add(self)
        afresh_in_children(self)
        presence.tell(self, of_manager)
        self._account = None
        if self._store is not None:
            from .monitoring.accounts import AccountWriter

            self._account = AccountWriter(self._store, self)

    def fresh_locks(self) -> None:
        """Locks of its own: at the start, and in a forked child."""
        self._lock = threading.RLock()

    def _heed_shutdown(self) -> None:
        self._forget_shutdown = lifecycle.on_shutdown(_weakly(self._close_lanes))

    def _close_lanes(self) -> None:
        for operation in self._registry.every():
            operation.close_lanes()

    @classmethod
    def from_config(
        cls,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        store: Any = None,
        clock: Clock | None = None,
    ) -> ErrorRecoveryManager:
        """A manager set up from a YAML file (`path`) and the environment (`env`, by default the process's own).

        Raises `ConfigError` that names the file and line, or the variable, of a value that cannot be used.
        """
        from .config.sources import load_settings

        return cls(store=store, clock=clock, settings=load_settings(path, env))

    # -- what guards a name ------------------------------------------------------------------------------------

    def register_circuit_breaker(self, name: str, config: CircuitBreakerConfig | CircuitBreaker | None = None) -> None:
        """Guards the operation `name` with a breaker of this configuration (None: the configured values).

        Raises `ConfigError` when a breaker of another configuration lives under the name.
        """
        from .strategies.circuit_breaker import CircuitBreaker

        if isinstance(config, CircuitBreaker):
            self._registry.adopt_breaker(name, config)
        else:
            self._registry.breaker(name, config)

    def register_retry_policy(self, name: str, policy: RetryPolicy) -> None:
        """Retries the operation `name` by this policy."""
        self._registry.register(name, policy=policy)

    def register_timeout(self, name: str, seconds: float | None, *, total: float | None = None) -> None:
        """Bounds one attempt of the operation to `seconds`, and the whole call with its retries to `total`."""
        require_seconds("seconds", seconds, positive=True, optional=True)
        require_seconds("total", total, positive=True, optional=True)
        self._registry.register(name, timeout=seconds, total=total)

    def register_bulkhead(self, name: str, bulkhead: Bulkhead) -> None:
        """Limits how many calls of the operation run at once."""
        self._registry.register(name, bulkhead=bulkhead)

    def register_rate_limiter(self, name: str, limiter: RateLimiter) -> None:
        """Limits how many attempts of the operation start in a period."""
        self._registry.register(name, limiter=limiter)

    def register_fallback(self, name: str, fallback: Any) -> None:
        """Answers for the operation when it fails: a `Fallback`, a `LastGood`, or a value or callable for one."""
        self._registry.register(name, fallback=self._as_fallback(name, fallback))

    def circuit_breaker(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        """The breaker of this name, made at the first call; from then on it guards the operation `name`.

        Raises `ConfigError` when `config` differs from that of the living breaker.
        """
        return self._registry.breaker(name, config)

    # -- calling -----------------------------------------------------------------------------------------------

    def operation(self, name: str) -> Operation:
        """The named operation, made at its first use."""
        try:
            return self._operations[name]
        except KeyError:
            return self._registry.operation(name)

    def adapted_operation(self, name: str, adapt: Callable[[Parts], Parts]) -> Operation:
        """The operation `name` as an integration calls it: `adapt` changes its parts, it counts under the same name.

        It follows what is registered later, and lives as long as who asked for it.
        """
        return self._registry.adapted(name, adapt)

    def _make(self, name: str, adapt: Callable[[Parts], Parts] | None) -> Operation:
        return Operation(name, self._surroundings, self.monitor.stats_of(name), adapt)

    def living_breaker(self, name: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        """The breaker of this name whatever its configuration, made with `config` where there is none yet."""
        return self._registry.living_breaker(name, config)

    def breaker_config(self, name: str) -> CircuitBreakerConfig:
        """The configuration of the operation's breaker where one lives, else the configured one."""
        return self._registry.breaker_config(name)

    def execute_with_retry(self, name: str, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> R:
        """Calls `fn(*args, **kwargs)` under every policy of the operation `name`; gives its value.

        Raises the last error of an attempt that ran, unchanged, with its `resilience.history`; or the rejection when
        nothing ran.
        """
        return self.operation(name).call(fn, *args, **kwargs)  # type: ignore[no-any-return]  # R by composition

    def execute_with_recovery(
        self, name: str, fn: Callable[..., Any], /, *args: Any, fallback: Any = None, **kwargs: Any
    ) -> OperationResult:
        """Like `execute_with_retry`, but tells how it ended; `fallback` (a value or a callable) answers a failure."""
        answer = None if fallback is None else self._as_fallback(name, fallback)
        return self.operation(name).result_of(Call(fn, args, kwargs, name), fallback=answer)

    def submit(self, name: str, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Starts the call on a worker thread and gives its Future; it counts as active from now on.

        Raises `ShutdownInProgress` once the manager is closed or the process stops.
        """
        from .workers.threads import ThreadWorkers

        operation = self.operation(name)
        if operation.is_closed():
            raise operation.refused()
        with self._lock:
            if name not in self._submitters:
                self._submitters[name] = ThreadWorkers(f"{name} (submitted)", register=self.resources.own)
            workers = self._submitters[name]
        try:
            return workers.submit(operation.call, fn, *args, **kwargs)
        except RuntimeError as error:
            if operation.is_closed():  # meanwhile; else there is no thread to be had
                raise operation.refused() from error
            raise

    def protect(
        self, name: str, *, isolation: str | None = None, critical: bool = False
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator that runs each call of the function as the operation `name`.

        `isolation` overrides where its attempts run; `critical=True` marks the operation for the error-rate alert, also
        when nothing is decorated.
        """
        from .strategies.timeout import require_isolation

        operation = self.operation(name)
        if critical:
            operation.critical = True
        if isolation is not None:
            require_isolation(isolation)

        def decorate(fn: Callable[P, R]) -> Callable[P, R]:
            refuse_async(fn)
            protected = express(operation, fn, isolation)
            protected.__resilience_manager__ = self  # type: ignore[attr-defined]  # it lives as long as the function
            return protected

        return decorate

    def _as_fallback(self, name: str, answer: Any) -> Any:
        from .strategies.fallback import Fallback

        if callable(getattr(answer, "run", None)):
            return answer
        return Fallback(answer, name=name, clock=self._clock, events=self.events)

    # -- seeing ------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The whole state as plain data, ready for JSON."""
        from .workers.ledger import LEDGER

        return {
            "breakers": {name: breaker.snapshot() for name, breaker in sorted(self._breakers.copy().items())},
            "operations": self.monitor.operations(),
            "active": [active.as_dict() for active in self.timeouts.active_operations()],
            "resources": self.resources.stats(),
            "errors": self.errors.to_json(),
            "alerts": self.alerts.evaluate(),
            "abandoned": LEDGER.abandoned_by_operation(),
            "alive": LEDGER.alive(),
            "degradation_mode": self._degraded,
            "pressure": self.watch.throttle.reason,
            "closed": self._closed,
        }

    # -- degradation and end -----------------------------------------------------------------------------------

    def enable_degradation_mode(self) -> None:
        """From now on fan-outs run one at a time and optional work is off."""
        if not self._degraded:
            self._degraded = True
            self.events.emit("degraded", "manager", reason="degradation mode enabled")

    def disable_degradation_mode(self) -> None:
        """Back to normal."""
        if self._degraded:
            self._degraded = False
            self.events.emit("restored", "manager", reason="degradation mode disabled")

    @property
    def in_degradation_mode(self) -> bool:
        """Whether fan-outs run one at a time and optional work is off."""
        return self._degraded

    def close(self, grace: float = 5.0) -> None:
        """Admits nothing more, waits up to `grace` seconds for running calls, then cancels them. Idempotent.

        A store that was given by its URL is closed if nobody else uses it; breakers that were handed out go on by what
        they know themselves then, each for its process alone.
        """
        require_seconds("grace", grace)
        if self._closed:
            return
        try:
            self._end(grace)
        finally:
            if self._store is not None:
                from .stores.opening import done_with

                done_with(self._store, self)

    def _end(self, grace: float) -> None:
        self._closed = True
        self._forget_shutdown()
        self._close_lanes()
        try:
            self.timeouts.shutdown(grace=grace)
        finally:  # a Ctrl-C cuts the wait for running calls short, not the end
            self._end_parts()

    def _end_parts(self) -> None:
        if self._account is not None:
            self._account.close()
        self.watch.stop()
        self.monitor.stop()
        with self._lock:
            submitters = list(self._submitters.values())
        for workers in submitters:
            workers.shutdown(wait=False, cancel_futures=True)
        for operation in self._registry.every():
            operation.end_workers()
        self.resources.shutdown()
        self.events.let_go()

    def __enter__(self) -> ErrorRecoveryManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and not sys.is_finalizing():
            try:
                warnings.warn(f"unclosed {self!r}: use `with` or close()", ResourceWarning, stacklevel=2, source=self)
            finally:
                self._end(grace=0.0)

    def __repr__(self) -> str:
        return f"<ErrorRecoveryManager of {len(self._operations)} operations at {id(self):#x}>"


def _weakly(method: Callable[[], Any]) -> Callable[[], Any]:
    """A callback that does not keep the method's object alive; None once that is gone."""
    reference = weakref.WeakMethod(method)

    def call() -> Any:
        living = reference()
        return None if living is None else living()

    return call


@functools.lru_cache(maxsize=1)
def default_manager() -> ErrorRecoveryManager:
    """The process-wide manager behind `resilience.protect`, with the defaults of the specification."""
    import atexit

    made = ErrorRecoveryManager()
    manager = _default.setdefault("manager", made)
    if manager is not made:  # another thread was faster
        made.close(grace=0.0)
        return manager
    atexit.register(manager.close, grace=0.0)
    return manager


def protect(
    name: str, *, isolation: str | None = None, critical: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`default_manager().protect(...)`: one line protects a function."""
    return default_manager().protect(name, isolation=isolation, critical=critical)


def shutdown(grace: float = 5.0) -> None:
    """Wakes every wait of this process with `ShutdownInProgress`, admits nothing more and closes all managers.

    `grace` is how many seconds running calls have to end.
    """
    require_seconds("grace", grace)
    lifecycle.begin_shutdown()
    end = SYSTEM.monotonic() + grace
    for manager in living(_managers):
        manager.close(grace=max(0.0, end - SYSTEM.monotonic()))


def _after_fork() -> None:
    for manager in living(_managers):
        if not manager._closed:
            manager._heed_shutdown()  # the child has forgotten its parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
