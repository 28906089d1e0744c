"""The random source of all jitter: seeded on first use, and anew in a forked child."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Draws:
    """Numbers in [0, 1) from `random()`. Safe to share between threads."""

    __slots__ = ("random",)

    random: Callable[[], float]

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Seeds anew before the next number."""
        self.random = self._first

    def _first(self) -> float:
        import random

        self.random = random.Random().random
        return self.random()


_draws = Draws()


def draw() -> float:
    """A number in [0, 1)."""
    return _draws.random()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_draws.forget)
