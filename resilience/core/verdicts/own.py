"""Our own errors. What was refused or cut here is worth another run later, so none of it is PERMANENT."""

from __future__ import annotations

from ..classification import OUTCOMES, Classification
from .http import by_response
from .rows import ANSWERED, BUG_NOT_SENT, NO_ROOM, NOT_SENT, UNKNOWN, P, R, T, table, verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .rows import Row, Table

# RateLimitExceeded and BulkheadFullError pass with time. An open breaker, a shutdown and a set of workers full of
# abandoned calls are told to the caller at once. OutcomeUnknown is never repeated, by nobody.
ROWS: dict[str, Row] = {
    "CircuitOpenError": (T, False, "not_sent"),
    "BulkheadFullError": NO_ROOM,
    "WorkersExhausted": (R, False, "not_sent"),
    "ShutdownInProgress": (T, False, "not_sent"),
    "CallRejected": (T, False, "not_sent"),
    "OperationCancelled": (T, False, "unknown"),
    "OutcomeUnknown": (T, False, "unknown"),
    "RetryAfterTooLong": (T, False, "answered"),
    "StoreUnavailable": UNKNOWN,
    "ConfigError": BUG_NOT_SENT,
    "ResilienceError": UNKNOWN,
}


def _deadline(error: Any) -> Classification:
    """Worth a retry when whatever ran has ended for certain, unless the time that is over is the caller's own."""
    retryable = bool(error.reclaimed) and not error.ambient
    outcome = "not_sent" if error.phase == "queued" else getattr(error, "outcome", "unknown")
    row = (T, retryable, outcome if outcome in OUTCOMES else "unknown")
    return verdict(row, "resilience:DeadlineExceeded")


def _limited(error: Any) -> Classification:
    return verdict(NOT_SENT, "resilience:RateLimitExceeded", error.retry_after)


def _crashed(error: Any) -> Classification | None:
    if error.signal == 9 or error.exitcode in (-9, 137):  # most often the kernel's, for want of memory
        return verdict((R, True, "unknown"), "resilience:WorkerCrashed:SIGKILL")
    return None


def _failed_status(error: Any) -> Classification | None:
    """An answer that is a failed attempt: every 5xx blames the host, a 425 (too early, RFC 8470) never does."""
    found = by_response(error)
    if found is None or (found.category is not P and found.reason != "http:425"):
        return found
    category = P if found.reason == "http:425" else T
    return Classification(category, found.retryable, found.outcome, found.retry_after, found.reason)


_MODULE = "resilience.core.errors"
TABLE: Table = {
    **table(_MODULE, "resilience", ROWS),
    **table(_MODULE, "resilience", {"DeadlineExceeded": (T, False, "unknown")}, _deadline),
    **table(_MODULE, "resilience", {"RateLimitExceeded": NOT_SENT}, _limited),
    **table(_MODULE, "resilience", {"WorkerCrashed": UNKNOWN}, _crashed),
    **table("resilience.integrations.requests.resilient", "requests", {"FailedStatus": ANSWERED}, _failed_status),
    **table("resilience.strategies.retry", "resilience", {"FailedResult": ANSWERED}),
}
