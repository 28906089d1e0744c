"""A rate limiter on a store: one line for all, leased in blocks, with a store that may be away."""

import pytest

from resilience import RateLimiter, RateLimitExceeded, deadline
from resilience.stores.memory import MemoryStore
from resilience.testing import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def admitted(limiter, calls):
    count = 0
    for _ in range(calls):
        try:
            limiter.acquire()
            count += 1
        except RateLimitExceeded:
            pass
    return count


def test_two_limiters_of_one_name_share_one_rate(clock):
    store = MemoryStore(clock=clock)
    one, two = (RateLimiter("api", 5, store=store, clock=clock) for _ in range(2))
    assert admitted(one, 3) + admitted(two, 10) == 5
    clock.advance(1.0)
    assert admitted(two, 10) + admitted(one, 10) == 5


def test_a_fast_limiter_asks_the_store_seldom(clock):
    store = MemoryStore(clock=clock)
    limiter = RateLimiter("api", 1000, burst=1, max_wait=1.0, store=store, clock=clock)
    changes = []
    store.subscribe("rate/", lambda key, data: changes.append(data))
    for _ in range(400):
        limiter.acquire()
    assert len(changes) <= 40
    assert clock.monotonic() == pytest.approx(0.4, abs=0.03)


def test_places_that_were_not_used_in_time_are_lost_and_the_rate_is_kept(clock):
    store = MemoryStore(clock=clock)
    limiter = RateLimiter("api", 1000, burst=1, max_wait=1.0, store=store, clock=clock)
    for _ in range(100):
        limiter.acquire()
    clock.advance(10.0)
    started = clock.monotonic()
    for _ in range(50):
        limiter.acquire()
    assert clock.monotonic() - started >= 0.045


def test_a_refusal_costs_no_second_question_before_a_place_is_free(clock):
    store = MemoryStore(clock=clock)
    limiter = RateLimiter("api", 1, store=store, clock=clock)
    limiter.acquire()
    asked = []
    transact = store.transact
    store.transact = lambda key, *arguments, **more: asked.append(key) or transact(key, *arguments, **more)
    assert admitted(limiter, 100) == 0
    assert asked.count("rate/api") == 1  # the clerk looks after the store meanwhile
    clock.advance(1.0)
    assert admitted(limiter, 1) == 1


def test_a_drain_is_obeyed_by_all(clock):
    store = MemoryStore(clock=clock)
    one, two = (RateLimiter("api", 5, store=store, clock=clock) for _ in range(2))
    one.drain(3.0)
    assert admitted(two, 1) == 0
    clock.advance(3.0)
    assert admitted(two, 1) == 1


def test_no_place_is_taken_that_the_deadline_does_not_reach(clock):
    store = MemoryStore(clock=clock)
    limiter = RateLimiter("api", 1, max_wait=10.0, store=store, clock=clock)
    limiter.acquire()
    with deadline(0.5, clock=clock), pytest.raises(RateLimitExceeded):
        limiter.acquire()


def test_without_its_store_each_process_keeps_to_the_rate():
    clock = ManualClock()
    limiter = RateLimiter("api", 5, store="redis://127.0.0.1:1/0", clock=clock)
    assert admitted(limiter, 20) == 5
    limiter.shared._link.store.close()
