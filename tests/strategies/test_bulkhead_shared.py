"""A bulkhead on a store in memory, with a clock by hand: two handles stand for two processes."""

import os
import threading
import time
import uuid
import weakref

import pytest

from resilience import Bulkhead, BulkheadFullError, ErrorRecoveryManager
from resilience.rules import leases as rules
from resilience.rules.pressure import Pressure
from resilience.stores.line import AWAY, READY
from resilience.stores.memory import MemoryStore
from resilience.strategies.bulkhead_shared import LEASE
from resilience.testing import ManualClock, eventually


@pytest.fixture
def clock():
    return ManualClock(start=1000.0)


@pytest.fixture
def crowd(clock):
    """Makes bulkheads of one name that stand for as many processes."""
    stores = []

    def make(count, limit=5, **more):
        room = f"memory://{uuid.uuid4().hex}"
        new = [MemoryStore(room, clock=clock) for _ in range(count)]
        stores.extend(new)
        return [Bulkhead("api", limit, clock=clock, store=store, **more) for store in new]

    yield make
    for store in stores:
        store.close()


def entered(bulkhead, times=1):
    count = 0
    for _ in range(times):
        try:
            bulkhead.acquire()
            count += 1
        except BulkheadFullError:
            pass
    return count


def link_of(bulkhead):
    return bulkhead.shared._link


def settled(*bulkheads):
    for bulkhead in bulkheads:
        assert link_of(bulkhead).flush(20.0)


def is_asking(bulkhead):
    with bulkhead._changed:
        return bulkhead.shared._is_asking_held()


def renew(bulkhead):
    before = bulkhead.shared._turn
    bulkhead.shared._renewed_at = float("-inf")
    bulkhead.shared.renew()
    eventually(lambda: bulkhead.shared._turn > before and not is_asking(bulkhead))


def leased(bulkhead):
    return sum(held for held, *_ in link_of(bulkhead).store.read("bulkhead/api")["holders"].values())


def test_two_processes_share_the_slots(crowd):
    one, two = crowd(2)
    assert entered(one, 3) + entered(two, 9) == 5
    assert entered(one) == 0
    two.release()
    eventually(lambda: entered(one) == 1)
    assert entered(one, 9) == 0


def test_a_slot_that_is_not_in_use_goes_back_at_once_where_slots_are_scarce(crowd):
    one, two = crowd(2, 4)
    assert entered(one, 4) == 4
    for _ in range(4):
        one.release()
    eventually(lambda: leased(one) <= 3)
    assert entered(two) == 1
    eventually(lambda: entered(two, 4) or two.in_flight == 4)


def test_calls_that_find_a_leased_slot_ask_nobody(crowd):
    (one,) = crowd(1, 100)
    store, asked = link_of(one).store, []
    assert entered(one, 8) == 8
    transact = store.transact
    store.transact = lambda key, *rest, **more: asked.append(key) or transact(key, *rest, **more)
    for _ in range(1000):
        one.release()
        one.acquire()
    assert asked.count("bulkhead/api") <= 2  # the clerk renews once a second


def test_slots_are_leased_in_blocks(crowd):
    (one,) = crowd(1, 1000)
    store, asked = link_of(one).store, []
    transact = store.transact
    store.transact = lambda key, *rest, **more: asked.append(key) or transact(key, *rest, **more)
    assert entered(one, 256) == 256
    assert asked.count("bulkhead/api") <= 12


def test_what_a_burst_has_leased_goes_back_after_it(crowd):
    (one,) = crowd(1, 100)
    assert entered(one, 20) == 20
    for _ in range(19):
        one.release()
    for _ in range(20):
        renew(one)
    assert leased(one) == 2  # twice what is in use


def test_the_leases_of_a_process_that_is_gone_end(crowd, clock):
    gone, heir = crowd(2)
    assert entered(gone, 5) == 5
    link_of(gone).store.close()
    assert entered(heir) == 0
    clock.advance(LEASE - 0.1)
    assert entered(heir) == 0
    clock.advance(0.2)
    assert entered(heir, 9) == 5


def test_a_process_that_was_stopped_starts_nothing_on_what_it_held(crowd, clock):
    stopped, heir = crowd(2)
    assert entered(stopped, 2) == 2
    link_of(stopped).clerk.keep_at = float("inf")  # its clerk does not come to renew
    clock.advance(LEASE + 0.1)
    assert entered(heir, 9) == 5
    stopped.release()
    assert entered(stopped) == 0
    settled(stopped)
    heir.release()
    eventually(lambda: leased(heir) == 5)
    assert entered(stopped) == 0  # one call of before still runs, in the slot that is free now
    stopped.release()
    eventually(lambda: entered(stopped) == 1)


def test_leases_are_renewed_while_calls_run(crowd, clock):
    one, two = crowd(2)
    assert entered(one, 5) == 5
    for _ in range(4):
        clock.advance(LEASE / 2)
        renew(one)
    assert entered(two) == 0


def test_a_call_that_waits_gets_the_slot_another_process_gives_back(crowd):
    one, two = crowd(2, 1, max_queue=4, max_wait=60.0)
    one.acquire()
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (two.acquire(), done.set()))
    waiting.start()
    eventually(lambda: two.waiting == 1)
    assert not done.wait(0.05)
    one.release()
    assert done.wait(20.0)
    waiting.join()
    assert (one.in_flight, two.in_flight) == (0, 1)


def test_a_process_that_never_stops_calling_lets_others_have_their_turn(crowd):
    busy, other = crowd(2, 1, max_queue=8, max_wait=60.0)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            with busy:
                pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: busy.in_flight)
        for _ in range(5):
            other.acquire()
            other.release()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_while_the_store_is_away_each_process_has_the_whole_limit(crowd):
    one, two = crowd(2)
    assert entered(one, 3) + entered(two, 3) == 5
    for bulkhead in (one, two):
        link_of(bulkhead).state = AWAY
    entered(one, 9), entered(two, 9)
    assert one.in_flight == two.in_flight == 5


def test_when_the_store_is_back_what_runs_is_counted_first(crowd):
    one, two = crowd(2)
    entered(one)
    for bulkhead in (one, two):
        link_of(bulkhead).state = AWAY
    assert entered(one, 4) == 4
    link_of(one).state = READY
    link_of(one).members["bulkhead/"].store_back(False)
    settled(one)
    link_of(two).state = READY
    link_of(two).members["bulkhead/"].store_back(False)
    assert entered(two) == 0
    one.release()
    eventually(lambda: entered(two) == 1)
    assert entered(two) == 0


def test_a_store_looked_at_for_the_first_time_leaves_the_limit_shared(crowd, monkeypatch):
    one, two = crowd(2)
    assert entered(one, 2) + entered(two, 3) == 5
    settled(one, two)
    monkeypatch.setattr(one.shared, "hand_in", lambda order: None)  # the answer takes its time
    one.shared.store_back()
    assert entered(one, 9) == 0


def test_a_bulkhead_hears_nothing_of_those_with_other_names(crowd):
    (one,) = crowd(1)
    assert entered(one, 2) == 2
    settled(one)
    before, others = one.shared._known, rules.Leases()
    others.revision = before.revision + 100
    one.shared._fleet.told("bulkhead/other", others.to_plain(1))
    assert one.shared._known is before


def test_an_emptied_store_is_filled_again(crowd):
    one, two = crowd(2)
    assert entered(one, 3) == 3
    link_of(two).store.transact("bulkhead/api", lambda old, now: (None, None))
    renew(one)
    eventually(lambda: leased(one) == 3)
    assert entered(two, 9) == 2


@pytest.mark.parametrize("garbage", [["x"], 7, {"version": 9}, {"holders": 1, "line": 2}])
def test_garbage_under_its_key_is_replaced(crowd, garbage):
    one, two = crowd(2)
    link_of(two).store.transact("bulkhead/api", lambda old, now: (garbage, None))
    assert entered(one, 4) + entered(two, 4) == 5


def test_an_answer_that_comes_after_another_change_was_asked_for_changes_nothing(crowd):
    (one,) = crowd(1)
    assert entered(one, 2) == 2
    settled(one)
    slots = one.shared
    with one._changed:
        held, turn = slots.held, slots._turn
        slots._order_held(held)
    slots._learn(turn, (held + 3, slots._until + 60.0, slots._known))
    assert slots.held == held


def test_what_was_asked_for_before_the_slots_were_lost_changes_nothing_afterwards(crowd, clock):
    late, heir = crowd(2)
    link_of(late).clerk.keep_at = float("inf")  # its clerk does not come to renew
    assert entered(late, 2) == 2
    settled(late)
    with late._changed:
        _, change = late.shared._order_held(late.shared.held)  # under way for long: its process was stopped
        late.shared._asked_at = float("-inf")
    clock.advance(LEASE + 0.1)
    with late._changed:
        order = late.shared._order_held(late.shared.held)
    late.shared.hand_in(order)
    settled(late)
    link_of(late).store.transact("bulkhead/api", change)
    assert len(link_of(late).store.read("bulkhead/api")["holders"]) == 2  # what comes late is another's, and ends
    assert entered(heir, 9) <= 5 - late.in_flight


def test_the_child_of_a_fork_has_leased_nothing(crowd):
    (one,) = crowd(1)
    assert entered(one, 2) == 2
    settled(one)
    slots, who = one.shared, one.shared._who
    assert slots.held >= 2
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if slots.held == 0 and not slots._is_joined and slots._who != who else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("inside", [0, 1, 2])
def test_a_bulkhead_at_rest_asks_nobody(crowd, limit, inside):
    one, two = crowd(2, limit)
    entered(one, inside)
    entered(two, inside)
    for bulkhead in (one, two):
        for _ in range(bulkhead.in_flight):
            bulkhead.release()
    eventually(lambda: not is_asking(one) and not is_asking(two))
    with one._changed, two._changed:
        assert one.shared.settle_held() is two.shared.settle_held() is None


class Joined(weakref.WeakSet):
    """A set that a newcomer joins in the middle of the first look at it."""

    newcomer = None

    def __iter__(self):
        for one in super().__iter__():
            if self.newcomer is not None:
                self.newcomer = self.add(self.newcomer)
            yield one


def test_a_bulkhead_may_be_made_while_the_clerk_renews(crowd):
    one, two = crowd(2)
    fleet = one.shared._fleet
    fleet._all = Joined(fleet._all)
    fleet._all.newcomer = two.shared
    fleet.keep()
    assert set(fleet._all) == {one.shared, two.shared}


def test_the_end_of_the_process_gives_back_what_is_not_in_use(crowd):
    one, two = crowd(2, 40)
    assert entered(one, 10) == 10
    for _ in range(9):
        one.release()
    one.shared._fleet.leave()
    eventually(lambda: leased(two) == 1)


def test_the_end_of_the_process_asks_nothing_of_a_closed_store(crowd):
    one = crowd(1, 40)[0]
    assert entered(one, 2) == 2
    one.release()
    link_of(one).store.close()
    one.shared._fleet.leave()
    assert entered(one) == 1


def test_pressure_and_a_new_size_bound_what_is_leased(crowd):
    one, two = crowd(2, 8)
    one.squeeze(Pressure(2), "memory", None)
    assert entered(one, 9) == 2
    one.squeeze(Pressure(), "", None)
    assert entered(one, 2) == 2
    one.resize(4)
    assert entered(one) == 0
    eventually(lambda: entered(two) == 0 and two.in_flight == 4)


def test_without_its_store_each_process_has_the_whole_limit_at_once():
    bulkhead = Bulkhead("api", 5, store="redis://127.0.0.1:1/0")
    began = time.monotonic()
    assert entered(bulkhead, 9) == 5
    assert time.monotonic() - began < 0.5  # ten times what a call may wait for a store, once
    link_of(bulkhead).store.close()


def test_a_closed_store_leaves_the_whole_limit(crowd):
    one, two = crowd(2)
    assert entered(one, 5) == 5
    assert entered(two) == 0
    link_of(two).store.close()
    assert entered(two, 9) == 5


def test_a_configured_bulkhead_of_a_manager_lives_in_its_store(tmp_path, clock):
    file = tmp_path / "resilience.yaml"
    file.write_text("error_recovery:\n  operations:\n    narrow:\n      bulkhead: {max_concurrent: 1}\n")
    store = MemoryStore(clock=clock)
    with (
        ErrorRecoveryManager.from_config(str(file), env={}, store=store, clock=clock) as one,
        ErrorRecoveryManager.from_config(str(file), env={}, store=store, clock=clock) as two,
    ):
        ask_two = two.protect("narrow", isolation="caller")(lambda: "in")

        def inside():
            with pytest.raises(BulkheadFullError):
                ask_two()
            return "the only one"

        assert one.protect("narrow", isolation="caller")(inside)() == "the only one"
        eventually(lambda: two.execute_with_recovery("narrow", lambda: "in").success)
    store.close()
