"""The pure breaker walks its table of transitions, and nothing else."""

import json
import random

import pytest

from resilience.rules import breaker as rules
from resilience.rules.breaker import CHANGED, COUNTED, LATE, SUPPRESSED, TRANSITIONS
from resilience.rules.breaker_state import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
    BreakerState,
    CircuitState,
)
from resilience.strategies.breaker_config import CircuitBreakerConfig, CountWindow, TimeWindow

CONFIG = CircuitBreakerConfig(
    failure_threshold=1,
    success_threshold=1,
    timeout=10.0,
    slow_call_duration=1.0,
    window=CountWindow(1),
    minimum_calls=1,
)
ORDERS = {"force_open": FORCED_OPEN, "disable": DISABLED, "metrics_only": METRICS_ONLY, "reset": CLOSED}


def state_in(mode, now=0.0, config=CONFIG):
    """A breaker state in `mode`, and the place of a call that is under way in it."""
    state = BreakerState(config, now)
    if mode in (OPEN, HALF_OPEN):
        rules.fail(state, config, now, state.generation, rules.FREE, False, 0)
        if mode is HALF_OPEN:
            place = rules.admit(state, config, now + config.timeout)
            return state, place
    elif mode is not CLOSED:
        rules.order(state, config, mode, now, "asked", 0, now + 5.0 if mode is FORCED_OPEN else None)
    return state, rules.FREE


def tell(state, event, place, now):
    if event in ORDERS:
        rules.order(state, CONFIG, ORDERS[event], now, event, 0)
    elif event == "call":
        rules.admit(state, CONFIG, now)
    elif event == "failure":
        rules.fail(state, CONFIG, now, state.generation, place, False, 0)
    else:
        rules.succeed(state, CONFIG, now, state.generation, place, event == "slow call", 0)


@pytest.mark.parametrize(("before", "event", "condition", "after"), TRANSITIONS)
def test_each_row_of_the_table_is_walked_and_starts_a_generation(before, event, condition, after):
    state, place = state_in(before)
    generation, changes = state.generation, state.changes
    tell(state, event, place, now=10.0)
    assert state.mode is after
    assert state.generation == generation + 1
    assert state.changes == changes + 1


@pytest.mark.parametrize("before", CircuitState)
@pytest.mark.parametrize("event", ["call", "failure", "success", "slow call", *ORDERS])
def test_what_the_table_does_not_list_leaves_the_state(before, event):
    listed = {(row[0], row[1]) for row in TRANSITIONS}
    if (before, event) in listed:
        return
    state, place = state_in(before)
    tell(state, event, place, now=10.0)
    assert state.mode is before


def test_every_state_is_left_and_entered_by_some_row():
    assert {row[0] for row in TRANSITIONS} == set(CircuitState) == {row[3] for row in TRANSITIONS}


def test_conditions_hold_the_change_back():
    config = CircuitBreakerConfig(failure_threshold=2, success_threshold=2, timeout=10.0)
    state = BreakerState(config, 0.0)
    assert rules.fail(state, config, 0.0, 1, rules.FREE, False, 0) == COUNTED
    assert state.mode is CLOSED
    assert rules.fail(state, config, 0.0, 1, rules.FREE, False, 0) == CHANGED
    assert rules.admit(state, config, 9.999) is None
    assert state.mode is OPEN
    assert rules.admit(state, config, 10.0) == 1
    assert rules.succeed(state, config, 10.0, state.generation, 1, False, 0) == COUNTED
    assert state.mode is HALF_OPEN


def test_a_reset_of_a_closed_breaker_starts_a_generation_without_a_change():
    state, _ = state_in(CLOSED)
    rules.order(state, CONFIG, CLOSED, 1.0, "reset", 0)
    assert (state.generation, state.changes) == (2, 0)
    assert rules.fail(state, CONFIG, 1.0, 1, rules.FREE, False, 0) == LATE


def test_metrics_only_holds_openings_back_and_counts_them():
    state, _ = state_in(METRICS_ONLY)
    for _ in range(3):
        assert rules.fail(state, CONFIG, 1.0, state.generation, rules.FREE, False, 0) == SUPPRESSED
    assert (state.mode, state.suppressed) == (METRICS_ONLY, 3)


def test_two_orders_to_force_open_keep_the_later_end():
    state, _ = state_in(FORCED_OPEN)
    rules.order(state, CONFIG, FORCED_OPEN, 1.0, "again", 0, 50.0)
    assert rules.retry_after(state, CONFIG, 20.0) == 30.0
    assert state.changes == 1


@pytest.mark.parametrize("window", [None, CountWindow(4), TimeWindow(20.0)])
@pytest.mark.parametrize("seed", range(20))
def test_a_state_in_a_store_decides_like_one_in_memory(seed, window):
    rng = random.Random(seed)
    config = CircuitBreakerConfig(
        failure_threshold=2, success_threshold=2, timeout=3.0, max_requests=2, window=window, minimum_calls=3,
        reset_timeout=4.0,
    )  # fmt: skip
    memory, stored, now, places = BreakerState(config, 0.0), BreakerState(config, 0.0), 0.0, [(1, rules.FREE)]
    for _ in range(80):
        stored = BreakerState.from_plain(json.loads(json.dumps(stored.to_plain(), allow_nan=False)))
        now += rng.choice([0.0, 0.5, 3.0])
        event, (generation, place) = rng.random(), rng.choice(places)
        if event < 0.4:
            answers = {rules.admit(memory, config, now), rules.admit(stored, config, now)}
            places.append((memory.generation, next(iter(answers)) or rules.FREE))
        else:
            record = rules.fail if event < 0.8 else rules.succeed
            answers = {record(state, config, now, generation, place, False, 0) for state in (memory, stored)}
        assert len(answers) == 1
        assert stored.to_plain() == memory.to_plain()


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 7"):
        BreakerState.from_plain({"version": 7})
