"""Retry and time: deadlines, Retry-After, cancel, open breakers and budgets."""

import random

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    DeadlineExceeded,
    OperationCancelled,
    Pipeline,
    Retry,
    RetryAfterTooLong,
    RetryPolicy,
    ShutdownInProgress,
    current,
    deadline,
    history,
)
from resilience.core import lifecycle
from resilience.core.context import OperationContext
from resilience.core.pipeline import Call, invoke
from resilience.testing import Flaky, ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def plain(retries, **changes):
    return RetryPolicy(**{"max_retries": retries, "base_delay": 1.0, "max_delay": 60.0, "jitter": False, **changes})


def test_no_sleep_is_begun_that_cannot_fit_the_deadline(clock):
    work = Flaky(99)
    with deadline(4.0, clock=clock), pytest.raises(ConnectionError) as caught:
        Retry(plain(9), clock=clock).call(work)
    assert clock.sleeps == [1.0, 2.0]
    assert history(caught.value).stop_reason == "deadline"


def test_max_elapsed_bounds_the_call(clock):
    with pytest.raises(ConnectionError) as caught:
        Retry(plain(None, max_elapsed=4.0), clock=clock).call(Flaky(99))
    assert clock.monotonic() == 3.0
    assert history(caught.value).stop_reason == "max_elapsed"


def test_max_elapsed_counts_the_first_attempt_too(clock):
    calls = []

    def slow():
        calls.append(clock.advance(30.0))
        raise ConnectionError

    for protected in (
        Retry(plain(5, max_elapsed=10.0), clock=clock),
        Pipeline(plain(5, max_elapsed=10.0), clock=clock),
    ):
        calls.clear()
        with pytest.raises(ConnectionError):
            protected.call(slow)
        assert len(calls) == 1


def test_no_attempt_begins_after_a_sleep_that_took_too_long():
    class Late(ManualClock):
        def sleep(self, seconds, wake=None):
            return super().sleep(seconds + 5.0, wake)

    late, work = Late(), Flaky(9)
    with deadline(4.0, clock=late), pytest.raises(ConnectionError) as caught:
        Retry(plain(5), clock=late).call(work)
    assert work.calls == 1
    assert history(caught.value).stop_reason == "deadline"
    assert any("deadline" in note for note in caught.value.__notes__)


def test_no_attempt_at_all_is_made_when_the_time_is_over(clock):
    work = Flaky(0)
    with deadline(1.0, clock=clock):
        clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            Retry(plain(3), clock=clock).call(work)
        with pytest.raises(DeadlineExceeded):
            for attempt in Retry(plain(3), clock=clock).attempts():
                with attempt:
                    work()
    assert work.calls == 0


def test_the_tighter_of_two_deadlines_counts(clock):
    with deadline(100.0, clock=clock), deadline(4.0, clock=clock), deadline(50.0, clock=clock):
        with pytest.raises(ConnectionError):
            Retry(plain(9), clock=clock).call(Flaky(99))
    assert clock.monotonic() == 3.0


def test_without_a_cap_late_delays_are_still_waits(clock):
    policy = plain(1500, max_delay=None)
    assert Retry(policy, clock=clock).call(Flaky(1500)) == "ok"


def test_a_shutdown_ends_the_backoff(clock):
    class Stopping(ManualClock):
        def sleep(self, seconds, wake=None):
            lifecycle.begin_shutdown()
            return super().sleep(seconds, wake)

    work = Flaky(9)
    try:
        with pytest.raises(ShutdownInProgress) as caught:
            Retry(plain(5), clock=Stopping()).call(work)
    finally:
        lifecycle.reset_after_shutdown()
    assert work.calls == 1
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_the_context_of_a_call_counts_its_attempts(clock):
    call = Call(lambda: seen.append(call.context.attempt) or Flaky(1)())
    call.context, seen = OperationContext("job"), []
    with pytest.raises(ConnectionError):
        Retry(plain(2), clock=clock).run(invoke, call)
    assert seen == [1, 2, 3]


def test_the_operation_knows_which_attempt_it_is_in():
    from resilience import ErrorRecoveryManager

    seen = []

    def work():
        seen.append(current().attempt)
        if len(seen) < 3:
            raise ConnectionError

    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("job", plain(2, base_delay=0.0))
        manager.execute_with_retry("job", work)
    assert seen == [1, 2, 3]


def test_a_wait_of_zero_does_not_sleep(clock):
    Retry(plain(5, base_delay=0.0), clock=clock).call(Flaky(4))
    assert clock.sleeps == []


def test_a_cancelled_operation_ends_the_backoff():
    class Cancelling(ManualClock):
        def sleep(self, seconds, wake=None):
            context.cancel("no longer needed")
            return super().sleep(seconds, wake)

    context = OperationContext("job")
    with context, pytest.raises(OperationCancelled, match="no longer needed") as caught:
        Retry(plain(5), clock=Cancelling()).call(Flaky(9))
    assert isinstance(caught.value.__cause__, ConnectionError)


class Told(Exception):
    """An HTTP answer that asks to wait."""

    def __init__(self, seconds, status=503):
        from requests import HTTPError, Response

        response = Response()
        response.status_code = status
        response.headers["Retry-After"] = str(seconds)
        super().__init__()
        self.__cause__ = HTTPError(response=response)


def test_retry_after_is_never_undercut_and_at_most_a_tenth_exceeded(clock):
    for seed in range(50):
        clock.sleeps.clear()
        Retry(plain(1, base_delay=0.1), clock=clock, rng=random.Random(seed)).call(Flaky([Told(7)]))
        assert 7.0 <= clock.sleeps[0] <= 7.7


def test_a_wait_too_long_is_refused_at_once(clock):
    work = Flaky([Told(3600)] * 2)
    with deadline(10.0, clock=clock), pytest.raises(RetryAfterTooLong) as caught:
        Retry(plain(3), clock=clock).call(work)
    assert (caught.value.retry_after, work.calls, clock.sleeps) == (3600.0, 1, [])
    with pytest.raises(RetryAfterTooLong):
        Retry(plain(3, max_retry_after=60.0), clock=clock).call(Flaky([Told(61)]))


def test_a_wait_that_fits_exactly_as_asked_is_made_without_the_tenth_on_top(clock):
    with deadline(7.1, clock=clock):
        Retry(plain(1), clock=clock, rng=random.Random(1)).call(Flaky([Told(7)]))
    assert clock.sleeps == [7.0] or 7.0 <= clock.sleeps[0] < 7.1


def test_a_longer_backoff_is_not_shortened_by_retry_after(clock):
    Retry(plain(1, base_delay=20.0), clock=clock).call(Flaky([Told(7)]))
    assert clock.sleeps == [20.0]


@pytest.mark.parametrize("garbage", ["soon", "-5", "9" * 5000, "", "Wed, 99 Nov 99999 25:61:61 GMT"])
def test_garbage_in_retry_after_is_ignored(clock, garbage):
    assert Retry(plain(1), clock=clock).call(Flaky([Told(garbage)])) == "ok"
    assert clock.sleeps == [1.0]


def test_an_open_breaker_is_not_retried_against(clock):
    breaker = CircuitBreaker("open", clock=clock)
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        Pipeline(plain(5), breaker, clock=clock).call(lambda: 1)
    assert clock.sleeps == []


def test_batch_work_may_wait_for_a_breaker(clock):
    breaker = CircuitBreaker("open", CircuitBreakerConfig(failure_threshold=1, timeout=30.0), clock=clock)
    work = Flaky(1)
    with pytest.raises(ConnectionError):
        breaker.call(work)
    assert Pipeline(plain(1, on_open="wait"), breaker, clock=clock).call(work) == "ok"
    assert clock.sleeps == [30.0]


def test_no_breadth_of_retry_on_retries_against_an_open_breaker(clock):
    breaker = CircuitBreaker("open", clock=clock)
    breaker.force_open()
    for wanted in (Exception, CircuitOpenError, lambda error: True):
        assert not plain(5, retry_on=wanted).would_retry(CircuitOpenError(name="open"))
        with pytest.raises(CircuitOpenError):
            Pipeline(plain(5, retry_on=wanted), breaker, clock=clock).call(lambda: 1)
    assert clock.sleeps == []


def test_waiting_for_a_breaker_needs_no_word_in_retry_on_and_costs_no_retry(clock):
    breaker = CircuitBreaker("open", CircuitBreakerConfig(failure_threshold=1, timeout=30.0), clock=clock)
    policy = plain(1, on_open="wait", retry_on=ConnectionError)
    assert Pipeline(policy, breaker, clock=clock).call(Flaky(1)) == "ok"
    assert clock.sleeps == [1.0, 29.0]


def test_a_breaker_is_not_waited_for_beyond_the_deadline_nor_when_given_up_on(clock):
    breaker = CircuitBreaker("open", CircuitBreakerConfig(failure_threshold=1, timeout=30.0), clock=clock)
    with pytest.raises(ConnectionError):
        breaker.call(Flaky(1))
    for policy in (plain(1, on_open="wait"), plain(1, on_open="wait", give_up_on=CircuitOpenError)):
        with deadline(30.0, clock=clock), pytest.raises(CircuitOpenError):
            Pipeline(policy, breaker, clock=clock).call(lambda: 1)
    assert clock.sleeps == []


def test_a_call_that_opens_the_breaker_ends_with_its_own_error_not_with_the_refusal(clock):
    breaker = CircuitBreaker("opens", CircuitBreakerConfig(failure_threshold=1), clock=clock)
    with pytest.raises(ConnectionError, match="failure 1") as caught:
        Pipeline(plain(5), breaker, clock=clock).call(Flaky(9))
    assert any("opens" in note for note in caught.value.__notes__)
    assert [attempt.breaker_state for attempt in history(caught.value)] == [None, "open"]
