"""Resilience for blocking Python: breakers, retries, deadlines, bulkheads and bulk work on threads and processes.

Everything public is listed here and loaded when it is first used, so that `import resilience` costs next to nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .batch import FanOutItem, FanOutResult, fan_out, fan_out_iter
    from .core.ambient import checkpoint, current, deadline, remaining, sleep
    from .core.classify import Classification, Classifier, classify
    from .core.clock import Clock, SystemClock
    from .core.context import OperationContext
    from .core.errors import (
        BulkheadFullError,
        CallRejected,
        CircuitOpenError,
        ConfigError,
        DeadlineExceeded,
        ErrorCategory,
        OperationCancelled,
        OutcomeUnknown,
        RateLimitExceeded,
        ResilienceError,
        RetryAfterTooLong,
        ShutdownInProgress,
        StoreUnavailable,
        WorkerCrashed,
        WorkersExhausted,
    )
    from .core.events import Event, EventStream
    from .core.history import Attempt, AttemptHistory, history
    from .core.lifecycle import install_signal_handlers
    from .core.pipeline import Call, Pipeline
    from .manager import ErrorRecoveryManager, OperationResult, default_manager, protect, shutdown
    from .monitoring.error_report import ErrorReport
    from .monitoring.performance import PerformanceMonitor
    from .resources import ResourceManager, ResourceType
    from .stores.opening import open_store
    from .strategies.bulkhead import Bulkhead
    from .strategies.circuit_breaker import (
        CircuitBreaker,
        CircuitBreakerConfig,
        CircuitState,
        CountWindow,
        Permit,
        TimeWindow,
    )
    from .strategies.fallback import Fallback, LastGood
    from .strategies.rate_limiter import RateLimiter
    from .strategies.retry import Retry, RetryBudget, RetryPolicy
    from .strategies.timeout import Timeout
    from .timeouts import TimeoutManager
    from .worker_group import WorkerGroup

_HOME = {
    "batch": ("FanOutItem", "FanOutResult", "fan_out", "fan_out_iter"),
    "core.ambient": ("checkpoint", "current", "deadline", "remaining", "sleep"),
    "core.classify": ("Classification", "Classifier", "classify"),
    "core.clock": ("Clock", "SystemClock"),
    "core.context": ("OperationContext",),
    "core.errors": (
        "BulkheadFullError", "CallRejected", "CircuitOpenError", "ConfigError", "DeadlineExceeded", "ErrorCategory",
        "OperationCancelled", "OutcomeUnknown", "RateLimitExceeded", "ResilienceError", "RetryAfterTooLong",
        "ShutdownInProgress", "StoreUnavailable", "WorkerCrashed", "WorkersExhausted",
    ),
    "core.events": ("Event", "EventStream"),
    "core.history": ("Attempt", "AttemptHistory", "history"),
    "core.lifecycle": ("install_signal_handlers",),
    "core.pipeline": ("Call", "Pipeline"),
    "manager": ("ErrorRecoveryManager", "OperationResult", "default_manager", "protect", "shutdown"),
    "monitoring.error_report": ("ErrorReport",),
    "monitoring.performance": ("PerformanceMonitor",),
    "resources": ("ResourceManager", "ResourceType"),
    "stores.opening": ("open_store",),
    "strategies.bulkhead": ("Bulkhead",),
    "strategies.circuit_breaker": (
        "CircuitBreaker", "CircuitBreakerConfig", "CircuitState", "CountWindow", "Permit", "TimeWindow",
    ),
    "strategies.fallback": ("Fallback", "LastGood"),
    "strategies.rate_limiter": ("RateLimiter",),
    "strategies.retry": ("Retry", "RetryBudget", "RetryPolicy"),
    "strategies.timeout": ("Timeout",),
    "timeouts": ("TimeoutManager",),
    "worker_group": ("WorkerGroup",),
}  # fmt: skip

__all__ = [
    "Attempt", "AttemptHistory", "Bulkhead", "BulkheadFullError", "Call", "CallRejected", "CircuitBreaker",
    "CircuitBreakerConfig", "CircuitOpenError", "CircuitState", "Classification", "Classifier", "Clock",
    "ConfigError", "CountWindow", "DeadlineExceeded", "ErrorCategory", "ErrorRecoveryManager", "ErrorReport", "Event",
    "EventStream", "Fallback", "FanOutItem", "FanOutResult", "LastGood", "OperationCancelled", "OperationContext",
    "OperationResult", "OutcomeUnknown", "PerformanceMonitor", "Permit", "Pipeline", "RateLimitExceeded",
    "RateLimiter", "ResilienceError", "ResourceManager", "ResourceType", "Retry", "RetryAfterTooLong", "RetryBudget",
    "RetryPolicy", "ShutdownInProgress", "StoreUnavailable", "SystemClock", "TimeWindow", "Timeout", "TimeoutManager",
    "WorkerCrashed", "WorkerGroup", "WorkersExhausted", "checkpoint", "classify", "current", "deadline",
    "default_manager", "fan_out", "fan_out_iter", "history", "install_signal_handlers", "open_store", "protect",
    "remaining", "shutdown", "sleep",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "__version__":
        from ._version import __version__

        return __version__
    for module, names in _HOME.items():
        if name in names:
            from importlib import import_module

            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
