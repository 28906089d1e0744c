"""One breaker under many threads: limits hold, counts are exact, one opening is one event, nothing deadlocks."""

import sys
import threading

import pytest

from resilience.core.errors import CircuitOpenError
from resilience.core.events import EventStream
from resilience.strategies import breaker_admission
from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState, CountWindow
from resilience.testing import ManualClock


@pytest.fixture(autouse=True)
def restless():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(count, body):
    """Runs `body(number)` in `count` threads and waits for all; the first error of any is raised here."""
    errors = []

    def run(number):
        try:
            body(number)
        except BaseException as error:
            errors.append(error)
            raise SystemExit from error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600.0)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def half_open_phases(threads, phases, max_requests):
    """Admissions of each round of each phase, with the most and the total that the rules allow there."""
    clock, successes = ManualClock(), max_requests + 2
    config = CircuitBreakerConfig(
        failure_threshold=1, timeout=10.0, max_requests=max_requests, success_threshold=successes
    )
    breaker = CircuitBreaker("x", config, clock=clock)
    permits, seen, barrier = [], [], threading.Barrier(threads)

    def body(number):
        for _ in range(phases):
            if barrier.wait(60.0) == 0:
                breaker.reset()
                breaker.acquire().failure()
                clock.advance(10.0)
            barrier.wait(60.0)
            total = 0
            while total < successes:
                barrier.wait(60.0)
                try:
                    permits.append(breaker.acquire())
                except CircuitOpenError as error:
                    assert error.state == "half_open"
                barrier.wait(60.0)
                admitted = len(permits)
                expected = min(max_requests, successes - total)
                total += admitted
                if barrier.wait(60.0) == 0:
                    seen.append((admitted, expected))
                    assert breaker.state is CircuitState.HALF_OPEN
                    for permit in permits:
                        permit.success()
                    permits.clear()
                if admitted == 0:
                    return
            barrier.wait(60.0)
            assert breaker.state is CircuitState.CLOSED

    together(threads, body)
    assert len(seen) >= phases
    assert [pair for pair in seen if pair[0] != pair[1]] == []


@pytest.mark.parametrize("max_requests", [1, 3, 10])
def test_half_open_admits_exactly_its_probes_16_threads_40_phases(max_requests):
    half_open_phases(16, 40, max_requests)


@pytest.mark.slow
@pytest.mark.parametrize("max_requests", [1, 3, 10])
def test_half_open_admits_exactly_its_probes_64_threads_1_000_phases(max_requests):
    half_open_phases(64, 1_000, max_requests)


def exact_counts(threads, outcomes, config):
    breaker = CircuitBreaker("x", config)

    @breaker
    def work(number):
        if number % 8 == 1:
            raise ConnectionError
        if number % 8 == 2:
            raise ValueError
        return number

    def body(thread):
        for number in range(thread, thread + outcomes):
            try:
                if number % 8 == 3:
                    breaker.acquire().success()
                elif number % 8 == 4:
                    breaker.acquire().failure()
                else:
                    work(number)
            except (ConnectionError, ValueError):
                pass

    together(threads, body)
    stats, eighth = breaker.stats, threads * outcomes // 8
    assert (stats.failures, stats.ignored, stats.successes) == (2 * eighth, eighth, 5 * eighth)
    assert (stats.permitted, stats.rejected, stats.late_results) == (8 * eighth, 0, 0)


NEVER_OPENS = [
    CircuitBreakerConfig(failure_threshold=10**9),
    CircuitBreakerConfig(window=CountWindow(100), failure_rate=1.0, minimum_calls=100),
]


@pytest.mark.parametrize("config", NEVER_OPENS, ids=["row", "window"])
@pytest.mark.parametrize("has_gil", [hasattr(sys, "_is_gil_enabled") is False or sys._is_gil_enabled(), False])
def test_counts_are_exact_under_16_threads(config, has_gil, monkeypatch):
    monkeypatch.setattr(breaker_admission, "HAS_GIL", has_gil)
    exact_counts(16, 1_600, config)


@pytest.mark.slow
@pytest.mark.parametrize("config", NEVER_OPENS, ids=["row", "window"])
def test_counts_are_exact_under_64_threads_of_100_000_outcomes(config):
    exact_counts(64, 100_000, config)


@pytest.mark.parametrize("threshold", [1, 5, 64])
def test_64_threads_failing_at_once_make_one_event_and_let_nobody_in_after(threshold):
    rounds, clock, events, told = 30, ManualClock(), EventStream(), []
    events.subscribe(told.append)
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=threshold), clock=clock, events=events)
    barrier, let_in = threading.Barrier(64), []

    @breaker
    def fails():
        raise ConnectionError

    def body(number):
        for _ in range(rounds):
            permit = breaker.acquire()
            barrier.wait(60.0)
            if number % 2:
                permit.failure()
            else:
                try:
                    fails()
                except (ConnectionError, CircuitOpenError):
                    pass
                permit.failure()
            barrier.wait(60.0)
            try:
                let_in.append(breaker.acquire())
            except CircuitOpenError:
                pass
            if barrier.wait(60.0) == 0:
                breaker.reset()
            barrier.wait(60.0)

    together(64, body)
    assert let_in == []
    assert events.flush(10.0)
    changes = [(event.old, event.new) for event in told]
    assert changes == [("closed", "open"), ("open", "closed")] * rounds
    stats = breaker.stats
    assert stats.failures == threshold * rounds
    assert stats.permitted == stats.failures + stats.late_results
    assert stats.state_changes == 2 * rounds


def test_everything_may_be_called_from_inside_a_call_and_from_a_listener_1_000_times():
    events, clock = EventStream(), ManualClock()
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2), clock=clock, events=events)
    heard = []

    def fail_one():
        breaker.acquire().failure()

    def enter():
        with breaker:
            pass

    def everything(event=None):
        unsubscribe = events.subscribe(lambda event: None)
        orders = [] if event is not None else [breaker.force_open, breaker.reset]
        reads = [lambda: breaker.state, lambda: breaker.stats, breaker.retry_after, breaker.__repr__]
        for step in (*orders, *reads, enter, fail_one, lambda: breaker.call(int), breaker.reset):
            try:
                step()
            except CircuitOpenError:
                pass
        unsubscribe()
        heard.append(event)

    events.subscribe(everything, ["breaker_state_changed"])

    def body(number):
        for _ in range(125):
            try:
                breaker.call(everything)
            except CircuitOpenError:
                breaker.reset()
                everything()

    together(8, body)
    assert events.flush(60.0)
    assert heard.count(None) == 1_000
    assert len(heard) >= 2_000


def test_a_signal_handler_may_call_the_breaker_in_the_middle_of_its_books():
    import signal

    breaker, calls = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=10**9)), []

    def handler(signum, frame):
        breaker.acquire().failure()
        calls.append(breaker.stats.permitted)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        count = 0
        while len(calls) < 100:
            breaker.acquire().failure()
            count += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert breaker.stats.failures == count + len(calls)


def test_a_reader_never_sees_half_a_state_change():
    breaker = CircuitBreaker("torn", CircuitBreakerConfig(failure_threshold=2), clock=ManualClock())
    breaker.acquire().failure()
    permit = breaker.acquire()
    before, seen, readers = breaker.stats, [], []

    def look(frame, event, arg):
        """Between any two lines of the change somebody reads, and is given the time to."""
        if event == "line" and frame.f_code.co_filename.endswith(("breaker_admission.py", "breaker.py")):
            readers.append(threading.Thread(target=lambda: seen.append(breaker.stats)))
            readers[-1].start()
            readers[-1].join(0.01)
        return look

    sys.settrace(look)
    try:
        permit.failure()
    finally:
        sys.settrace(None)
    for reader in readers:
        reader.join(60.0)
    after = breaker.stats
    assert (before.state, before.failures, after.state, after.failures) == ("closed", 1, "open", 2)
    assert len(seen) == len(readers) > 15
    assert all(stats in (before, after) for stats in seen)
