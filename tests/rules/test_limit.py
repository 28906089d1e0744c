"""When concurrent work falls back to one at a time, and how it comes back: the rules alone."""

import random

import pytest

from resilience.rules.limit import Detector, Width


def told(detector, outcomes):
    """After which of the outcomes (True: success) the detector first calls for falling back; None for never."""
    successes = 0
    for number, succeeded in enumerate(outcomes, 1):
        if succeeded:
            successes += 1
        elif detector.fail(successes):
            return number
    return None


def test_half_of_the_last_attempts_is_enough_and_a_little_less_is_not():
    assert told(Detector(0.5, 20, 10), [True] * 10 + [False] * 10) == 20
    assert told(Detector(0.5, 20, 10), [True] * 11 + [False] * 9) is None
    assert told(Detector(0.5, 20, 10), [True, False] * 5) == 10


def test_a_few_failures_at_the_start_need_min_calls_to_count():
    assert told(Detector(0.5, 20, 10), [False] * 9) is None
    assert told(Detector(0.5, 20, 10), [False] * 10) == 10
    assert told(Detector(0.5, 20, 1), [False]) == 1


def test_only_the_last_window_counts():
    assert told(Detector(0.5, 4, 4), [True] * 1000 + [False, True, False]) == 1003
    assert told(Detector(0.5, 4, 4), [False, True, True, True] * 100) is None


@pytest.mark.parametrize("threshold", [0.01, 1.0])
def test_the_threshold_is_inclusive(threshold):
    failures = round(100 * threshold)
    assert told(Detector(threshold, 100, 100), [True] * (100 - failures) + [False] * failures) == 100


def test_the_end_of_a_short_pass_is_judged_without_min_calls():
    detector = Detector(0.5, 20, 10)
    detector.fail(1)
    assert not detector.is_reached(1)
    assert detector.is_reached(1, at_the_end=True)
    assert not detector.is_reached(2, at_the_end=True)


def test_an_empty_pass_calls_for_nothing():
    detector = Detector(0.5, 20, 1)
    assert not detector.is_reached(0, at_the_end=True)
    assert detector.share(0) == 0.0


def test_after_a_change_of_mode_it_starts_afresh():
    detector = Detector(0.5, 20, 2)
    detector.fail(0)
    detector.fail(0)
    detector.restart(5)
    assert detector.share(5) == 0.0
    assert not detector.fail(5), "one attempt since the restart is fewer than min_calls"
    assert detector.fail(5)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_list_of_the_last_outcomes(seed):
    rng = random.Random(seed)
    threshold, window, least = rng.choice([0.2, 0.5, 0.9]), rng.randint(1, 30), rng.randint(1, 30)
    detector, outcomes, successes = Detector(threshold, window, least), [], 0
    for _ in range(500):
        if rng.random() < 0.01:
            detector.restart(successes)
            outcomes = []
        succeeded = rng.random() < 0.5
        outcomes.append(succeeded)
        if succeeded:
            successes += 1
            continue
        last = outcomes[-window:]
        expected = len(outcomes) >= least and last.count(False) / len(last) >= threshold
        assert detector.fail(successes) == expected
        assert detector.share(successes) == last.count(False) / len(last)


def test_its_memory_is_that_of_the_window():
    detector = Detector(0.5, 20, 10)
    for _ in range(10_000):
        detector.fail(0)
    assert len(detector._numbers) <= 20


def widths(width, outcomes):
    """The limit after each outcome (True: success)."""
    limits = []
    for succeeded in outcomes:
        if succeeded:
            width.succeeded()
        else:
            width.failed()
        limits.append(width.limit)
    return limits


def test_coming_back_doubles_1_2_4_up_to_the_full_width():
    width = Width(6, 3)
    assert width.limit == 6
    width.fall()
    assert widths(width, [True] * 12) == [1, 1, 2, 2, 2, 4, 4, 4, 6, 6, 6, 6]


def test_a_failure_ends_the_row_but_takes_no_width_back():
    width = Width(4, 3)
    width.fall()
    assert widths(width, [True, True, False, True, True, True, False]) == [1, 1, 1, 1, 1, 2, 2]


def test_a_second_fall_starts_at_one_again():
    width = Width(8, 1)
    width.fall()
    widths(width, [True, True])
    width.fall()
    assert width.limit == 1
    assert widths(width, [True]) == [2]


def test_a_width_of_one_never_grows():
    width = Width(1, 1)
    width.fall()
    assert not width.succeeded()
    assert width.limit == 1
