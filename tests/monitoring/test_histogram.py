"""Percentiles within 2 % from a microsecond to an hour."""

import random
from collections import Counter

import pytest

from resilience.monitoring.histogram import LONGEST, Histogram, rounded


def test_every_duration_is_counted_within_two_percent_and_as_one_of_few_values():
    rng = random.Random(1)
    values = set()
    for _ in range(20_000):
        seconds = 10 ** rng.uniform(-6, 3.556)
        value = rounded(seconds)
        assert abs(value - seconds) / seconds < 0.02
        assert rounded(value) == value
        values.add(value)
    assert len(values) <= 32 * 33  # 32 an octave, and 2**32 us are more than an hour


def test_what_is_counted_rises_with_the_duration_and_stays_in_range():
    durations = [-1.0, 0.0, 1e-9, 6e-8, 1e-6, 1e-3, 1.0, 3600.0, 1e12, 1e308, float("inf")]
    values = [rounded(duration) for duration in durations]
    assert values == sorted(values)
    assert values[:2] == [0.0, 0.0]
    assert values[2] > 0.0
    assert values[-3:] == [LONGEST] * 3
    assert rounded(float("nan")) == 0.0


def test_percentiles_agree_with_a_sorted_list():
    rng = random.Random(2)
    values = [rng.lognormvariate(-4, 1.5) for _ in range(10_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    values.sort()
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        exact = values[max(1, -int(-share * len(values) // 1)) - 1]
        assert histogram.percentile(share) == pytest.approx(exact, rel=0.02)


def test_an_empty_histogram_knows_no_percentile():
    assert Histogram().percentile(0.5) is None


def test_merging_adds_the_counts():
    one, two = Histogram(), Histogram()
    one.add(0.1)
    two.add(0.2)
    two.merge(one.counts)
    assert two.total == 2


def test_counts_are_those_of_their_values_whatever_is_added():
    rng = random.Random(3)
    histogram, counts = Histogram(), Counter()
    for _ in range(3000):
        seconds = 10 ** rng.uniform(-10, 12)
        histogram.add(seconds)
        counts[rounded(seconds)] += 1
    assert histogram.counts == counts
    assert histogram.total == 3000
    copy = Histogram()
    copy.merge(histogram.counts)
    assert copy.counts == counts


def test_a_histogram_of_few_durations_is_small():
    import sys

    histogram = Histogram()
    for number in range(1000):
        histogram.add(0.010 + number * 1e-5)
    size = sys.getsizeof(histogram.counts) + sum(map(sys.getsizeof, histogram.counts))
    assert size < 4500  # 43 values between 10 and 20 ms


def test_threads_that_meet_at_a_new_value_lose_nothing():
    import threading

    for _ in range(50):
        histogram, ready = Histogram(), threading.Barrier(4)

        def work(histogram=histogram, ready=ready):
            ready.wait(20)
            for exponent in range(-6, 3):
                histogram.add(10.0**exponent)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert histogram.total == 36
