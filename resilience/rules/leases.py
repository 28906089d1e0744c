"""Slots of one limit, leased: who may run how many at once, and until when. Plain data, no clock and no lock.

A holder that does not renew its slots in time has lost them. Those who wait stand in a line, and each of them comes
before everybody behind for one free slot. A change has a `turn` of its holder's: one that comes after a later turn has
been taken (it was slow, or its process was stopped) changes nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRESH = 0.75  # of a lease: one that has so much left is not written again


class Leases:
    """`holders`: by name (slots, until, turn); `line`: who waits, in order, and until when that counts."""

    __slots__ = ("holders", "line", "revision")

    def __init__(self) -> None:
        self.holders: dict[str, tuple[int, float, int]] = {}
        self.line: dict[str, float] = {}
        self.revision = 0  # grows with every change

    def to_plain(self, limit: int) -> dict[str, Any]:
        """As plain data; `limit` is for people to read."""
        holders = {who: list(one) for who, one in self.holders.items()}
        line = [[who, until] for who, until in self.line.items()]
        return {"version": 1, "revision": self.revision, "limit": limit, "holders": holders, "line": line}

    @classmethod
    def from_plain(cls, data: Any) -> Leases:
        """Back from plain data; nothing is leased in garbage."""
        state = cls()
        try:
            state.holders = {str(who): (int(n), float(until), int(turn)) for who, (n, until, turn) in _items(data)}
            state.line = {str(who): float(until) for who, until in data["line"]}
            state.revision = int(data["revision"])
        except (TypeError, ValueError, KeyError, AttributeError):
            return cls()
        return state


def _items(data: Any) -> Any:
    return data["holders"].items()


def reserve(limit: int) -> int:
    """The free slots below which nobody keeps one that is not in use: a quarter of all, one at least."""
    return max(1, limit // 4)


def free(state: Leases, now: float, limit: int) -> int:
    """How many slots nobody holds; below 0 when the limit was larger."""
    return limit - sum(held for held, until, _ in state.holders.values() if until > now)


def room_for(state: Leases, now: float, who: str, limit: int) -> int:
    """How many slots `who` would get: those that are free and not due to somebody ahead in the line."""
    ahead = 0
    for other, until in state.line.items():
        if other == who:
            break
        ahead += until > now
    return max(0, free(state, now, limit) - ahead)


def exchange(
    state: Leases, now: float, who: str, turn: int, *,
    have: int, needed: int, spare: int, limit: int, lease: float, waits: bool,
) -> int | None:  # fmt: skip
    """Renews `have` of the slots of `who`, gives the others back, leases `needed` more; how many it holds then.

    Up to `spare` on top where half of all stay free for others. Slots that it has lost are leased anew, as needed ones.
    With `waits` it stands in the line for what it did not get. None: the change is late. The revision grows only with a
    change that has to be written.
    """
    _forget(state, now)
    held, until, last = mine = state.holders.pop(who, (0, now, 0))
    if last >= turn:
        state.holders[who] = mine
        return None
    kept = min(have, held)
    needed += have - kept
    room = room_for(_with(state, who, (kept, now + lease, turn)), now, who, limit)
    granted = min(needed, room)
    if granted == needed:
        granted += min(spare, max(0, room - granted - max(1, limit // 2)))
    still_waits = waits and granted < needed
    renewed = now + FRESH * lease
    stays = state.line.get(who, 0.0) > renewed if still_waits else who not in state.line
    if stays and kept == held and not granted and (not held or until > renewed):
        _with(state, who, mine)
        return held
    _with(state, who, (kept + granted, now + lease, turn))
    if granted or not still_waits:
        state.line.pop(who, None)
    if still_waits:
        state.line[who] = now + lease
    state.revision += 1
    return kept + granted


def _forget(state: Leases, now: float) -> None:
    """Takes the slots of those who did not renew them."""
    state.holders = {who: one for who, one in state.holders.items() if one[1] > now}
    state.line = {who: until for who, until in state.line.items() if until > now}


def _with(state: Leases, who: str, lease: tuple[int, float, int]) -> Leases:
    if lease[0]:
        state.holders[who] = lease
    else:
        state.holders.pop(who, None)
    return state
