"""The peers, protecting functions as their users write it. A peer that is not installed is said and left out.

All of them see the same function, retry up to three times and never open: the healthy path is compared, not defaults.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

NEVER = 10**9  # failures that open a breaker
Build = Callable[[Callable[..., Any]], Callable[..., Any]]


def circuitbreaker_(fn: Callable[..., Any]) -> Callable[..., Any]:
    """circuitbreaker"""
    from circuitbreaker import CircuitBreaker

    return CircuitBreaker(failure_threshold=NEVER)(fn)


def pybreaker_(fn: Callable[..., Any]) -> Callable[..., Any]:
    """pybreaker"""
    import pybreaker

    return pybreaker.CircuitBreaker(fail_max=NEVER)(fn)


def interlock_(fn: Callable[..., Any]) -> Callable[..., Any]:
    """interlock breaker"""
    import interlock

    return interlock.CircuitBreaker(name="bench")(fn)


def pyresilience_breaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """pyresilience breaker"""
    from pyresilience import CircuitBreakerConfig, resilient

    return resilient(circuit_breaker=CircuitBreakerConfig(failure_threshold=NEVER))(fn)


def pyresilience_(fn: Callable[..., Any]) -> Callable[..., Any]:
    """pyresilience retry+breaker"""
    from pyresilience import CircuitBreakerConfig, RetryConfig, resilient

    breaker = CircuitBreakerConfig(failure_threshold=NEVER)
    return resilient(retry=RetryConfig(max_attempts=3), circuit_breaker=breaker)(fn)


def pyresilience_window(fn: Callable[..., Any]) -> Callable[..., Any]:
    """pyresilience retry+window of 100"""
    from pyresilience import CircuitBreakerConfig, RetryConfig, resilient

    breaker = CircuitBreakerConfig(failure_threshold=NEVER, sliding_window_size=100, minimum_calls=10)
    return resilient(retry=RetryConfig(max_attempts=3), circuit_breaker=breaker)(fn)


def tenacity_(fn: Callable[..., Any]) -> Callable[..., Any]:
    """tenacity retry"""
    import tenacity

    return tenacity.retry(stop=tenacity.stop_after_attempt(3))(fn)


def tenacity_pybreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """tenacity+pybreaker"""
    return tenacity_(pybreaker_(fn))


def stamina_circuitbreaker(fn: Callable[..., Any]) -> Callable[..., Any]:
    """stamina+circuitbreaker"""
    import stamina

    return stamina.retry(on=Exception, attempts=3)(circuitbreaker_(fn))


def backoff_(fn: Callable[..., Any]) -> Callable[..., Any]:
    """backoff retry"""
    import backoff

    return backoff.on_exception(backoff.expo, Exception, max_tries=3)(fn)


def circuitbreaker_open(fn: Callable[..., Any]) -> Callable[..., Any]:
    """circuitbreaker"""
    from circuitbreaker import CircuitBreaker

    return CircuitBreaker(failure_threshold=1, recovery_timeout=NEVER)(fn)


def pybreaker_open(fn: Callable[..., Any]) -> Callable[..., Any]:
    """pybreaker"""
    import pybreaker

    return pybreaker.CircuitBreaker(fail_max=1, reset_timeout=NEVER)(fn)


def pyresilience_open(fn: Callable[..., Any]) -> Callable[..., Any]:
    """pyresilience"""
    from pyresilience import CircuitBreakerConfig, resilient

    return resilient(circuit_breaker=CircuitBreakerConfig(failure_threshold=1, recovery_timeout=1e6))(fn)


def interlock_open(fn: Callable[..., Any]) -> Callable[..., Any]:
    """interlock"""
    import interlock

    breaker = interlock.CircuitBreaker(name="open")
    guarded = breaker(fn)
    breaker.force_open()
    return guarded


BREAKERS: tuple[Build, ...] = (circuitbreaker_, pybreaker_, interlock_, pyresilience_breaker)
HEALTHY: tuple[Build, ...] = (
    *BREAKERS, pyresilience_, pyresilience_window, tenacity_, tenacity_pybreaker, stamina_circuitbreaker, backoff_,
)  # fmt: skip
OPEN: tuple[Build, ...] = (circuitbreaker_open, pybreaker_open, pyresilience_open, interlock_open)
LIBRARIES = ("backoff", "circuitbreaker", "interlock", "pebble", "pybreaker", "pyresilience", "stamina", "tenacity")


def installed(*builders: Build) -> dict[str, Build]:
    """The builders whose libraries are there, by the name in their docstring."""
    found = {}
    for build in builders:
        try:
            build(lambda: 1)
        except ImportError:
            continue
        found[build.__doc__ or build.__name__] = build
    return found


def missing() -> list[str]:
    """The peers that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def silence() -> None:
    """Keeps the peers' warnings out of the measurement."""
    logging.disable(logging.CRITICAL)
