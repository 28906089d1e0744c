"""The delays before retries: the cap first, then the jitter within it."""

import math
import random

import pytest

from resilience.rules.backoff import FOREVER, capped, jittered, raw_delay

SPREADING = [True, "equal", "decorrelated", ("proportional", 0.25), ("additive", 1.0)]
JITTERS = [*SPREADING, "full", False, ("proportional", 1.0)]


def delays(jitter, value, count=10_000, *, base=1.0, cap=5.0, previous=5.0):
    draw = random.Random(7).random
    return [jittered(value, jitter, draw, cap, base, previous) for _ in range(count)]


def test_an_exponential_delay_multiplies_by_the_factor():
    assert [raw_delay("exponential", number, 0.5, 3.0) for number in range(4)] == [0.5, 1.5, 4.5, 13.5]


@pytest.mark.parametrize("number", [1023, 1024, 10**5, 10**9])
@pytest.mark.parametrize("factor", [1.0, 1.0000001, 2.0, 10.0, 1e300])
def test_late_retries_do_not_overflow(number, factor):
    raw = raw_delay("exponential", number, 0.1, factor)
    assert raw >= 0.1
    assert capped(raw, 5.0) <= 5.0
    assert math.isfinite(capped(raw, None))


def test_a_base_of_zero_stays_zero_however_late():
    assert raw_delay("exponential", 10**5, 0.0, 10.0) == 0.0


@pytest.mark.parametrize("jitter", JITTERS)
def test_without_a_cap_every_delay_is_finite(jitter):
    value = capped(math.inf, None)
    for draw in (0.0, 0.5, 1 - 2**-53):
        assert 0 <= jittered(value, jitter, lambda draw=draw: draw, None, 1.0, value) <= FOREVER


@pytest.mark.parametrize("given", [math.nan, -1.0, -math.inf])
def test_a_callable_that_gives_no_delay_means_none(given):
    assert raw_delay(lambda number: given, 3, 1.0, 2.0) == 0.0


@pytest.mark.parametrize(
    ("jitter", "low", "high"),
    [(True, 0.0, 4.0), ("full", 0.0, 4.0), ("equal", 2.0, 4.0), ("decorrelated", 1.0, 6.0),
     (("proportional", 0.25), 3.0, 5.0), (("additive", 1.0), 4.0, 5.0), (False, 4.0, 4.0)],
)  # fmt: skip
def test_each_jitter_fills_its_range_and_no_more(jitter, low, high):
    seen = delays(jitter, 4.0, cap=100.0, previous=2.0)
    assert low <= min(seen) <= low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) <= max(seen) <= high
    assert math.isclose(sum(seen) / len(seen), (low + high) / 2, rel_tol=0.02)


@pytest.mark.parametrize("jitter", SPREADING)
def test_late_delays_do_not_crowd_at_the_cap(jitter):
    late = delays(jitter, 5.0)
    assert max(late) <= 5.0
    assert sum(delay == 5.0 for delay in late) / len(late) < 0.02


@pytest.mark.parametrize("jitter", SPREADING)
def test_callers_that_fail_together_do_not_retry_in_step(jitter):
    late = delays(jitter, 5.0, count=1000)
    width = (max(late) - min(late)) / 20
    slots = [0] * 21
    for delay in late:
        slots[int((delay - min(late)) / width)] += 1
    assert max(slots) <= 3 * 1000 / 20


def test_an_additive_range_wider_than_the_cap_is_all_of_it():
    seen = delays(("additive", 60.0), 5.0)
    assert 0.0 <= min(seen) < 0.1
    assert 4.9 < max(seen) <= 5.0


def test_decorrelated_delays_grow_from_the_base_to_the_cap():
    draw, previous, seen = random.Random(3).random, None, []
    for _ in range(2000):
        previous = jittered(0.0, "decorrelated", draw, 5.0, 0.1, previous)
        seen.append(previous)
    assert min(seen) >= 0.1
    assert max(seen) <= 5.0
    assert seen[0] <= 0.3
    assert max(seen) > 4.5


def test_the_draws_decide_and_nothing_else():
    assert jittered(4.0, True, lambda: 0.25, 5.0, 1.0, None) == 1.0
    assert jittered(4.0, "equal", lambda: 0.25, 5.0, 1.0, None) == 2.5
    assert jittered(4.0, ("proportional", 0.5), lambda: 0.5, 100.0, 1.0, None) == 4.0
    assert jittered(4.0, "decorrelated", lambda: 0.5, 100.0, 1.0, 3.0) == 5.0
