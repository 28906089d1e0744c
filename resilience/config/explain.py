"""What a policy can come to at worst: calls, time and sleeps; and where it contradicts itself."""

from __future__ import annotations

from ..core.errors import ConfigError
from .durations import format_duration
from .model import TIMEOUT_DEFAULTS, timeout_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .settings import Settings

UNLIMITED = float("inf")


def explain_operation(settings: Settings, name: str) -> dict[str, Any]:
    """The worst case of one call of the operation, as plain data; times in seconds, None where nothing bounds it."""
    policy = settings.retry_policy(name)
    kinds = {**TIMEOUT_DEFAULTS, **settings.timeouts}
    timeout = None if settings.is_untimed(name) else timeout_of(kinds, name)
    total = settings.total_timeout(name)
    attempts = None if policy.max_retries is None else policy.max_retries + 1
    sleeps = None if policy.max_retries is None else _sum_of(policy.delays(), policy.max_retries)
    wall = UNLIMITED if attempts is None or timeout is None or sleeps is None else attempts * timeout + sleeps
    if total is not None:
        wall = min(wall, total)
    return {
        "operation": name,
        "attempts": attempts,
        "retries": policy.max_retries,
        "attempt_timeout": timeout,
        "total_timeout": total,
        "longest_sleeps": sleeps,
        "worst_wall_time": None if wall == UNLIMITED else wall,
        "isolation": settings.isolation(name),
        "breaker": settings.has_breaker(name),
        "warnings": _warnings(settings, name, attempts, timeout, total, sleeps),
    }


def _sum_of(delays: Iterator[float], count: int) -> float:
    """The sum of `count` delays: two that are the same are followed by nothing else."""
    total, before = 0.0, None
    for number, delay in enumerate(delays):
        if delay == before:
            return total + delay * (count - number)
        total += delay
        before = delay
    return total


def _warnings(
    settings: Settings,
    name: str,
    attempts: int | None,
    timeout: float | None,
    total: float | None,
    sleeps: float | None,
) -> list[str]:
    found = []
    policy = settings.retry_policy(name)
    if attempts is None and total is None and policy.max_elapsed is None:
        found.append("retries without an end: only a deadline around the call stops it")
    if total is not None and attempts is not None and sleeps is not None and attempts > 1 and total < sleeps:
        found.append(f"the total of {format_duration(total)} may end before the last of {attempts} attempts begins")
    if policy.max_retry_after is not None and total is not None and policy.max_retry_after > total:
        found.append("a Retry-After that max_retry_after allows may be longer than the total timeout")
    if settings.isolation(name) == "thread" and timeout is not None:
        found.append("an attempt that times out on a thread may still run, so it is not retried")
    try:
        threshold = settings.breaker_config(name).failure_threshold
    except ConfigError:
        threshold = None
    if threshold is not None and attempts is not None and attempts >= threshold:
        guarded = "trips" if settings.has_breaker(name) else "would trip"
        found.append(f"one call with {attempts} attempts {guarded} a breaker with a threshold of {threshold}")
    return found
