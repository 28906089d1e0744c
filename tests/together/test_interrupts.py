"""A Ctrl-C at each single point of a call at which Python looks for signals: nothing stays taken.

CPython looks when a function begins and when one written in C has returned; a profiler is called at the same points.
"""

import itertools
import sys

import pytest

from resilience import (
    Bulkhead,
    CircuitBreakerConfig,
    ErrorRecoveryManager,
    Pipeline,
    RateLimiter,
    Timeout,
    current,
    deadline,
)


def interrupted_at(number, call):
    """Whether `call()` was interrupted at its point of that number; False when it has fewer."""
    points = itertools.count(1)

    def look(frame, event, argument):
        if event in ("call", "c_return") and argument is not sys.setprofile and next(points) == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(look)
        call()
        sys.setprofile(None)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def alone(bulkhead, manager):
    return lambda: bulkhead.call(int)


def decorated(bulkhead, manager):
    return bulkhead(lambda: 1)


def composed(bulkhead, manager):
    return Pipeline(bulkhead, Timeout(60.0, isolation="caller"))(lambda: 1)


def timed(bulkhead, manager):
    return Timeout(60.0, isolation="caller")(lambda: 1)


def named(bulkhead, manager):
    manager.circuit_breaker("x", CircuitBreakerConfig(failure_threshold=10**6))
    manager.register_bulkhead("x", bulkhead)
    manager.register_rate_limiter("x", RateLimiter("x", 10**9))
    return manager.protect("x", isolation="caller")(lambda: 1)


@pytest.mark.parametrize("make", [alone, decorated, composed, timed, named])
def test_a_ctrl_c_at_any_point_of_a_call_leaves_nothing_taken(make):
    bulkhead = Bulkhead("narrow", 2)
    with ErrorRecoveryManager() as manager:
        call = make(bulkhead, manager)
        call()
        for number in itertools.count(1):
            was_interrupted = interrupted_at(number, call)
            assert bulkhead.in_flight == 0, number
            assert current() is None, number
            assert call() is not None
            if not was_interrupted:
                break
    assert number > 3
    print(f"{make.__name__}: {number - 1} points")


def test_a_ctrl_c_on_the_way_into_a_deadline_leaves_none_in_force():
    for number in itertools.count(1):
        block = deadline(60.0)
        was_interrupted = interrupted_at(number, block.__enter__)
        if not was_interrupted:
            break
        assert current() is None, number
    block.__exit__(None, None, None)
    assert number > 2
