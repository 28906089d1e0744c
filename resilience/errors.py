"""The errors users catch, and their categories (defined in `resilience.core.errors`)."""

from .core.classify import Classification, Classifier, classify
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

__all__ = [
    "BulkheadFullError",
    "CallRejected",
    "CircuitOpenError",
    "Classification",
    "Classifier",
    "ConfigError",
    "DeadlineExceeded",
    "ErrorCategory",
    "OperationCancelled",
    "OutcomeUnknown",
    "RateLimitExceeded",
    "ResilienceError",
    "RetryAfterTooLong",
    "ShutdownInProgress",
    "StoreUnavailable",
    "WorkerCrashed",
    "WorkersExhausted",
    "classify",
]
