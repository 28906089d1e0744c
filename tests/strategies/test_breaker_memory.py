"""Idle breakers are cheap: a name a host, a hundred thousand hosts."""

import gc
import tracemalloc

from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig

COUNT = 100_000


def test_100_000_named_breakers_take_at_most_200_bytes_each_beside_their_names():
    config = CircuitBreakerConfig()
    names = [f"host-{number}" for number in range(COUNT)]
    CircuitBreaker("first", config).call(int)
    gc.collect()
    tracemalloc.start()
    try:
        breakers = {name: CircuitBreaker(name, config) for name in names}
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / COUNT
    finally:
        tracemalloc.stop()
    assert len(breakers) == COUNT
    assert size <= 200


def test_healthy_calls_grow_nothing():
    breaker = CircuitBreaker("x")
    guarded = breaker(int)
    for _ in range(100):
        guarded()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50_000):
            guarded()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert breaker.stats.successes == 50_100
    assert grown < 2_000
