"""The retry budget: retries are a share of the first attempts of the last seconds, and a few are always free."""

import json
import random

import pytest

from resilience.rules.budget import SLOTS, Spending, first_attempt, from_document, retries_made, take_retry

TTL, RATIO, LEAST = 10.0, 0.2, 1.0


def granted(state, asked, now=0.0, *, ratio=RATIO, least=LEAST):
    return sum(take_retry(state, now, TTL, ratio, least) for _ in range(asked))


def test_a_few_retries_are_free():
    assert granted(Spending(), 100) == LEAST * TTL


def test_beyond_them_retries_are_a_share_of_the_first_attempts():
    state = Spending()
    first_attempt(state, 0.0, TTL, count=1000)
    assert granted(state, 1000) == 200


def test_the_minimum_is_no_addition_to_the_share():
    state = Spending()
    first_attempt(state, 0.0, TTL, count=40)
    assert granted(state, 100) == 10


def test_a_refused_retry_costs_nothing():
    state = Spending()
    granted(state, 1000)
    first_attempt(state, 0.0, TTL, count=100)
    assert granted(state, 100) == 10  # 20 for 100 first attempts, less the 10 made, not the 990 refused


def test_what_is_older_than_the_window_is_forgotten():
    state = Spending()
    first_attempt(state, 0.0, TTL, count=1000)
    assert granted(state, 500) == 200
    assert granted(state, 500, now=TTL * 0.9) == 0
    assert granted(state, 500, now=TTL * 1.1) == 10


def test_a_share_of_zero_leaves_the_minimum_and_a_minimum_of_zero_leaves_the_share():
    assert granted(Spending(), 50, ratio=0.0) == 10
    assert granted(Spending(), 50, least=0.0) == 0


def test_time_that_goes_backwards_changes_nothing():
    state = Spending()
    first_attempt(state, 100.0, TTL, count=100)
    first_attempt(state, 3.0, TTL, count=100)
    assert state.total_firsts == 200
    assert granted(state, 100, now=3.0) == 40
    assert granted(state, 100, now=100.0) == 0


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_counting_every_event_of_the_window(seed):
    """Against a list of all events: the slots forget at most one slot's width early, and never late."""
    rng, state, now, events = random.Random(seed), Spending(), 0.0, []
    for _ in range(2000):
        now += rng.expovariate(20.0)
        slot = int(now / TTL * SLOTS)
        recent = [kind for at, kind in events if slot - int(at / TTL * SLOTS) < SLOTS]
        firsts, retries = recent.count("first"), recent.count("retry")
        if rng.random() < 0.6:
            first_attempt(state, now, TTL)
            events.append((now, "first"))
        else:
            allowed = retries < max(LEAST * TTL, RATIO * firsts)
            assert take_retry(state, now, TTL, RATIO, LEAST) is allowed
            if allowed:
                events.append((now, "retry"))


# -- books in a store ----------------------------------------------------------------------------------------------


def document(state, ttl=TTL):
    return json.loads(json.dumps({"version": 1, "ttl": ttl, **state.to_plain()}))


def test_books_survive_the_way_through_a_store():
    state = Spending()
    first_attempt(state, 3.0, TTL, count=70)
    assert granted(state, 5, now=3.0) == 5
    again = from_document(document(state), 4.0, TTL)
    assert granted(again, 100, now=4.0) == 9
    assert granted(from_document(document(again), 30.0, TTL), 100, now=30.0) == 10


def test_books_with_another_window_count_as_of_now():
    state = Spending()
    first_attempt(state, 0.0, TTL, count=100)
    retries_made(state, 0.0, TTL, 15)
    wider = from_document(document(state), 5.0, 60.0)
    assert (wider.total_firsts, wider.total_retries) == (100, 15)
    assert take_retry(wider, 61.0, 60.0, 0.2, 0.0)
    assert not take_retry(wider, 65.0, 60.0, 0.2, 0.0)


@pytest.mark.parametrize(
    "garbage",
    [None, [], "x", 7, {}, {"slot": "a"}, {"slot": 1, "firsts": [1], "retries": [0] * SLOTS},
     {"slot": 1, "firsts": [-1] * SLOTS, "retries": [0] * SLOTS}, {"slot": True, "firsts": [0] * SLOTS},
     {"ttl": TTL, "slot": 10**9, "firsts": [9] * SLOTS, "retries": [9] * SLOTS}],
)  # fmt: skip
def test_garbage_in_a_store_is_empty_books(garbage):
    assert granted(from_document(garbage, 100.0, TTL), 50, now=100.0) == 10
