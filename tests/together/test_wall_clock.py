"""The wall clock jumps by an hour or ten years, back or forth: every duration stays what it is (promise 11)."""

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    LastGood,
    Pipeline,
    RateLimiter,
    RateLimitExceeded,
    ResourceManager,
    ResourceType,
    Retry,
    RetryBudget,
    RetryPolicy,
    TimeWindow,
    deadline,
)
from resilience.testing import Flaky, ManualClock

HOUR, TEN_YEARS = 3600.0, 10 * 365.25 * 86400.0


class Jumping(ManualClock):
    """Monotonic time as told, and a wall clock that is `skew` seconds off."""

    skew = 0.0

    def time(self):
        return super().time() + self.skew


@pytest.fixture(params=[HOUR, -HOUR, TEN_YEARS, -TEN_YEARS], ids=["+1h", "-1h", "+10y", "-10y"])
def jump(request):
    return request.param


@pytest.fixture
def clock():
    return Jumping(start=1000.0)


def down():
    raise ConnectionError("down")


def fails(protected, error):
    with pytest.raises(error):
        protected()


@pytest.mark.parametrize("window", [None, TimeWindow(seconds=60.0)], ids=["in a row", "window"])
def test_a_breaker_opens_for_its_timeout(clock, jump, window):
    config = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=60.0, window=window,
                                  minimum_calls=2)  # fmt: skip
    breaker = CircuitBreaker("wall", config, clock=clock)
    fails(lambda: breaker.call(down), ConnectionError)
    clock.skew = jump
    fails(lambda: breaker.call(down), ConnectionError)
    clock.skew = -jump
    clock.advance(59.9)
    assert breaker.retry_after() == pytest.approx(0.1)
    fails(lambda: breaker.call(len, ""), CircuitOpenError)
    clock.skew = jump
    clock.advance(0.2)
    assert breaker.call(len, "ab") == 2


def test_failures_are_forgotten_after_reset_timeout(clock, jump):
    config = CircuitBreakerConfig(failure_threshold=2, timeout=1.0, reset_timeout=300.0)
    breaker = CircuitBreaker("wall", config, clock=clock)
    for _ in range(3):
        fails(lambda: breaker.call(down), ConnectionError)
        clock.skew += jump
        clock.advance(300.0)
    assert str(breaker.state) == "closed"


def test_retries_wait_what_they_are_told_and_budgets_look_back_as_far(clock, jump):
    class Skewing(Flaky):
        def __call__(self):
            clock.skew += jump
            return super().__call__()

    policy = RetryPolicy(max_retries=3, base_delay=1.0, jitter=False, max_elapsed=30.0)
    Retry(policy, clock=clock).call(Skewing(3))
    assert clock.sleeps == [1.0, 2.0, 4.0]
    budget = RetryBudget(ratio=0.0, min_per_second=0.1, ttl=10.0, clock=clock)
    assert budget.take_retry() and not budget.take_retry()
    clock.skew += jump
    assert not budget.take_retry()
    clock.advance(11.0)
    assert budget.take_retry()


def test_limits_and_good_answers_last_as_long(clock, jump):
    limiter = RateLimiter("wall", rate=1, per=60.0, burst=1, clock=clock)
    limiter.acquire()
    clock.skew = jump
    with pytest.raises(RateLimitExceeded) as refused:
        limiter.acquire()
    assert refused.value.retry_after == pytest.approx(60.0)

    works = True

    def quote():
        if not works:
            down()
        return "61,000"

    kept = Pipeline(LastGood(ttl=30.0, clock=clock))
    assert kept.call(quote) == "61,000"
    works = False
    clock.skew = -jump
    clock.advance(29.0)
    assert kept.call(quote) == "61,000"
    clock.advance(2.0)
    fails(lambda: kept.call(quote), ConnectionError)


def test_deadlines_end_when_they_end(clock, jump):
    with deadline(2.0, clock=clock) as context:
        clock.skew = jump
        assert context.remaining() == pytest.approx(2.0)
        clock.advance(1.5)
        clock.skew = -jump
        assert context.remaining() == pytest.approx(0.5)
        fails(lambda: context.sleep(5.0), DeadlineExceeded)
        assert context.remaining() == 0.0


def test_durations_rates_and_alerts_of_a_manager_are_right(clock, jump):
    with ErrorRecoveryManager(clock=clock) as manager:
        manager.register_retry_policy("job", RetryPolicy(max_retries=0))
        job = manager.protect("job", isolation="caller", critical=True)

        def second():
            clock.skew += jump
            clock.advance(1.0)

        for _ in range(20):
            job(second)()
        for _ in range(2):
            fails(job(down), ConnectionError)
        figures = manager.status()["operations"]["job"]
        assert figures["p50"] == pytest.approx(1.0, rel=0.02)
        assert [alert["rule"] for alert in manager.status()["alerts"]] == ["error_rate"]
        clock.skew += jump
        clock.advance(301.0)
        assert manager.status()["alerts"] == []


def test_resources_are_idle_as_long_as_they_are(clock, jump):
    manager = ResourceManager(clock=clock)
    closed = []
    manager.register_resource("idle", ResourceType.CONNECTION, lambda: closed.append("idle"))
    clock.skew = jump
    clock.advance(299.0)
    manager.cleanup_idle()
    assert closed == []
    clock.skew = -jump
    clock.advance(2.0)
    manager.cleanup_idle()
    assert closed == ["idle"]
