"""A question to Redis whose answer takes longer than the call may wait: made once, whoever takes the answer in."""

import threading
import time

import pytest
import redis

from resilience import CircuitBreaker, CircuitBreakerConfig, open_store
from resilience.core.errors import StoreUnavailable
from resilience.stores.port import NotMade
from resilience.stores.swap import Unanswered
from resilience.testing.store_contract import count

BRIEFLY = 0.05


@pytest.fixture
def store(own_valkey):
    with open_store(own_valkey.url) as made:
        assert made.transact("key", count) == 1
        yield made


@pytest.fixture
def admin(own_valkey):
    with redis.Redis.from_url(own_valkey.url) as client:
        yield client


@pytest.fixture
def question(store, admin):
    """A change that waits for its answer, from a server that answers again."""
    return asked(store, admin)


def asked(store, admin, answers=True):
    admin.client_pause(60_000, all=False)
    with pytest.raises(Unanswered) as caught:
        store.begin("key", count, within=BRIEFLY)
    if answers:
        admin.client_unpause()
    return caught.value


def test_another_thread_waits_on_for_the_answer(store, question):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(question.go_on(5.0)))
    thread.start()
    thread.join()
    assert answers == [2]
    assert store.read("key") == {"n": 2}
    assert store.transact("key", count) == 3


def test_whoever_asks_next_takes_the_answer_in_first(store, question):
    assert store.read("key") == {"n": 2}
    assert store.begin("key", count, within=5.0) == 3
    assert question.go_on(5.0) == 2
    assert store.read("key") == {"n": 3}


def test_where_somebody_was_faster_the_change_is_made_anew(store, own_valkey, admin):
    with open_store(own_valkey.url) as other:
        other.transact("key", count)
    assert asked(store, admin).go_on(5.0) == 3
    assert store.read("key") == {"n": 3}


def test_a_question_whose_script_is_not_known_is_asked_anew(store, admin):
    admin.script_flush()
    assert asked(store, admin).go_on(5.0) == 2
    assert store.read("key") == {"n": 2}


def test_an_answer_that_will_not_come_is_told(store, own_valkey, admin):
    question = asked(store, admin, answers=False)
    own_valkey.process.kill()
    own_valkey.process.wait()
    with pytest.raises(StoreUnavailable):
        store.read("key", within=BRIEFLY)
    with pytest.raises(StoreUnavailable, match="lost before"):
        question.go_on(5.0)
    with pytest.raises(NotMade):
        store.begin("key", count, within=BRIEFLY)


def test_while_an_answer_is_awaited_nothing_else_is_begun(store, admin):
    question = asked(store, admin, answers=False)
    with pytest.raises(NotMade):
        store.begin("key", count, within=BRIEFLY)
    admin.client_unpause()
    assert question.go_on(5.0) == 2


def test_failures_while_the_server_pauses_are_counted_once(store, admin):
    breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=100), store=store)

    def fail():
        with pytest.raises(ConnectionError):
            breaker.call(failing)

    fail()
    assert store.link.flush(10.0)
    admin.client_pause(150, all=False)
    for _ in range(10):
        fail()
    end = time.monotonic() + 20.0
    while not (store.link.flush(0.1) and breaker.stats.failures_in_a_row == 11):
        assert time.monotonic() < end, breaker.stats
    assert store.read("breaker/api")["failures"] == 11


def test_threads_that_fail_at_once_while_the_server_pauses_do_not_lose_it(store, admin, caplog):
    breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=100), store=store)
    with pytest.raises(ConnectionError):
        breaker.call(failing)
    assert store.link.flush(10.0)
    start = threading.Barrier(16)

    def fail():
        start.wait()
        with pytest.raises(ConnectionError):
            breaker.call(failing)

    threads = [threading.Thread(target=fail) for _ in range(16)]
    admin.client_pause(150, all=False)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = time.monotonic() + 20.0
    while not (store.link.flush(0.1) and breaker.stats.failures_in_a_row == 17):
        assert time.monotonic() < end, breaker.stats
    assert store.read("breaker/api")["failures"] == 17
    assert caplog.records == []


def failing():
    raise ConnectionError("refused")
