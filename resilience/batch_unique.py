"""The items of a fan-out that share an outcome: of those with an equal key the first one runs, for all of them."""

from __future__ import annotations

from collections import deque

from .core.errors import require
from .outcomes import FanOutItem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from .workers.fan_out import Slot


class Unique:
    """The first item of each key, lazily, and which outcome each position of the input shares."""

    def __init__(self, items: Iterable[Any], key: Callable[[Any], Any]) -> None:
        require(callable(key), "key", key, "expected a function of one item")
        self._items = items
        self._key = key
        self.positions: list[int] = []  # of the first item of each key
        self.shared: deque[tuple[int, Any]] = deque()  # index among the first ones, and the item itself

    def __iter__(self) -> Iterator[Any]:
        indices: dict[Any, int] = {}
        for position, item in enumerate(self._items):
            name = self._key(item)
            index = indices.setdefault(name, len(indices))
            if index == len(self.positions):
                self.positions.append(position)
                self.shared.append((index, item))
                yield item
            else:
                self.shared.append((index, item))

    def spread(self, slots: list[Slot]) -> list[Slot]:
        """An outcome for each position, of those of the first items."""
        return [(item, *slots[index][1:]) for index, item in list(self.shared) if index < len(slots)]

    def follow(self, firsts: Iterator[FanOutItem]) -> Iterator[FanOutItem]:
        """The outcomes of all positions, as those of the first items come."""
        known: list[Slot] = []
        position = 0
        for first in firsts:
            known.append(
                (first.item, first.value, first.error, first.attempts, first.mode == "sequential", first.duration)
            )
            while self.shared and self.shared[0][0] < len(known):
                index, item = self.shared.popleft()
                yield FanOutItem(position, (item, *known[index][1:]))
                position += 1
        for index, item in list(self.shared):
            if index < len(known):
                yield FanOutItem(position, (item, *known[index][1:]))
                position += 1
