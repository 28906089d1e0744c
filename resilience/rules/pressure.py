"""How much may run when a limit of this process comes near: halved at 80 %, nothing at 95 %, back from below 70 %.

| share of the limit | answer |
|---|---|
| 95 % and above | nothing is admitted |
| 80 % to 95 % | halved at each look, down to one at a time |
| 70 % to 80 % | as it was (after 95 %: one at a time) |
| below 70 % | doubled at each look, up to the full width |
"""

from __future__ import annotations

HALVES_AT, STOPS_AT, DOUBLES_BELOW = 0.80, 0.95, 0.70
MOST = 10  # halvings: a width of 1,024 is one by then, and a wider one is taken as one


class Pressure:
    """What a limit allows: `halvings` of the full width, or nothing at all. Immutable."""

    __slots__ = ("halvings", "stopped")

    def __init__(self, halvings: int = 0, stopped: bool = False) -> None:
        self.halvings = halvings
        self.stopped = stopped

    def allows(self, full: int) -> int:
        """How many of `full` may run at once: 0 where nothing is admitted."""
        if self.stopped:
            return 0
        return 1 if self.halvings >= MOST else max(1, full >> self.halvings)

    @property
    def is_none(self) -> bool:
        """Whether everything may run."""
        return not self.stopped and self.halvings == 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pressure) and (self.halvings, self.stopped) == (other.halvings, other.stopped)

    def __hash__(self) -> int:
        return hash((self.halvings, self.stopped))

    def __repr__(self) -> str:
        return f"Pressure(halvings={self.halvings}, stopped={self.stopped})"


NONE = Pressure()


def judge(pressure: Pressure, share: float | None, widest: int = 1 << MOST) -> Pressure:
    """The pressure after one look at `share`, the part of the limit in use (None: unknown, as if there were none).

    `widest` is the full width of the widest that obeys: what is one at a time there is not halved further.
    """
    most = min(MOST, max(0, widest - 1).bit_length())
    if share is None or share < DOUBLES_BELOW:
        return Pressure(max(0, min(pressure.halvings, most) - 1)) if not pressure.stopped else Pressure(most)
    if share >= STOPS_AT:
        return Pressure(most, True)
    if pressure.stopped:
        return Pressure(most)
    if share >= HALVES_AT:
        return Pressure(min(most, pressure.halvings + 1))
    return pressure
