"""Locks and forks: no child is born while somebody changes what it needs, and none waits for a lock of nobody.

Whoever forks takes the locks given to `held_across_forks`, always in the same order, so that two that fork at once
never wait for each other. Other locks are made anew in the child.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref

from .clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

# The order in which a fork takes what it has to hold.
STORES, BREAKERS, STACKS, IMPORTS = range(4)
IMPORT_PATIENCE = 1.0  # seconds that a fork waits, at most, for imports in other threads

_all: weakref.WeakSet[Any] = weakref.WeakSet()
_held: dict[int, _Held] = {}
_taken: dict[int, list[_Held]] = {}  # by the thread that forks


class _Held:
    """What one room takes before a fork, and how it lets go of it."""

    __slots__ = ("give", "give_in_child", "take")

    def __init__(
        self, take: Callable[[], object], give: Callable[[], object], give_in_child: Callable[[], object]
    ) -> None:
        self.take = take
        self.give = give
        self.give_in_child = give_in_child


def held_across_forks(
    order: int,
    take: Callable[[], object],
    give: Callable[[], object],
    give_in_child: Callable[[], object] | None = None,
) -> None:
    """Lets every fork `take()` before, `give()` in the parent and `give_in_child()` (by default the same) in the child.

    `order` is one of the constants above, one room each. None of the three may raise.
    """
    _held[order] = _Held(take, give, give_in_child or give)


def afresh_in_children(owner: Any) -> None:
    """Calls `owner.fresh_locks()` in every forked child, for as long as the owner lives; it makes its locks anew."""
    _all.add(owner)


def living(owners: weakref.WeakSet[T]) -> list[T]:
    """Those that are still there. Others may join meanwhile, which a plain look at a WeakSet does not stand."""
    while True:
        try:
            return list(owners)
        except RuntimeError:
            continue


_importing = threading.RLock()  # re-entrant: a signal's handler may import, or fork, in the middle
held_across_forks(IMPORTS, _importing.acquire, _importing.release)


def imported(name: str) -> Any:
    """The module, for a thread of the toolkit's own: no child is born in the middle of an import, to wait for its end.

    The import may not need a lock that a fork takes.
    """
    with _importing:
        from importlib import import_module

        return import_module(name)


def _before_fork() -> None:
    taken = _taken[threading.get_ident()] = [_held[order] for order in sorted(_held)]
    end = SYSTEM.monotonic() + IMPORT_PATIENCE
    while True:
        for held in taken:
            held.take()
        if not _others_import() or SYSTEM.monotonic() >= end:
            return
        for held in reversed(taken):
            held.give()
        SYSTEM.sleep(0.001)


def _others_import() -> bool:
    """Whether another thread, of the program's own, is just importing a module of the toolkit, as first calls do.

    A child would wait for the end of that for ever. Only the import system's own books tell.
    """
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    being_made = [lock() for name, lock in locks.copy().items() if name.startswith("resilience")]
    return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in being_made)


def _to_give() -> list[_Held]:
    """What this thread's fork has taken, the last one first."""
    return _taken.pop(threading.get_ident(), [])[::-1]


def _after_fork_in_parent() -> None:
    for held in _to_give():
        held.give()


def _after_fork_in_child() -> None:
    for held in _to_give():
        held.give_in_child()
    _taken.clear()
    for owner in living(_all):
        owner.fresh_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
