"""Every key of the configuration: what kind of value it takes, and its default. One table, read by all.

| block | keys |
|---|---|
| circuit_breaker | the parameters of `CircuitBreakerConfig`; a window by `window_size` (calls) or `window_seconds` |
| retry | the parameters of `RetryPolicy`; `max_attempts` (calls) may stand for `max_retries` (repeats) |
| timeouts | a duration for each kind of operation, known or new |
| operations.NAME | circuit_breaker, retry, retry_budget, bulkhead, rate_limit (blocks), timeout, total_timeout |
| | isolation, critical |
| | memory_limit (bytes of address space of its worker processes: 512MiB) |

Environment: `CIRCUIT_BREAKER_<KEY>`, `RETRY_<KEY>` and `<KIND>_TIMEOUT`, each also with the prefix `RESILIENCE_`.
"""

from __future__ import annotations

import re

from .durations import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Reader = Callable[[str], Any]

NOTHING = frozenset(("null", "none", "~", ""))


def optional(read: Reader) -> Reader:
    """A value, or null."""
    return lambda text: None if text.lower() in NOTHING else read(text)


def whole(text: str) -> int:
    """A whole number written in decimal."""
    if not re.fullmatch(r"0|[1-9]\d{0,11}", text, re.ASCII):
        raise ValueError(f"expected a whole number such as 5, not {text!r}")
    return int(text)


def number(text: str) -> float:
    """A plain decimal number."""
    if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text, re.ASCII):
        raise ValueError(f"expected a number such as 2.0, not {text!r}")
    return float(text)


def share(text: str) -> float:
    """A share of one: 0.5, or 50%."""
    percent = text.endswith("%")
    value = number(text.removesuffix("%").rstrip()) / (100 if percent else 1)
    if not 0 < value <= 1:
        raise ValueError(f"expected a share above 0, 1 at most, such as 0.5 or 50%, not {text!r}")
    return value


def boolean(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, not {text!r}")
    return text.lower() == "true"


def one_of(*words: str) -> Reader:
    """One of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {' or '.join(words)}, not {text!r}")
        return text

    return read


_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def size(text: str) -> int:
    """A number of bytes: 536870912, 512MiB, 2GB."""
    match = re.fullmatch(r"(\d{1,15}) ?([a-z]*)", text.lower(), re.ASCII)
    if match is None or match[2] not in _SIZES or not int(match[1]):
        raise ValueError(f"expected a number of bytes such as 512MiB, not {text!r}")
    return int(match[1]) * _SIZES[match[2]]


def jitter(text: str) -> bool | str:
    """true (full), false, or the name of a jitter."""
    if text.lower() in ("true", "false"):
        return boolean(text)
    return str(one_of("full", "equal", "decorrelated")(text))


BREAKER: dict[str, Reader] = {
    "failure_threshold": optional(whole),
    "success_threshold": whole,
    "timeout": parse_duration,
    "max_requests": whole,
    "reset_timeout": optional(parse_duration),
    "failure_rate": optional(share),
    "minimum_calls": whole,
    "slow_call_duration": optional(parse_duration),
    "slow_call_rate": optional(share),
    "probe_lease": optional(parse_duration),
    "window_size": optional(whole),
    "window_seconds": optional(parse_duration),
}
RETRY: dict[str, Reader] = {
    "max_retries": optional(whole),
    "max_attempts": optional(whole),
    "base_delay": parse_duration,
    "max_delay": optional(parse_duration),
    "backoff_factor": number,
    "jitter": jitter,
    "backoff": one_of("exponential", "constant", "linear", "decorrelated"),
    "max_elapsed": optional(parse_duration),
    "max_retry_after": optional(parse_duration),
    "idempotent": boolean,
    "on_open": one_of("raise", "wait"),
}
BULKHEAD: dict[str, Reader] = {"max_concurrent": whole, "max_queue": whole, "max_wait": parse_duration}
RATE_LIMIT: dict[str, Reader] = {
    "rate": number, "per": parse_duration, "burst": optional(whole), "max_wait": parse_duration,
}  # fmt: skip
RETRY_BUDGET: dict[str, Reader] = {"ratio": share, "min_per_second": number, "ttl": parse_duration}
OPERATION_BLOCKS = {
    "circuit_breaker": BREAKER, "retry": RETRY, "retry_budget": RETRY_BUDGET, "bulkhead": BULKHEAD,
    "rate_limit": RATE_LIMIT,
}  # fmt: skip
OPERATION_KEYS: dict[str, Reader] = {
    "timeout": optional(parse_duration),
    "total_timeout": optional(parse_duration),
    "isolation": one_of("thread", "caller", "process"),
    "memory_limit": optional(size),
    "critical": boolean,
}
DURATIONS = frozenset(
    ("timeout", "reset_timeout", "slow_call_duration", "probe_lease", "window_seconds", "base_delay", "max_delay",
     "max_elapsed", "max_retry_after", "total_timeout", "max_wait", "per",
     "ttl")
)  # fmt: skip

# The defaults of the specification ("Configuration Files", "Retry Policies")
BREAKER_DEFAULTS: dict[str, Any] = {
    "failure_threshold": 5, "success_threshold": 3, "timeout": 60.0, "max_requests": 10, "reset_timeout": 300.0,
}  # fmt: skip
RETRY_DEFAULTS: dict[str, Any] = {
    "max_retries": 3, "base_delay": 0.1, "max_delay": 5.0, "backoff_factor": 2.0, "jitter": True,
}  # fmt: skip
# "Timeout Handling"; any other kind has 30 s
TIMEOUT_DEFAULTS: dict[str, float] = {
    "api_call": 10.0,
    "database_query": 5.0,
    "redis_operation": 2.0,
    "concurrent_op": 15.0,
    "health_check": 3.0,
    "backfill": 60.0,
    "symbol_fetch": 20.0,
    "market_data": 8.0,
}
ANY_OTHER_TIMEOUT = 30.0
TIMEOUT_ALIASES = {"database_operation": "database_query"}


def timeout_of(timeouts: Mapping[str, float], kind: str) -> float:
    """The timeout of a kind of operation, in seconds."""
    return timeouts.get(kind, timeouts.get(TIMEOUT_ALIASES.get(kind, ""), ANY_OTHER_TIMEOUT))


# `api_call` is what the `retry` block describes; these have their own
RETRY_PRESETS: dict[str, dict[str, Any]] = {
    "database_operation": {"max_retries": 5, "base_delay": 0.05, "max_delay": 2.0, "backoff_factor": 1.5},
    "redis_operation": {"max_retries": 3, "base_delay": 0.025, "max_delay": 1.0, "backoff_factor": 2.0},
    "concurrent_operation": {"max_retries": 2, "base_delay": 0.2, "max_delay": 3.0, "backoff_factor": 2.5},
}
