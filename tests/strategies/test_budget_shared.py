"""A retry budget on a store in memory, with a clock by hand: two handles stand for two processes."""

import copy
import logging
import pickle
import uuid

import pytest

from resilience import ConfigError, RetryBudget, RetryPolicy
from resilience.core.errors import StoreUnavailable
from resilience.stores.memory import MemoryStore
from resilience.testing import ManualClock, eventually


@pytest.fixture
def clock():
    return ManualClock(start=1000.0)


@pytest.fixture
def stores(clock):
    room = f"memory://{uuid.uuid4().hex}"
    pair = [MemoryStore(room, clock=clock) for _ in range(2)]
    yield pair
    for store in pair:
        store.close()


@pytest.fixture
def pair(stores, clock):
    """Two budgets of one name that stand for two processes."""
    return [RetryBudget(0.2, 1.0, 10.0, "api", store=store, clock=clock) for store in stores]


def granted(budget, asked):
    return sum(budget.take_retry() for _ in range(asked))


def call(budget, times):
    for _ in range(times):
        budget.first_attempt()


def settled(*budgets):
    for budget in budgets:
        assert budget._shared._link.flush(20.0)


def test_two_processes_spend_one_minimum(pair):
    one, two = pair
    assert granted(one, 4) + granted(two, 100) + granted(one, 100) == 10


def test_the_first_attempts_of_one_buy_retries_of_the_other(pair, clock):
    one, two = pair
    call(one, 100)
    clock.advance(0.2)
    call(one, 1)
    settled(one)
    assert granted(two, 100) == 21  # 101 first attempts: fewer than 20.2 may have been made before
    assert granted(one, 100) == 0


def test_a_call_without_a_retry_asks_nobody_and_tells_ten_times_a_second(pair, stores, clock):
    one, told = pair[0], []
    stores[1].subscribe("budget/", lambda key, data: told.append(data))
    for _ in range(20):
        for _ in range(50):
            one.first_attempt()
            clock.advance(0.001)
        settled(one)  # else the clerk of a busy machine tells several at once
    assert 9 <= len(told) <= 11
    assert sum(told[-1]["firsts"]) >= 900


def test_an_empty_budget_is_refused_without_asking_until_there_is_room_again(pair, stores, clock):
    one, two = pair
    assert granted(one, 100) == 10
    asked = []
    transact = stores[0].transact
    stores[0].transact = lambda key, *rest, **more: asked.append(key) or transact(key, *rest, **more)
    assert granted(one, 100) == 0
    assert asked.count("budget/api") == 0
    clock.advance(11.0)
    assert granted(two, 100) == 10
    assert granted(one, 100) == 0


def test_a_store_that_is_away_leaves_what_was_known_and_then_a_budget_of_ones_own(pair, stores, clock):
    one = pair[0]
    assert granted(one, 6) == 6

    def away(*arguments, **more):
        raise StoreUnavailable("away")

    stores[0].transact = away
    assert granted(one, 1) == 1
    eventually(lambda: one._shared._link.state == "away")
    assert granted(one, 100) == 3  # six of the fleet's ten were known to be spent
    clock.advance(11.0)
    assert granted(one, 100) == 10


def test_while_the_store_is_slow_a_process_makes_four_retries_of_the_minimum_on_credit(pair, clock):
    one, two = pair

    def slow(*arguments, **more):
        raise StoreUnavailable("slow")

    for budget in pair:
        budget._shared._link.transact, budget._shared._link.later = slow, lambda *arguments: None
    assert granted(one, 100) == granted(two, 100) == 4
    call(one, 100)
    assert granted(one, 100) == 16  # and what its own calls have earned


def test_what_was_spent_without_the_store_is_told_when_it_is_back(pair, stores, clock):
    one, two = pair
    one._shared._link.state = "away"  # nobody has looked yet
    assert granted(one, 7) == 7
    one._shared._link.state = "ready"
    clock.advance(1.0)
    assert granted(one, 1) == 1
    assert granted(two, 100) == 2


def test_garbage_under_its_key_is_replaced(pair, stores):
    stores[0].transact("budget/api", lambda old, now: (["garbage"], None))
    assert granted(pair[0], 100) == 10
    assert granted(pair[1], 100) == 0


def test_other_limits_elsewhere_are_warned_of_once_and_ones_own_are_kept(stores, clock, caplog):
    one = RetryBudget(0.2, 1.0, 10.0, "api", store=stores[0], clock=clock)
    two = RetryBudget(0.2, 2.0, 10.0, "api", store=stores[1], clock=clock)
    with caplog.at_level(logging.WARNING, "resilience.store"):
        assert granted(one, 100) == 10
        assert granted(two, 100) == 10
    assert [record.message for record in caplog.records] == [
        "budget/api: another process has the limits {'ratio': 0.2, 'min_per_second': 1.0, 'ttl': 10.0}, "
        "this one keeps to its own (ratio=0.2, min_per_second=2.0, ttl=10.0)"
    ]


def test_the_same_name_on_the_same_store_is_the_same_budget(stores, clock):
    budget = RetryBudget(name="api", store=stores[0], clock=clock)
    assert RetryBudget(name="api", store=stores[0]) is budget
    assert RetryBudget(name="api", store=stores[1]) is not budget
    assert RetryBudget(name="api") is not budget
    with pytest.raises(ConfigError) as refused:
        RetryBudget(ratio=0.5, name="api", store=stores[0])
    assert refused.value.key == "name"


def test_a_store_needs_a_name(stores):
    with pytest.raises(ConfigError) as refused:
        RetryBudget(store=stores[0])
    assert refused.value.key == "name"


def test_it_survives_copies_and_goes_to_other_processes_by_the_url_of_its_store(tmp_path):
    budget = RetryBudget(name="travels", store=f"file://{tmp_path}/state")
    policy = RetryPolicy(budget=budget)
    assert copy.deepcopy(budget) is budget
    assert pickle.loads(pickle.dumps(policy)).budget is budget
    sent = pickle.dumps(budget)
    store = budget._shared.store
    del policy, budget
    revived = pickle.loads(sent)
    assert revived._shared.store is store
    store.close()
