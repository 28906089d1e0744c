"""Shared breakers on a store in memory, with a clock by hand: two handles stand for two processes."""

import os
import threading
import uuid

import pytest

from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CountWindow, EventStream, open_store
from resilience.core.errors import StoreUnavailable
from resilience.rules import breaker_doc
from resilience.rules.breaker_state import BreakerState
from resilience.stores.line import SLOW
from resilience.stores.memory import MemoryStore
from resilience.stores.port import NotMade
from resilience.testing import ManualClock, eventually

NAME = "api"


@pytest.fixture
def clock():
    return ManualClock(start=1000.0)


@pytest.fixture
def pair(clock):
    """Makes two breakers of one name that stand for two processes."""
    stores = []

    def make(**settings):
        config = CircuitBreakerConfig(**settings)
        room = f"memory://{uuid.uuid4().hex}"
        stores.extend(MemoryStore(room, clock=clock) for _ in range(2))
        return [CircuitBreaker(NAME, config, store=store, clock=clock) for store in stores[-2:]]

    yield make
    for store in stores:
        store.close()


def failing():
    raise ConnectionError("refused")


def fail(breaker, times=1):
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(failing)


def settled(*breakers):
    """Waits until the clerks have nothing left to do, so that everybody listens."""
    for breaker in breakers:
        assert breaker.call(lambda: 1) == 1
        eventually(lambda breaker=breaker: breaker.store.link.clerk.epoch is not None)
        assert breaker.store.link.flush(10.0)


def test_failures_in_a_row_are_counted_together_and_a_success_ends_the_row(pair):
    one, two = pair(failure_threshold=3)
    settled(one, two)
    fail(one)
    fail(two)
    assert one.stats.failures_in_a_row == two.stats.failures_in_a_row == 2
    assert two.call(lambda: 1) == 1
    assert one.stats.failures_in_a_row == 0
    fail(one, 2)
    fail(two)
    for breaker in (one, two):
        assert str(breaker.state) == "open"
        with pytest.raises(CircuitOpenError, match="refused"):
            breaker.call(lambda: 1)
        assert breaker.stats.state_changes == 1


def test_a_healthy_call_does_not_touch_the_store(pair):
    one, two = pair()
    settled(one, two)

    def touched(*arguments, **more):
        raise AssertionError("the store was touched by a call")

    store = one.store
    mine = threading.current_thread()
    original = store.transact
    store.transact = lambda *a, **k: touched() if threading.current_thread() is mine else original(*a, **k)
    for _ in range(100):
        assert one.call(lambda: 1) == 1
    with one:
        pass
    one.acquire().success()


def test_places_of_probes_are_given_once_and_those_of_the_dead_are_taken_over(pair, clock):
    one, two = pair(failure_threshold=1, timeout=10.0, probe_lease=5.0, max_requests=1, success_threshold=1)
    settled(one, two)
    fail(one)
    clock.advance(10.0)
    dead = one.acquire()
    with pytest.raises(CircuitOpenError) as refused:
        two.acquire()
    assert refused.value.retry_after == pytest.approx(5.0)
    clock.advance(5.0)
    heir = two.acquire()
    dead.success()  # too late: its place is another's
    assert str(one.state) == str(two.state) == "half_open"
    heir.success()
    assert str(one.state) == str(two.state) == "closed"


def test_a_place_given_back_is_free_for_all(pair, clock):
    one, two = pair(failure_threshold=1, timeout=10.0, max_requests=1)
    settled(one, two)
    fail(one)
    clock.advance(10.0)
    one.acquire().ignore()
    two.acquire().failure()
    assert str(one.state) == "open"
    assert one.retry_after() == pytest.approx(10.0)


def test_a_window_is_its_process_s_own_and_its_opening_everybody_s(pair):
    one, two = pair(window=CountWindow(10), minimum_calls=4, failure_rate=0.5)
    settled(one, two)
    fail(one, 2)
    fail(two, 2)
    assert str(one.state) == str(two.state) == "closed"
    fail(two)  # the third of four calls that failed in this process
    assert str(one.state) == str(two.state) == "open"
    one.reset()
    assert str(two.state) == "closed"
    fail(two, 3)
    assert str(two.state) == "closed"  # the window began anew


def test_an_opening_by_slow_calls_is_everybody_s(pair):
    one, two = pair(window=CountWindow(10), minimum_calls=4, slow_call_duration=1.0, slow_call_rate=0.5)
    settled(one, two)
    for _ in range(3):  # and the one that was quick
        one.on_success(one.admit(), duration=2.0)
    assert str(one.state) == str(two.state) == "open"


def test_one_opening_is_one_event_in_the_process_that_made_it(pair, clock, caplog):
    one, two = pair(failure_threshold=2, timeout=600.0)
    heard = []
    for breaker in (one, two):
        breaker.events = EventStream()
        breaker.events.subscribe(lambda event, name=breaker: heard.append(name), ("breaker_state_changed",))
    settled(one, two)
    fail(one)
    fail(two)
    for breaker in (one, two):
        breaker.events.flush(5.0)
    assert heard == [two]
    assert len([record for record in caplog.records if record.name == "resilience.breaker"]) == 1


def test_orders_reach_the_others_and_an_until_is_a_point_in_time_of_each(pair, clock):
    one, two = pair(success_threshold=1)
    settled(one, two)
    one.force_open("maintenance", until=clock.monotonic() + 30.0)
    with pytest.raises(CircuitOpenError):
        two.call(lambda: 1)
    assert two.retry_after() == pytest.approx(30.0)
    clock.advance(30.0)
    assert two.call(lambda: 1) == 1
    assert str(one.state) == "closed"
    two.disable()
    fail(one, 20)
    assert str(one.state) == "disabled"


def test_times_in_the_store_are_the_store_s(clock):
    theirs = ManualClock(start=5.0)  # another machine, whose clock began elsewhere
    room = f"memory://{uuid.uuid4().hex}"
    here, there = MemoryStore(room, clock=clock), MemoryStore(room, clock=clock)
    config = CircuitBreakerConfig(failure_threshold=1, timeout=60.0)
    with here, there:
        one = CircuitBreaker(NAME, config, store=here, clock=clock)
        two = CircuitBreaker(NAME, config, store=there, clock=theirs)
        settled(one, two)
        fail(one)
        assert two.retry_after() == pytest.approx(60.0)
        theirs.advance(59.0)
        with pytest.raises(CircuitOpenError):
            two.call(lambda: 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_asks_the_store_first(tmp_path):
    with open_store(f"file://{tmp_path}/state") as store, open_store(f"file://{tmp_path}/state") as other:
        breaker = CircuitBreaker(NAME, CircuitBreakerConfig(failure_threshold=2), store=store)
        assert breaker.call(lambda: 1) == 1
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.read(reader, 1)
                try:
                    breaker.call(lambda: 1)
                    os._exit(1)
                except CircuitOpenError:
                    os._exit(0)
            finally:
                os._exit(2)
        fail(CircuitBreaker(NAME, CircuitBreakerConfig(failure_threshold=2), store=other), 2)
        os.write(writer, b"!")
        _, status = os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
        assert os.waitstatus_to_exitcode(status) == 0
        eventually(lambda: str(breaker.state) == "open")


def test_forks_under_load_leave_children_that_work(tmp_path):
    with open_store(f"file://{tmp_path}/state") as store:
        breaker = CircuitBreaker(NAME, CircuitBreakerConfig(failure_threshold=10_000), store=store)
        stop = threading.Event()

        def work():
            while not stop.is_set():
                try:
                    breaker.call(failing)
                except ConnectionError:
                    stop.wait(0.001)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    try:
                        try:
                            breaker.call(failing)
                        except ConnectionError:
                            os._exit(0)
                    finally:
                        os._exit(1)
                _, status = os.waitpid(pid, 0)
                assert os.waitstatus_to_exitcode(status) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


class Away(MemoryStore):
    """A store that can be taken away."""

    away = False

    def transact(self, key, change, **more):
        if self.away:
            raise StoreUnavailable("away")
        return super().transact(key, change, **more)


def test_what_happened_without_the_store_is_brought_in_when_it_is_back(clock):
    room = f"memory://{uuid.uuid4().hex}"
    mine, theirs = Away(room, clock=clock), MemoryStore(room, clock=clock)
    config = CircuitBreakerConfig(failure_threshold=3, timeout=600.0)
    with mine, theirs:
        one, two = (CircuitBreaker(NAME, config, store=store, clock=clock) for store in (mine, theirs))
        settled(one, two)
        fail(one)
        mine.away = True
        fail(one)
        eventually(lambda: mine.link.state == "away")
        mine.away = False
        eventually(lambda: mine.link.state == "ready")
        eventually(lambda: two.stats.failures_in_a_row == 2)
        mine.away = True
        fail(one)
        assert str(one.state) == "open"
        assert str(two.state) == "closed"
        mine.away = False
        eventually(lambda: str(two.state) == "open")
        assert one.stats.state_changes == 1


class Slow(MemoryStore):
    """A store that calls do not wait for, and that answers the clerk when it may."""

    def __init__(self, url, clock):
        super().__init__(url, clock=clock)
        self.answers = threading.Event()
        self.answers.set()
        self.away = False

    def begin(self, key, change, **more):
        if not self.answers.is_set():
            raise NotMade("busy")
        return super().begin(key, change, **more)

    def transact(self, key, change, **more):
        self.answers.wait(30.0)
        if self.away:
            raise StoreUnavailable("away")
        return super().transact(key, change, **more)


@pytest.fixture
def heard():
    return []


@pytest.fixture
def slow_pair(clock, heard):
    room = f"memory://{uuid.uuid4().hex}"
    config = CircuitBreakerConfig(failure_threshold=3, timeout=600.0)
    with Slow(room, clock) as mine, Slow(room, clock) as theirs:
        stores = mine, theirs
        pair = [CircuitBreaker(NAME, config, store=store, clock=clock, events=EventStream()) for store in stores]
        for breaker in pair:
            breaker.events.subscribe(lambda event: heard.append(event.new), ("breaker_state_changed",))
        settled(*pair)
        yield pair
        for breaker in pair:
            breaker.store.answers.set()


def all_heard(*breakers):
    for breaker in breakers:
        assert breaker.store.link.flush(10.0)
        assert breaker.events.flush(10.0)


def test_an_opening_that_is_on_its_way_is_told_once_by_whoever_made_it(slow_pair, heard):
    one, two = slow_pair
    for breaker in slow_pair:
        breaker.store.answers.clear()
        fail(breaker, 3)
        assert str(breaker.state) == "open"  # each for itself, since the store is slow
    assert heard == []
    for breaker in slow_pair:
        breaker.store.answers.set()
    all_heard(one, two)
    assert heard == ["open"]


def test_an_opening_that_does_not_arrive_is_told_by_each(slow_pair, heard):
    for breaker in slow_pair:
        breaker.store.answers.clear()
        breaker.store.away = True
        fail(breaker, 3)
    for breaker in slow_pair:
        breaker.store.answers.set()
        eventually(lambda breaker=breaker: breaker.store.link.state == "away")
    eventually(lambda: heard == ["open", "open"])


def test_after_an_order_that_came_late_others_are_heard_again(slow_pair, heard):
    one, two = slow_pair
    one.store.answers.clear()
    one.force_open("maintenance")
    assert str(two.state) == "closed"
    one.store.answers.set()
    eventually(lambda: str(two.state) == "forced_open")
    all_heard(one)
    assert heard == ["forced_open"]
    two.reset()
    eventually(lambda: str(one.state) == "closed")


def test_what_is_handed_in_is_not_brought_in_as_well(pair):
    one, two = pair(failure_threshold=100)
    settled(one, two)
    fail(one)
    link = one.store.link
    link._thread = threading.current_thread()  # this test is the clerk
    link.state = SLOW
    fail(one, 5)
    one._books.shared.bring_back(one, False)
    while link._waiting:
        link.clerk.step()
    assert one.stats.failures_in_a_row == two.stats.failures_in_a_row == 6


def test_a_document_survives_its_own_form(clock):
    config = CircuitBreakerConfig()
    state = BreakerState(config, 10.0)
    doc = breaker_doc.write(state, None, 10.0, threshold=5)
    assert breaker_doc.write(breaker_doc.read(doc, config, 10.0), doc, 10.0)["revision"] == doc["revision"] + 1
    for garbage in (None, 7, "x", [], {}, {**doc, "probes": 3}, {**doc, "since": "yesterday"}, {**doc, "mode": "ajar"}):
        assert breaker_doc.state_of(garbage) is None
        assert str(breaker_doc.read(garbage, config, 10.0).mode) == "closed"


def test_a_document_of_a_later_version_is_left_alone(clock):
    with MemoryStore(clock=clock) as store:
        later = {"version": 99, "mode": "ajar"}
        store.transact(f"breaker/{NAME}", lambda old, now: (later, None))
        breaker = CircuitBreaker(NAME, CircuitBreakerConfig(failure_threshold=1), store=store, clock=clock)
        fail(breaker)
        assert str(breaker.state) == "open"
        assert store.read(f"breaker/{NAME}") == later
