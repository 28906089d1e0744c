"""Who holds the connections of a pool, since when and from which line."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded
from ...core.stacks import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable


class PoolExhausted(DeadlineExceeded):
    """No connection came back in time; `holders` says who has them: (file:line, seconds since, thread)."""

    holders: tuple[tuple[str, float, str], ...] = ()


class Holder:
    """Who has a connection: where it was taken, when, in which thread."""

    __slots__ = ("place", "since", "thread")

    def __init__(self) -> None:
        self.place = _place_outside()
        self.since = SYSTEM.monotonic()
        self.thread = threading.current_thread().name


def exhausted(name: str, size: int, seconds: float, holding: Iterable[Holder]) -> PoolExhausted:
    """The error that says that no connection of `size` came back within `seconds`, and who has them."""
    now = SYSTEM.monotonic()
    holders = sorted(holding, key=lambda holder: holder.since)
    told = [f"{holder.place} for {now - holder.since:.1f} s (thread {holder.thread})" for holder in holders]
    error = PoolExhausted(
        f"no connection came back within {seconds:.3g} s, all {size} of the pool are held: by "
        + "; by ".join(told or ["connections that are being made"]),
        name=name, timeout=seconds, elapsed=seconds, phase="queued",
    )  # fmt: skip
    error.holders = tuple((holder.place, now - holder.since, holder.thread) for holder in holders)
    return error


def _place_outside() -> str:
    """The file and line of the nearest caller that is not this toolkit."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not name.startswith(OURS) and not name.endswith(("contextlib.py", "functools.py")):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
