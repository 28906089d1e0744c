"""The retry budget: retries are a share of the first attempts of the last seconds, never less than a few per second.

retries in the window < max(min_per_second * ttl, ratio * first attempts in the window) (Finagle's RetryBudget).
The window slides in `SLOTS` slots.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SLOTS = 20


class Spending:
    """First attempts and retries of the last `ttl` seconds, by slot. Plain data: who calls brings clock and lock."""

    __slots__ = ("firsts", "retries", "slot", "total_firsts", "total_retries")

    def __init__(self) -> None:
        self.firsts = [0] * SLOTS
        self.retries = [0] * SLOTS
        self.slot: int | None = None
        self.total_firsts = 0
        self.total_retries = 0

    def to_plain(self) -> dict[str, Any]:
        """As plain data."""
        return {"slot": self.slot, "firsts": self.firsts, "retries": self.retries}

    @classmethod
    def from_plain(cls, data: Any) -> Spending:
        """Back from plain data; empty books for garbage."""
        state = cls()
        if not isinstance(data, dict) or type(data.get("slot")) is not int:
            return state
        if _are_counts(data.get("firsts")) and _are_counts(data.get("retries")):
            state.slot, state.firsts, state.retries = data["slot"], list(data["firsts"]), list(data["retries"])
            state.total_firsts, state.total_retries = sum(state.firsts), sum(state.retries)
        return state


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) == SLOTS and all(type(n) is int and n >= 0 for n in values)


def _slide(state: Spending, now: float, ttl: float) -> int:
    slot = int(now / ttl * SLOTS)
    if state.slot is None:
        state.slot = slot
    for passed in range(min(SLOTS, max(0, slot - state.slot))):
        place = (state.slot + 1 + passed) % SLOTS
        state.total_firsts -= state.firsts[place]
        state.total_retries -= state.retries[place]
        state.firsts[place] = state.retries[place] = 0
    state.slot = max(state.slot, slot)
    return state.slot % SLOTS


def first_attempt(state: Spending, now: float, ttl: float, count: int = 1) -> None:
    """Counts `count` calls that have made their first attempt."""
    place = _slide(state, now, ttl)
    state.firsts[place] += count
    state.total_firsts += count


def retries_made(state: Spending, now: float, ttl: float, count: int) -> None:
    """Counts `count` retries that were made whatever the budget says."""
    place = _slide(state, now, ttl)
    state.retries[place] += count
    state.total_retries += count


def from_document(data: Any, now: float, ttl: float) -> Spending:
    """The books in a document of a store; what was counted with another `ttl` counts as of now."""
    state = Spending.from_plain(data)
    if state.slot is not None and data.get("ttl") != ttl:
        state, other = Spending(), state
        first_attempt(state, now, ttl, other.total_firsts)
        retries_made(state, now, ttl, other.total_retries)
    if state.slot is not None and state.slot > now / ttl * SLOTS + SLOTS:  # of another time: it would never pass
        return Spending()
    return state


def allows_retry(state: Spending, now: float, ttl: float, ratio: float, min_per_second: float) -> bool:
    """Whether one more retry is within the budget."""
    _slide(state, now, ttl)
    return state.total_retries < max(min_per_second * ttl, ratio * state.total_firsts)


def take_retry(state: Spending, now: float, ttl: float, ratio: float, min_per_second: float) -> bool:
    """Whether one more retry is within the budget; it is counted at once when it is."""
    if not allows_retry(state, now, ttl, ratio, min_per_second):
        return False
    retries_made(state, now, ttl, 1)
    return True
