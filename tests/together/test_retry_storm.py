"""A thousand callers, their dependency down and up again: budget and jitter keep the storm from it (promises 17, 18).

The callers are real calls of `Retry` on threads, in virtual time: the clock lets exactly one of them run, always the
one whose sleep ends first, so that a run is the same each time.
"""

import heapq
import random
import threading

import pytest

from resilience import Retry, RetryBudget, RetryPolicy, history
from resilience.core.clock import SYSTEM

CALLERS, ATTEMPTS, RATIO, LEAST, TTL = 1000, 4, 0.2, 1.0, 10.0


class TurnClock:
    """Virtual time shared by threads that take turns: a sleeper runs again when all others sleep longer."""

    def __init__(self):
        self.now = 0.0
        self.waiting = []
        self.number = 0
        self.slept = []

    def monotonic(self):
        return self.now

    def time(self):
        return self.now

    def wait(self, condition, timeout):
        raise AssertionError("nobody waits for a condition here")

    def sleep(self, seconds, wake=None):
        self.slept.append(seconds)
        self.turn_at(self.now + seconds)
        return False

    def turn_at(self, when):
        """Gives the turn to whose time comes first, and waits for one's own."""
        turn = threading.Lock()
        turn.acquire()
        heapq.heappush(self.waiting, (when, self.number, turn))
        self.number += 1
        self.next()
        if not turn.acquire(timeout=60.0):
            raise AssertionError("this turn never came")

    def next(self):
        if self.waiting:
            self.now, _, turn = heapq.heappop(self.waiting)
            turn.release()


class Dependency:
    """Down until `back`; `reached` are the times of the calls that came to it."""

    def __init__(self, clock, back):
        self.clock, self.back, self.reached = clock, back, []

    def __call__(self):
        self.reached.append(self.clock.now)
        if self.clock.now < self.back:
            raise ConnectionError("down")
        return "ok"


def storm(policy, clock, dependency, starts, seed=0):
    """(when each caller began, when it ended, its error or None), by every caller."""
    retry, outcomes = Retry(policy, clock=clock, rng=random.Random(seed)), []
    heapq.heapify(clock.waiting)

    def caller(begin, turn):
        turn.acquire()
        error = None
        try:
            retry.call(dependency)
        except ConnectionError as caught:
            error = caught
        outcomes.append((begin, clock.now, error))
        clock.next()

    threads = []
    for begin in starts:
        turn = threading.Lock()
        turn.acquire()
        heapq.heappush(clock.waiting, (begin, clock.number, turn))
        clock.number += 1
        threads.append(threading.Thread(target=caller, args=(begin, turn)))
    for thread in threads:
        thread.start()
    clock.next()
    end = SYSTEM.monotonic() + 60.0
    for thread in threads:
        thread.join(max(0.0, end - SYSTEM.monotonic()))
    assert len(outcomes) == len(threads)
    return outcomes


@pytest.fixture(autouse=True)
def small_stacks():
    before = threading.stack_size(256 * 1024)
    yield
    threading.stack_size(before)


def budgeted(clock, **changes):
    budget = RetryBudget(ratio=RATIO, min_per_second=LEAST, ttl=TTL, clock=clock)
    return RetryPolicy(**{"max_retries": ATTEMPTS - 1, "base_delay": 0.1, "budget": budget, **changes})


@pytest.mark.parametrize("spread", [0.0, 0.001, 1.0, 5.0])
def test_a_dependency_that_is_down_sees_a_fifth_more_than_the_first_attempts(spread):
    clock = TurnClock()
    dependency, rng = Dependency(clock, back=1e9), random.Random(17)
    outcomes = storm(budgeted(clock), clock, dependency, [rng.uniform(0, spread) for _ in range(CALLERS)])
    assert CALLERS < len(dependency.reached) <= CALLERS * (1 + RATIO) + LEAST * TTL
    assert all(error is not None for _, _, error in outcomes)
    assert any(history(error).stop_reason == "budget empty" for _, _, error in outcomes)


def test_without_a_budget_the_same_dependency_would_see_four_times_as_many():
    clock = TurnClock()
    dependency = Dependency(clock, back=1e9)
    storm(budgeted(clock, budget=None), clock, dependency, [0.0] * CALLERS)
    assert len(dependency.reached) == CALLERS * ATTEMPTS


@pytest.mark.parametrize("seed", range(3))
def test_callers_succeed_again_as_soon_as_the_dependency_does(seed):
    """Of those who call in the 5 s after its return, 99 % get their answer, and within those 5 s."""
    clock, back = TurnClock(), 5.0
    dependency, rng = Dependency(clock, back), random.Random(seed)
    starts = [rng.uniform(0, back + 5.0) for _ in range(CALLERS)]
    outcomes = storm(budgeted(clock), clock, dependency, starts, seed)
    later = [(ended, error) for began, ended, error in outcomes if began >= back]
    assert len(later) > 300
    assert sum(error is None and ended <= back + 5.0 for ended, error in later) / len(later) >= 0.99


def test_those_who_were_still_trying_when_it_came_back_get_their_answer():
    clock = TurnClock()
    dependency = Dependency(clock, back=0.05)
    outcomes = storm(budgeted(clock), clock, dependency, [0.0] * CALLERS)
    helped = [error for _, _, error in outcomes if error is None]
    assert len(helped) >= 0.9 * CALLERS * RATIO * 0.5
    assert all(ended <= 5.0 for _, ended, _ in outcomes)


def test_a_thousand_that_fail_together_spread_over_the_whole_delay():
    clock = TurnClock()
    dependency = Dependency(clock, back=1e9)
    policy = RetryPolicy(max_retries=1, base_delay=1.0)
    storm(policy, clock, dependency, [0.0005] * CALLERS)
    retries = dependency.reached[CALLERS:]
    slots = [0] * 101
    for when in retries:
        slots[int((when - 0.0005) * 100)] += 1
    assert len(retries) == CALLERS
    assert max(slots) <= 3 * CALLERS / 100


def test_late_retries_of_a_fleet_do_not_gather_at_the_cap():
    clock = TurnClock()
    policy = RetryPolicy(max_retries=8, base_delay=0.5, max_delay=2.0)
    storm(policy, clock, Dependency(clock, back=1e9), [0.0] * 200)
    assert len(clock.slept) == 200 * 8
    assert sum(seconds == 2.0 for seconds in clock.slept) / len(clock.slept) < 0.02
