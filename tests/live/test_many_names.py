"""Promise 40: a hundred thousand breakers and a million calls; what they keep is what an idle name weighs."""

import gc
import tracemalloc

import pytest

from resilience import CircuitBreaker, ErrorRecoveryManager

pytestmark = pytest.mark.slow

IDLE = 1_000.0  # bytes of an idle name: 10 MB for 10,000 of them


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def tracing():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def ok() -> int:
    return 1


def down() -> None:
    raise ConnectionError("down")


def test_a_hundred_thousand_breakers_stay_small_and_a_million_calls_leave_nothing(tracing):
    count = 100_000
    with ErrorRecoveryManager() as manager:
        manager.circuit_breaker("first").call(ok)
        before = traced()
        for number in range(count):
            manager.circuit_breaker(f"name-{number}").call(ok)
        idle = traced()
        assert (idle - before) / count <= IDLE
        for _ in range(9):
            for number in range(count):
                manager.circuit_breaker(f"name-{number}").call(ok)
        assert abs(traced() - idle) < 1_000_000


def test_a_breaker_that_has_seen_failures_stays_small_and_keeps_no_frames(tracing):
    count = 10_000
    breakers = [CircuitBreaker(f"name-{number}") for number in range(count)]
    for breaker in breakers[:10]:
        with pytest.raises(ConnectionError):
            breaker.call(down)
    before = traced()
    for _ in range(4):
        for breaker in breakers:
            try:
                breaker.call(down)
            except ConnectionError:
                pass
    assert (traced() - before) / count <= IDLE


def test_ten_thousand_operations_stay_small_until_they_are_called_and_small_after_one_call(tracing):
    count = 10_000
    with ErrorRecoveryManager() as manager:
        for name in ("first", "second"):
            manager.protect(name, isolation="caller")(ok)()
        before = traced()
        for number in range(count):
            manager.protect(f"name-{number}", isolation="caller")
        idle = traced()
        assert (idle - before) / count <= IDLE
        for number in range(count):
            manager.protect(f"name-{number}", isolation="caller")(ok)()
        assert (traced() - before) / count <= 1.5 * IDLE
        assert manager.monitor.operations()[f"name-{count - 1}"]["calls"] == 1
