"""A breaker in real time: calls run side by side, listeners cost nothing, a fork takes it along in one piece."""

import os
import threading
import time

import pytest

from resilience.core.events import EventStream
from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState, TimeWindow


@pytest.mark.parametrize(
    "config",
    [CircuitBreakerConfig(), CircuitBreakerConfig(window=TimeWindow(10.0), slow_call_duration=9.0)],
    ids=["silent", "timed"],
)
def test_100_threads_of_300_ms_through_one_breaker_end_within_600_ms(config):
    breaker = CircuitBreaker("x", config)
    threads = [threading.Thread(target=breaker.call, args=(time.sleep, 0.3)) for _ in range(100)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 0.6
    assert breaker.stats.successes == 100


def test_a_listener_that_hangs_delays_no_call():
    events, release = EventStream(), threading.Event()
    events.subscribe(lambda event: release.wait(30.0))
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1), events=events)
    start = time.monotonic()
    for _ in range(100):
        breaker.acquire().failure()
        breaker.reset()
    assert time.monotonic() - start < 0.5
    release.set()


def test_an_abandoned_probe_leaves_its_place_to_a_new_one_in_time():
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1, timeout=0.2, max_requests=1))
    breaker.acquire().failure()
    time.sleep(0.2)
    breaker.acquire()  # and never answered
    start = time.monotonic()
    while breaker.retry_after():
        time.sleep(0.01)
    breaker.acquire().success()
    assert time.monotonic() - start < 1.2
    assert breaker.state is CircuitState.HALF_OPEN


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_everything_leaves_a_working_breaker_to_the_child():
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=3, success_threshold=1, timeout=0.001))
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            try:
                breaker.acquire().failure()
            except Exception:
                pass

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    breaker.reset()
                    code = 0 if breaker.call(lambda: breaker.state) is CircuitState.CLOSED else 2
                finally:
                    os._exit(code)
            deadline = time.monotonic() + 20.0
            done, status = os.waitpid(child, os.WNOHANG)
            while not done and time.monotonic() < deadline:
                time.sleep(0.002)
                done, status = os.waitpid(child, os.WNOHANG)
            if not done:
                os.kill(child, 9)
                os.waitpid(child, 0)
            assert done, "the child hangs"
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
