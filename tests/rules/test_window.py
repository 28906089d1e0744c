"""The windows give the rates that a plain list of results would give."""

import random

import pytest

from resilience.rules.window import BUCKETS, CountedResults, TimedResults, window_from_plain


def tally(results):
    results = list(results)
    return len(results), sum(failed for failed, _ in results), sum(slow for _, slow in results)


@pytest.mark.parametrize("seed", range(50))
def test_a_count_window_agrees_with_a_list_of_the_last_results(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 12)
    fast = rng.randint(0, 5)
    window, everything = CountedResults(size, fast), []
    for _ in range(200):
        failed, slow = rng.random() < 0.3, rng.random() < 0.2
        fast += not (failed or slow)
        window.add(0.0, failed, slow, fast)
        everything.append((failed, slow))
        assert window.counts(0.0, fast) == tally(everything[-size:])


@pytest.mark.parametrize("seed", range(50))
def test_a_time_window_agrees_with_a_list_of_times(seed):
    rng = random.Random(seed)
    step = 0.125  # exact in binary, so that the list and the buckets cut at the same moments
    window, everything, now = TimedResults(step * BUCKETS), [], 1000.0
    for _ in range(300):
        now += rng.choice([0.0, 0.0625, 0.125, 1.0, 5.0, 12.5]) * rng.randint(0, 1)
        failed, slow = rng.random() < 0.3, rng.random() < 0.2
        window.add(now, failed, slow, 0)
        everything.append((now // step, failed, slow))
        recent = ((failed, slow) for bucket, failed, slow in everything if bucket > now // step - BUCKETS)
        assert window.counts(now, 0) == tally(recent)


def test_a_time_window_slides_by_a_hundredth_and_forgets_one_bucket_at_a_time():
    window = TimedResults(100.0)
    for second in range(100):
        window.add(float(second), True, False, 0)
    assert [window.counts(100.0 + second, 0)[0] for second in (0, 1, 50, 98, 99)] == [99, 98, 49, 1, 0]


def test_a_time_window_keeps_at_most_its_buckets_whatever_the_traffic():
    window = TimedResults(1.0)
    for number in range(50_000):
        window.add(number / 10_000, number % 2 == 0, False, 0)
    assert len(window.buckets) <= BUCKETS


def test_a_result_with_an_earlier_time_joins_the_latest_bucket():
    window = TimedResults(10.0)
    window.add(5.0, False, False, 0)
    window.add(4.0, True, False, 0)
    assert window.counts(5.0, 0) == (2, 1, 0)


def test_a_count_window_remembers_bad_results_only_as_long_as_they_are_in_it():
    window = CountedResults(100)
    for _ in range(1000):
        window.add(0.0, True, False, 0)
    assert len(window.bad) == 100
    assert window.counts(0.0, 100) == (100, 0, 0)  # a hundred successes later none is left


@pytest.mark.parametrize("window", [CountedResults(5, 3), TimedResults(8.0)])
def test_a_window_survives_its_plain_form(window):
    for failed, slow in [(True, False), (False, True), (True, True)]:
        window.add(1.0, failed, slow, 4)
    again = window_from_plain(window.to_plain())
    assert again is not None
    assert again.counts(1.0, 4) == window.counts(1.0, 4)
    assert again.to_plain() == window.to_plain()


def test_no_window_has_no_plain_form():
    assert window_from_plain(None) is None
