"""The options of a run: the command line over the environment over the configuration file over the defaults.

A run is bulk work of the operation `api_call`: its retry policy, its breaker (one a host) and its timeout apply.
"""

from __future__ import annotations

from typing import Any

from ..lookup import settings
from .job import Options
from .tasks import MAX_RETRY_AFTER

OPERATION = "api_call"
TIMEOUT = 10.0  # seconds (specification, "Timeouts")
UNLIMITED = 2**31  # attempts, where the configuration says `max_retries: null`


def options_from(asked: dict[str, Any]) -> Options:
    """What the flags, the environment, the configuration file and the defaults make together.

    Raises `ConfigError`.
    """
    found = settings(asked["config"])
    policy = found.retry_policy(OPERATION)
    calls = UNLIMITED if policy.max_retries is None else policy.max_retries + 1
    longest = MAX_RETRY_AFTER if policy.max_retry_after is None else policy.max_retry_after
    return Options(
        resume=asked["resume"],
        retry_permanent=asked["retry_permanent"],
        workers=asked["workers"],
        per_host=asked["per_host"],
        attempts=asked["attempts"] or calls,
        timeout=asked["timeout"] or found.timeouts.get(OPERATION) or TIMEOUT,
        deadline=asked["deadline"],
        wait_open=asked["wait_open"] or policy.on_open == "wait",
        max_retry_after=longest if asked["max_retry_after"] is None else asked["max_retry_after"],
        failed=asked["failed"],
        retry=policy,
        breaker=found.breaker_config(OPERATION),
    )
