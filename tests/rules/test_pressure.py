"""Halved at 80 % of a limit, nothing at 95 %, back from below 70 %."""

import pytest

from resilience.rules.pressure import NONE, Pressure, judge


def widths(shares, full=8):
    """What 8 wide work may do after each look."""
    pressure, allowed = NONE, []
    for share in shares:
        pressure = judge(pressure, share, full)
        allowed.append(pressure.allows(full))
    return allowed


def test_each_look_at_eighty_percent_halves_down_to_one():
    assert widths([0.79, 0.80, 0.85, 0.94, 0.80, 0.80]) == [8, 4, 2, 1, 1, 1]


def test_between_seventy_and_eighty_nothing_changes():
    assert widths([0.79, 0.70]) == [8, 8]
    assert widths([0.80, 0.79, 0.70, 0.75]) == [4, 4, 4, 4]


def test_below_seventy_it_doubles_back_to_the_full_width():
    assert widths([0.9, 0.9, 0.9, 0.6999, 0.6, 0.1, 0.1]) == [4, 2, 1, 2, 4, 8, 8]


def test_at_ninety_five_percent_nothing_is_admitted_and_the_way_back_begins_at_one():
    assert widths([0.95, 1.2, 0.94, 0.75, 0.65, 0.65, 0.65]) == [0, 0, 1, 1, 2, 4, 8]
    assert widths([0.95, 0.1, 0.1]) == [0, 1, 2]


def test_what_is_not_known_is_no_pressure():
    assert widths([None, 0.8, None, None]) == [8, 4, 8, 8]


@pytest.mark.parametrize("full", [1, 2, 3, 5, 100, 1024, 100_000])
def test_any_width_comes_down_to_one_and_back(full):
    down = widths([0.8] * 12, full)
    assert down[-1] == 1
    assert down == sorted(down, reverse=True)
    assert widths([0.8] * 12 + [0.1] * 12, full)[-1] == full


def test_it_tells_what_it_is():
    assert NONE.is_none
    assert not Pressure(1).is_none
    assert not Pressure(0, True).is_none
    assert Pressure(3) == Pressure(3) != Pressure(3, True)
    assert len({Pressure(3), Pressure(3)}) == 1
    assert repr(Pressure(2, True)) == "Pressure(halvings=2, stopped=True)"
