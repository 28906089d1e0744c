"""Whether this process wants to be looked at, and what it has for those who look.

What is made here - managers, timeout managers, fan-outs, breakers - makes itself known with a function that describes
it. Nothing is asked of it until somebody looks, and nothing is kept alive. With `RESILIENCE_AGENT=1` in the environment
the first of them starts the agent.
"""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Describe = Callable[[Any], dict[str, Any]]

VARIABLE = "RESILIENCE_AGENT"
OFF = frozenset(("", "0", "no", "off", "false"))

_known: dict[object, tuple[weakref.ref[Any], Describe]] = {}  # single operations only: atomic without a lock


class _Switch:
    """Whether the environment was read, and whether everything is to make itself known."""

    __slots__ = ("asked", "on")

    def __init__(self) -> None:
        self.asked = self.on = False


switch = _Switch()


def ask() -> None:
    """Starts the agent if the environment wants one; it is read once."""
    if switch.asked:
        return
    switch.asked = True
    if os.environ.get(VARIABLE, "").strip().lower() not in OFF:
        from .server import start

        start()


def tell(thing: Any, describe: Describe) -> None:
    """Makes `thing` known for as long as it lives; `describe(thing)` gives its part of a report as plain data."""
    key = object()
    _known[key] = weakref.ref(thing, lambda _: _known.pop(key, None)), describe
    if not switch.asked:
        ask()


def told() -> list[tuple[Any, Describe]]:
    """Everything known that still lives, oldest first."""
    pairs = [(reference(), describe) for reference, describe in list(_known.values())]
    return [(thing, describe) for thing, describe in pairs if thing is not None]
