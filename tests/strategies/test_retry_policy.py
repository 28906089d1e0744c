"""What a policy may be, and the delays it gives."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import ConfigError, Pipeline, Retry, RetryPolicy


def plain(retries, **changes):
    return RetryPolicy(**{"max_retries": retries, "base_delay": 1.0, "max_delay": 60.0, "jitter": False, **changes})


def test_late_delays_do_not_crowd_at_the_cap():
    policy, draw = RetryPolicy(max_retries=None, base_delay=1.0, max_delay=5.0), random.Random(1).random
    late = [policy.jittered_delay(20, draw, None) for _ in range(10_000)]
    assert sum(delay == 5.0 for delay in late) / len(late) < 0.02
    assert 2.3 < sum(late) / len(late) < 2.7


def test_a_thousand_callers_that_fail_together_spread_out():
    policy, draw = RetryPolicy(base_delay=1.0), random.Random(2).random
    slots = [0] * 100
    for _ in range(1000):
        slots[min(99, int(policy.jittered_delay(0, draw, None) * 100))] += 1
    assert max(slots) <= 3 * 10


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [("exponential", [1.0, 2.0, 4.0, 8.0]), ("constant", [1.0] * 4), ("linear", [1.0, 2.0, 3.0, 4.0]),
     (lambda number: number * 10, [0.0, 10.0, 20.0, 30.0])],
)  # fmt: skip
def test_each_backoff_has_its_row_of_delays(backoff, delays):
    assert list(plain(4, backoff=backoff).delays()) == delays


@settings(max_examples=2000, deadline=None)
@given(
    base=st.floats(0, 1e4), spread=st.floats(0, 1e4), factor=st.floats(1, 1e3), number=st.integers(0, 10**5),
    jitter=st.sampled_from([True, False, "equal", "decorrelated", ("proportional", 0.25), ("additive", 1.0)]),
    backoff=st.sampled_from(["exponential", "constant", "linear", "decorrelated"]), draw=st.floats(0, 0.999999),
)  # fmt: skip
def test_every_delay_is_between_zero_and_the_cap(base, spread, factor, number, jitter, backoff, draw):
    policy = RetryPolicy(None, base, base + spread, factor, jitter, backoff=backoff)
    assert 0 <= policy.jittered_delay(number, lambda: draw, base) <= base + spread


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("max_retries", -1), ("max_retries", 1.5), ("max_retries", True), ("base_delay", -1), ("base_delay", float("nan")),
     ("base_delay", float("inf")), ("max_delay", 0.01), ("max_delay", float("inf")), ("backoff_factor", 0.5),
     ("backoff_factor", float("nan")), ("jitter", "ful"), ("jitter", ("proportional", 2)), ("backoff", "exp"),
     ("retry_on", 5), ("give_up_on", "x"), ("retry_on_result", 5), ("max_elapsed", -1), ("on_open", "retry"),
     ("idempotent", "yes"), ("budget", 5), ("overlap", "yes"), ("nested", "no"), ("max_retry_after", -1)],
)  # fmt: skip
def test_a_bad_parameter_is_refused_by_name(parameter, value):
    with pytest.raises(ConfigError) as caught:
        RetryPolicy(**{parameter: value})
    assert caught.value.key == parameter


def test_a_policy_is_frozen_and_compares_by_value():
    policy = RetryPolicy()
    with pytest.raises(AttributeError, match="replace"):
        policy.max_retries = 9
    assert policy == RetryPolicy()
    assert policy.replace(max_retries=9).max_retries == 9
    assert policy.replace(max_retries=9) != policy


DURATIONS = ["base_delay", "max_delay", "max_elapsed", "max_retry_after"]


@pytest.mark.parametrize("parameter", DURATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, -math.inf, True, "1s", [1]])
def test_what_is_no_duration_is_refused_by_name(parameter, value):
    with pytest.raises(ConfigError) as caught:
        RetryPolicy(**{parameter: value})
    assert caught.value.key == parameter


@pytest.mark.parametrize("wrong", [int, dict, (ValueError, 5), "ValueError", 5])
def test_a_type_that_is_no_exception_says_nothing_about_errors(wrong):
    for parameter in ("retry_on", "give_up_on"):
        with pytest.raises(ConfigError) as caught:
            RetryPolicy(**{parameter: wrong})
        assert caught.value.key == parameter


def test_0_to_the_cap_in_100_000_random_configurations():
    rng = random.Random(14)
    jitters = [True, False, "equal", "decorrelated", ("proportional", 0.25), ("proportional", 1.0), ("additive", 1.0)]
    backoffs = ["exponential", "constant", "linear", "decorrelated", lambda number: 1e300 * number]
    for _ in range(100_000):
        base = rng.choice([0.0, rng.random(), 10 ** rng.uniform(-9, 9)])
        cap = rng.choice([base, base + rng.random(), base + 10 ** rng.uniform(-9, 9), None])
        factor = rng.choice([1.0, 1 + rng.random(), 10 ** rng.uniform(0, 300)])
        policy = RetryPolicy(None, base, cap, factor, rng.choice(jitters), backoff=rng.choice(backoffs))
        number = rng.choice([0, 1, rng.randrange(50), 10**5])
        previous = rng.choice([None, base, policy.delay_before(number)])
        delay = policy.jittered_delay(number, rng.random, previous)
        assert 0 <= delay <= (1e15 if cap is None else cap), (policy, number)


def test_attempt_100_000_is_like_any_other():
    policy = RetryPolicy(max_retries=None, max_delay=None, backoff_factor=10.0, jitter=False)
    assert math.isfinite(policy.delay_before(10**5))


def test_delays_are_as_many_as_there_are_retries_or_without_end():
    assert list(RetryPolicy(max_retries=0).delays()) == []
    assert list(RetryPolicy(5, 0.1, 1.0).delays()) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
    endless = RetryPolicy(max_retries=None).delays()
    assert [next(endless) for _ in range(50)][-1] == 5.0


def test_a_policy_stands_for_its_strategy_in_a_pipeline():
    strategy = plain(2).as_strategy(name="job")
    assert isinstance(strategy, Retry)
    assert strategy.name == "job"
    assert "Retry" in repr(Pipeline(plain(2), name="job"))
