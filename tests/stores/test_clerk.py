"""The clerk of a store: what is handed in is made in order, and a store is away only when it does not answer."""

import logging
import threading

import pytest

from resilience.core.clock import SystemClock
from resilience.core.errors import StoreUnavailable
from resilience.stores import clerk, line
from resilience.stores.link import link_to
from resilience.stores.memory import MemoryStore
from resilience.stores.port import Contended
from resilience.testing import eventually


class Counting(MemoryStore):
    """Counts transactions, and waits in front of one until it may go on."""

    def __init__(self):
        super().__init__()
        self.transactions = 0
        self.errors = []
        self.may_go = threading.Event()
        self.may_go.set()

    def transact(self, key, change, **more):
        if key.startswith("resilience/"):
            return super().transact(key, change, **more)
        self.may_go.wait(10.0)
        self.transactions += 1
        if self.errors:
            raise self.errors.pop(0)()
        return super().transact(key, change, **more)


@pytest.fixture
def store():
    with Counting() as made:
        yield made


@pytest.fixture
def link(store):
    store.is_local = store.is_near = False
    return link_to(store)


def append(number):
    return lambda old, now: ([*(old or []), number], len(old or []))


def hand_in(link, key, number, answers):
    with pytest.raises(StoreUnavailable):
        link.transact(key, append(number), lambda answer: answers.append((number, answer)))


def test_changes_of_one_key_that_wait_are_made_in_one_step_and_each_is_answered(link, store):
    store.may_go.clear()
    answers = []
    for number in range(50):
        hand_in(link, "many", number, answers)
    hand_in(link, "other", 50, answers)
    hand_in(link, "many", 51, answers)
    store.may_go.set()
    assert link.flush(10.0)
    assert store.read("many") == [*range(50), 51]
    assert answers == [*((number, number) for number in range(50)), (50, 0), (51, 50)]
    assert store.transactions == 4  # the first one was under way alone


def test_a_store_that_others_keep_busy_is_not_away(link, store, caplog):
    store.errors = [lambda: Contended("others")] * 3
    with caplog.at_level(logging.WARNING, "resilience.store"):
        assert link.transact("busy", append(1), None) == 0
    assert store.read("busy") == [1]
    assert caplog.records == []


class Jumping(SystemClock):
    """The system's clock, which jumps ahead like that of a process that was stopped."""

    ahead = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead


def test_a_process_that_was_stopped_asks_once_more(link, store, monkeypatch, caplog):
    clock = Jumping()
    for module in (clerk, line):
        monkeypatch.setattr(module, "SYSTEM", clock)

    def stopped():
        clock.ahead += clerk.GIVE_UP + clerk.STOPPED + link.patience
        return StoreUnavailable("did not answer in time")

    store.may_go.clear()
    store.errors = [stopped]
    answers = []
    hand_in(link, "stopped", 1, answers)
    store.may_go.set()
    assert link.flush(10.0)
    assert answers == [(1, 0)]
    assert caplog.records == []
    store.may_go.clear()
    store.errors = [stopped, stopped]
    hand_in(link, "stopped", 2, answers)
    store.may_go.set()
    eventually(lambda: link.state == "away")


def test_what_the_store_refused_is_answered_to_nobody(link, store):
    store.may_go.clear()
    store.errors = [lambda: StoreUnavailable("refused")]
    answers = []
    hand_in(link, "refused", 1, answers)
    store.may_go.set()
    eventually(lambda: link.state == "away")
    assert link.flush(10.0)
    assert answers == []


class Member:
    """Keeps something in a store, and notes when it is asked to bring it up to date."""

    prefix = "mine/"

    def __init__(self):
        self.asked = []

    def store_back(self, emptied):
        self.asked.append(emptied)

    def nothing(self, *_):
        pass

    told = store_lost = settle = keep = nothing

    def streams(self):
        return set()


def test_members_are_asked_at_the_first_look_and_told_when_the_store_was_emptied(link, store):
    member = Member()
    link.join(member)
    eventually(lambda: member.asked == [False] and link.clerk.epoch)
    store.transact(clerk.EPOCH, lambda old, now: (None, None))  # it begins anew, under another name
    link.look_at = float("-inf")
    link._wanted.set()
    eventually(lambda: len(member.asked) == 2)
    assert member.asked == [False, True]
