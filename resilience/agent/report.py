"""The report of a process: everything that made itself known, and the calls seen on the stacks of its threads."""

from __future__ import annotations

import os
import sys
import threading

from ..core.clock import SYSTEM
from .operations import running_operations
from .presence import told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LISTS = ("contexts", "alerts", "resources", "errors", "degradation_mode", "health", "usage", "clocks",
         "fan_outs", "leaks", "operations")  # fmt: skip
TABLES = ("breakers", "rates", "workers", "caches", "guards", "pools", "progress")

_began = (SYSTEM.time(), SYSTEM.monotonic())


def report(*, stacks: bool = False) -> dict[str, Any]:
    """What this process is doing, ready for JSON; with `stacks` each operation and each thread with its stack."""
    parts = _gathered()
    contexts = parts.pop("contexts")
    operations, threads = running_operations(contexts, stacks=stacks)
    parts["operations"] += operations
    parts["operations"].sort(key=lambda operation: -(operation["age"] or 0.0))
    wall, monotonic = SYSTEM.time(), SYSTEM.monotonic()
    from ..workers.ledger import LEDGER

    document = {
        "pid": os.getpid(),
        "command": list(sys.orig_argv),
        "python": sys.version.split()[0],
        "agent_since": _began[0],
        "clock": {
            "wall": wall,
            "jumped": (wall - _began[0]) - (monotonic - _began[1]),  # what the wall clock was set by since the start
        },
        "threads": threading.active_count(),
        "thread_names": sorted(thread.name for thread in threading.enumerate()),
        "alive": LEDGER.alive(),
        "abandoned": LEDGER.abandoned_by_operation(),
        "abandoned_calls": [_without_stack(entry.as_dict(), stacks) for entry in LEDGER.abandoned()],
        **parts,
    }
    if stacks:
        document["stacks"] = threads
    return document


def _without_stack(entry: dict[str, Any], stacks: bool) -> dict[str, Any]:
    return entry if stacks else {key: value for key, value in entry.items() if key != "stack"}


def _gathered() -> dict[str, Any]:
    """The parts of all that is known, put together: lists follow each other, equal names get a number."""
    whole: dict[str, Any] = {key: [] for key in LISTS}
    whole.update((key, {}) for key in TABLES)
    from .sources import of_pools

    troubles = []
    for thing, describe in [*told(), (None, lambda _: of_pools())]:
        try:
            part = describe(thing)
        except Exception as error:  # one that cannot be described does not hide the others
            troubles.append(f"{type(thing).__name__}: {type(error).__name__}: {error}")
            continue
        for key, value in part.items():
            if isinstance(value, list):
                whole.setdefault(key, []).extend(value)
            else:
                _add(whole.setdefault(key, {}), value)
    for breaker in whole["breakers"].values():
        breaker.pop("uid", None)
    whole["troubles"] = troubles
    return whole


def _add(table: dict[str, Any], entries: dict[str, Any]) -> None:
    known = {entry.get("uid") for entry in table.values()} - {None}
    for name, entry in entries.items():
        if entry.get("uid") in known:
            continue
        free, number = name, 1
        while free in table:
            number += 1
            free = f"{name} #{number}"
        table[free] = entry
