"""What is alive beside the callers, by kind and owner; abandoned calls apart, told of when the process ends."""

from __future__ import annotations

import os
import sys
import threading
import weakref

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias, TypeVar

    from ..resources.handles import Owned

    T = TypeVar("T")
    Register: TypeAlias = Callable[[str, str], Owned]  # `ResourceManager.own`


BACKGROUND = "resilience-"  # how the names of the toolkit's threads begin that run no calls


class Abandoned:
    """A call whose caller has gone while it still runs: its operation, since when (monotonic), where it hung.

    `is_worker`: its thread is still one of those that the set of the operation counts as its workers.
    """

    __slots__ = ("is_worker", "operation", "since", "stack", "thread")

    def __init__(self, operation: str, thread: str, stack: str, *, is_worker: bool = False) -> None:
        self.is_worker = is_worker
        self.operation = operation
        self.thread = thread
        self.stack = stack
        self.since = SYSTEM.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain data; `age` in seconds."""
        age = SYSTEM.monotonic() - self.since
        return {"operation": self.operation, "thread": self.thread, "age": age, "stack": self.stack}


class Living:
    """Something of ours that is alive: `kind` ("process", "connection", "child" ...), `owner`, `pid` if it has one."""

    __slots__ = ("is_abandoned", "kind", "owned", "owner", "pid", "since", "thing")

    def __init__(self, kind: str, owner: str, pid: int | None, owned: Owned | None) -> None:
        self.kind = kind
        self.owner = owner
        self.pid = pid
        self.owned = owned  # where a manager counts it too
        self.thing: weakref.ref[Any] | None = None
        self.is_abandoned = False
        self.since = SYSTEM.monotonic()

    def abandon(self) -> None:
        """It was given up, and is not gone yet: counted apart from now on."""
        self.is_abandoned = True
        if self.owned is not None:
            self.owned.abandon()

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain data; `age` in seconds."""
        return {"kind": self.kind, "owner": self.owner, "pid": self.pid, "age": SYSTEM.monotonic() - self.since}


class Ledger:
    """What lives and what was abandoned. Safe to use from any thread; empty in a forked child.

    Whoever makes a thread, process, connection or child enters it and takes it out again; sets that know their own
    number at any time (worker threads) are asked for it instead.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal's handler may ask in the middle
        self._abandoned: set[Abandoned] = set()
        self._living: set[Living] = set()
        self._counters: dict[str, Callable[[], dict[str, int]]] = {}
        self._at_exit = False

    def enter(
        self, kind: str, owner: str, *, pid: int | None = None, owned: Owned | None = None, thing: Any = None
    ) -> Living:
        """Enters something that is alive from now on; hand what this gives to `leave`.

        It is taken out as well when `thing` is garbage-collected: no entry keeps anything alive.
        """
        entry = Living(kind, owner, pid, owned)
        if thing is not None:
            entry.thing = weakref.ref(thing, lambda _: self._lose(entry))
        self._living.add(entry)
        return entry

    def leave(self, entry: Living) -> None:
        """Takes it out again; once is enough. Takes no lock that others hold: finalizers call it."""
        self._living.discard(entry)
        entry.thing = None
        if entry.owned is not None:
            entry.owned()

    def _lose(self, entry: Living) -> None:
        self._living.discard(entry)
        entry.thing = None
        if entry.owned is not None:
            entry.owned.lose()

    def count_by(self, kind: str, counter: Callable[[], dict[str, int]]) -> None:
        """Lets `counter()` say how many of `kind` there are by owner, instead of entering each."""
        self._counters[kind] = counter

    def living(self) -> list[Living]:
        """What was entered and still lives, oldest first."""
        return sorted(self._living.copy(), key=lambda entry: entry.since)

    def alive(self) -> dict[str, dict[str, int]]:
        """How many live, by kind and owner, without the abandoned; kinds of which there are none are left out."""
        counts = {kind: counter() for kind, counter in self._counters.items()}
        living = [(entry.kind, entry.owner) for entry in self.living() if not entry.is_abandoned]
        background = (thread.name for thread in threading.enumerate() if thread.name.startswith(BACKGROUND))
        for kind, owner in [*living, *(("thread", name) for name in background)]:
            owners = counts.setdefault(kind, {})
            owners[owner] = owners.get(owner, 0) + 1
        threads = counts.get("thread", {})
        for left in self.abandoned():
            if left.is_worker and left.operation in threads:
                threads[left.operation] -= 1
                if not threads[left.operation]:
                    del threads[left.operation]
        return {kind: dict(sorted(owners.items())) for kind, owners in sorted(counts.items()) if owners}

    def abandon(self, entry: Abandoned) -> None:
        """Enters a call that was given up."""
        with self._lock:
            self._abandoned.add(entry)
            first, self._at_exit = not self._at_exit, True
        if first:
            import atexit

            atexit.register(self.report)

    def ended(self, entry: Abandoned) -> None:
        """Strikes a call out that has ended after all."""
        with self._lock:
            self._abandoned.discard(entry)

    def abandoned(self) -> list[Abandoned]:
        """The abandoned calls that still run, oldest first."""
        with self._lock:
            return sorted(self._abandoned, key=lambda entry: entry.since)

    def abandoned_by_operation(self) -> dict[str, int]:
        """How many abandoned calls still run, by operation."""
        counts: dict[str, int] = {}
        for entry in self.abandoned():
            counts[entry.operation] = counts.get(entry.operation, 0) + 1
        return counts

    def report(self) -> None:
        """Names each abandoned call on stderr, one line each: the process ends without waiting for them."""
        if sys.stderr is None:  # print() would take stdout instead
            return
        for entry in self.abandoned():
            where = entry.stack.strip().splitlines()
            place = where[-2].strip() if len(where) > 1 else "an unknown place"
            age = SYSTEM.monotonic() - entry.since
            line = f"resilience: leftover: {entry.operation!r} abandoned {age:.1f} s ago still runs at {place}"
            print(line, file=sys.stderr)

    def forget_all(self) -> None:
        """Starts empty: none of the parent's threads lives in a forked child."""
        self._lock = threading.RLock()  # re-entrant: a signal's handler may ask in the middle
        self._abandoned = set()
        self._living = set()


LEDGER = Ledger()


def registered(register: Register | None, kind: str, label: str, make: Callable[[], T]) -> tuple[T, Owned | None]:
    """What `make()` gives, registered before (which may refuse it) and until it fails."""
    owned = None if register is None else register(kind, label)
    try:
        return make(), owned
    except BaseException:
        if owned is not None:
            owned()
        raise


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LEDGER.forget_all)
