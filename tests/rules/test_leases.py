"""Leased slots as plain data, against a model that knows what every holder really may use."""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilience.rules import leases as rules
from resilience.rules.leases import Leases

LIMIT, LEASE = 5, 4.0


def exchange(state, who, *, have=0, needed=0, spare=0, now=0.0, turn=None, limit=LIMIT, waits=False):
    turn = state.revision + 1 if turn is None else turn
    return rules.exchange(
        state, now, who, turn, have=have, needed=needed, spare=spare, limit=limit, lease=LEASE, waits=waits
    )


def test_slots_are_leased_until_none_is_left():
    state = Leases()
    assert [exchange(state, who, needed=2) for who in "abc"] == [2, 2, 1]
    assert exchange(state, "d", needed=1) == 0


def test_what_is_given_back_is_anothers():
    state = Leases()
    exchange(state, "a", needed=5)
    assert exchange(state, "a", have=3) == 3
    assert exchange(state, "b", needed=4) == 2


def test_slots_that_are_not_renewed_in_time_are_anothers():
    state = Leases()
    exchange(state, "a", needed=5)
    assert exchange(state, "a", have=2, now=3.0) == 2
    exchange(state, "b", needed=3, now=3.0)
    assert exchange(state, "c", needed=5, now=6.9) == 0
    assert exchange(state, "c", needed=5, now=7.0) == 5
    assert exchange(state, "a", have=2, now=7.0) == 0


def test_a_lease_holds_up_to_its_end_and_not_at_it():
    state = Leases()
    exchange(state, "a", needed=5)
    assert rules.free(state, LEASE - 1e-6, LIMIT) == 0
    assert rules.free(state, LEASE, LIMIT) == LIMIT


def test_lost_slots_are_leased_anew_where_there_are_some():
    state = Leases()
    exchange(state, "a", needed=3)
    exchange(state, "b", needed=1, now=9.0)
    assert exchange(state, "a", have=3, needed=1, now=9.0) == 4


def test_a_late_change_changes_nothing():
    state = Leases()
    exchange(state, "a", needed=3, turn=7)
    before = state.to_plain(LIMIT)
    assert exchange(state, "a", have=0, turn=6) is None
    assert exchange(state, "a", have=0, turn=7) is None
    assert state.to_plain(LIMIT) == before


def test_what_changes_nothing_need_not_be_written():
    state = Leases()
    exchange(state, "a", needed=5)
    for turn in (2, 3):
        assert exchange(state, "a", have=5, now=0.9, turn=turn) == 5
        assert exchange(state, "b", needed=1, now=0.9, turn=turn) == 0
    assert state.revision == 1
    assert exchange(state, "b", needed=1, now=0.9, waits=True) == 0
    assert exchange(state, "a", have=5, now=1.1) == 5
    assert state.revision == 3


def test_a_holder_that_says_more_than_it_has_gets_no_more():
    state = Leases()
    exchange(state, "a", needed=1)
    exchange(state, "b", needed=4)
    assert exchange(state, "a", have=5) == 1


def test_those_who_wait_have_their_turns_in_order():
    state = Leases()
    exchange(state, "a", needed=5)
    for who in "bc":
        assert exchange(state, who, needed=1, waits=True) == 0
    exchange(state, "a", have=4)
    assert exchange(state, "d", needed=1) == 0
    assert exchange(state, "c", needed=1, waits=True) == 0
    assert exchange(state, "b", needed=2, waits=True) == 1
    exchange(state, "a", have=3)
    assert exchange(state, "b", have=1, needed=1, waits=True) == 1  # has had its turn: at the end of the line
    assert exchange(state, "c", needed=1, waits=True) == 1
    assert list(state.line) == ["b"]


def test_who_leaves_the_line_or_is_gone_holds_nobody_up():
    state = Leases()
    exchange(state, "a", needed=5)
    exchange(state, "b", needed=1, waits=True)
    exchange(state, "c", needed=1, waits=True, now=1.0)
    exchange(state, "a", have=4, now=1.0)
    exchange(state, "b", now=1.0)
    assert exchange(state, "c", needed=1, now=1.0) == 1
    exchange(state, "d", needed=1, waits=True, now=1.0)
    exchange(state, "a", have=3, now=1.0)
    assert exchange(state, "e", needed=1, now=4.9) == 0
    exchange(state, "c", have=1, now=4.9)
    assert exchange(state, "e", needed=1, now=5.0) == 1


def test_slots_to_spare_leave_half_to_others():
    state = Leases()
    assert exchange(state, "a", needed=2, spare=100, limit=20) == 10
    assert exchange(state, "b", needed=5, spare=100, limit=20) == 5
    assert exchange(Leases(), "a", needed=2, spare=0, limit=20) == 2
    assert exchange(Leases(), "a", needed=0, spare=1, limit=1) == 0


def test_a_smaller_limit_leases_nothing_until_enough_came_back():
    state = Leases()
    exchange(state, "a", needed=5)
    assert exchange(state, "b", needed=1, limit=3) == 0
    exchange(state, "a", have=2, limit=3)
    assert exchange(state, "b", needed=2, limit=3) == 1


@pytest.mark.parametrize(
    "garbage",
    [None, [], "x", 7, {}, {"holders": {"a": [1]}}, {"holders": {"a": ["x", 1, 1]}, "line": [], "revision": 1},
     {"holders": {}, "line": {"a": 1}, "revision": 1}, {"holders": {}, "line": []}, {"holders": [], "line": []}],
)  # fmt: skip
def test_garbage_is_nothing_leased(garbage):
    assert exchange(Leases.from_plain(garbage), "a", needed=9) == LIMIT


def test_leases_survive_the_way_through_a_store():
    state = Leases()
    exchange(state, "a", needed=5)
    exchange(state, "c", needed=1, waits=True)
    exchange(state, "b", needed=1, waits=True)
    plain = json.loads(json.dumps(state.to_plain(LIMIT)))
    assert Leases.from_plain(plain).to_plain(LIMIT) == plain
    assert list(Leases.from_plain(plain).line) == ["c", "b"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 6))
@example(1337837, 3, 3)  # with a name kept after its lease has ended: a late change of before is taken
def test_what_holders_may_use_is_never_more_than_the_limit(seed, limit, crowd):
    """Answers that are lost, late or never made, and holders that stop for a while: as a slow store and kills do."""
    rng, state, now = random.Random(seed), Leases(), 0.0
    held, until = dict.fromkeys(range(crowd), 0), dict.fromkeys(range(crowd), -1.0)
    names = {one: str(one) for one in range(crowd)}
    turns, under_way = dict.fromkeys(range(crowd), 0), []
    for _ in range(120):
        now += rng.choice((0.0, 0.1, 0.5, LEASE))
        one = rng.randrange(crowd)
        have = rng.randint(0, held[one]) if until[one] > now else held[one]
        held[one] = have
        turns[one] += 1
        if have and until[one] <= now:
            names[one] += "'"
        more = {"have": have, "needed": rng.randrange(4), "spare": rng.randrange(3), "waits": rng.random() < 0.4}
        under_way.append((one, names[one], turns[one], more))
        rng.shuffle(under_way)
        while under_way and rng.random() < 0.7:
            who, name, turn, asked = under_way.pop()
            answer = exchange(state, name, turn=turn, now=now, limit=limit, **asked)
            if answer is not None and turn == turns[who] and rng.random() < 0.8:
                held[who], until[who] = answer, state.holders[name][1] if answer else now
        assert sum(held[who] for who in held if until[who] > now) <= limit
        assert rules.free(state, now, limit) >= 0
