"""The rate limit as plain numbers, against a slow and obvious count."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.rules import bucket

NEVER = float("-inf")


def simulate(interval, burst, arrivals):
    """The times at which calls that would rather leave than wait were let through."""
    tat, passed = NEVER, []
    for now in arrivals:
        if bucket.wait_for(tat, now, interval, burst) == 0.0:
            tat = bucket.take(tat, now, interval)
            passed.append(now)
    return passed


def most_in(period, times):
    """The most of `times` in any half-open stretch of `period`."""
    most = first = 0
    for last, end in enumerate(times):
        while end - times[first] >= period:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_a_full_bucket_lets_the_burst_through_at_once_and_then_one_an_interval():
    tat = NEVER
    for _ in range(5):
        assert bucket.wait_for(tat, 0.0, 0.25, 5) == 0.0
        tat = bucket.take(tat, 0.0, 0.25)
    assert bucket.wait_for(tat, 0.0, 0.25, 5) == 0.25
    assert bucket.wait_for(tat, 0.25, 0.25, 5) == 0.0


@pytest.mark.parametrize("now", [0.1, 1000.0, 1e6, 1e9])
@pytest.mark.parametrize("rate", [3, 7, 10, 100])
def test_rounding_costs_no_place(now, rate):
    assert len(simulate(1.0 / rate, rate, [now] * 2 * rate)) == rate
    assert len(simulate(1.0 / rate, 1, [now + turn / rate for turn in range(1000)])) == 1000


def test_places_in_the_line_are_an_interval_apart():
    tat, waits = NEVER, []
    for _ in range(4):
        waits.append(bucket.wait_for(tat, 0.0, 0.5, 1))
        tat = bucket.take(tat, 0.0, 0.5)
    assert waits == [0.0, 0.5, 1.0, 1.5]


def test_idle_time_gives_back_the_burst_and_no_more():
    tat = NEVER
    for _ in range(3):
        tat = bucket.take(tat, 0.0, 1.0)
    assert len(simulate(1.0, 3, [0.0] * 5 + [1000.0] * 5)) == 6


def test_drained_lets_nothing_through_for_so_long_and_only_the_even_rate_afterwards():
    tat = bucket.drained(NEVER, 10.0, 0.25, 5, 2.0)
    assert bucket.wait_for(tat, 10.0, 0.25, 5) == 2.0
    assert bucket.wait_for(tat, 12.0, 0.25, 5) == 0.0
    tat = bucket.take(tat, 12.0, 0.25)
    assert bucket.wait_for(tat, 12.0, 0.25, 5) == 0.25


def test_a_drain_never_shortens_what_is_owed():
    tat = bucket.drained(NEVER, 0.0, 1.0, 1, 60.0)
    assert bucket.drained(tat, 0.0, 1.0, 1, 5.0) == tat


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 16),
    st.lists(st.integers(0, 64), min_size=1, max_size=300),
)
def test_never_more_than_limit_plus_burst_start_in_any_period(rate, burst, gaps):
    now, arrivals = 0.0, []
    for gap in gaps:
        now += gap / 64
        arrivals.append(now)
    passed = simulate(1.0 / rate, burst, arrivals)
    for period in (1, 2, 5):
        assert most_in(period, passed) <= rate * period + burst


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 16), st.lists(st.integers(0, 64), min_size=1, max_size=200))
def test_it_decides_as_a_bucket_of_tokens_does(burst, gaps):
    # 16 a second: tokens are counted in 64ths of a second, exactly
    tokens, last, tat, now = burst * 4, 0, NEVER, 0
    for gap in gaps:
        now += gap
        tokens, last = min(burst * 4, tokens + now - last), now
        passes = bucket.wait_for(tat, now / 64, 1 / 16, burst) == 0.0
        assert passes == (tokens >= 4)
        if passes:
            tokens -= 4
            tat = bucket.take(tat, now / 64, 1 / 16)


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (10, 1), (10, 10), (100, 5), (1000, 100)])
def test_under_load_at_least_99_percent_of_the_limit_pass_and_never_more(rate, burst):
    source = random.Random(rate)
    now, seconds, arrivals = 0.0, 50, []
    while now < seconds:
        arrivals.append(now)
        now += source.expovariate(min(rate * 200, 20_000))
    passed = simulate(1.0 / rate, burst, arrivals)
    assert rate * seconds * 0.99 <= len(passed) <= rate * seconds + burst
    assert most_in(1.0, passed) <= rate + burst
