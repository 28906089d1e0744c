"""What is registered: its type, its handle, and the counters of each type."""

from __future__ import annotations

import sys
import weakref
from enum import Enum

from ..core.stacks import OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any

    from .manager import ResourceManager

WARN_AT = 0.8  # share of a limit (specification: "Resource usage > 80% of limits")
CLEARS_AT = 0.9  # share of that at which the next warning is due again
# Between a connection of the toolkit and the line that needed it: the driver's own frames.
_DRIVERS = frozenset(("requests", "urllib3", "http", "redis", "psycopg2", "contextlib", "functools"))


class ResourceType(Enum):
    """What kind of thing is held (specification, "Resource Types"; GOROUTINE is our THREAD)."""

    THREAD = "thread"
    GOROUTINE = "thread"  # noqa: PIE796  # the specification's name for the same thing
    CONNECTION = "connection"
    FILE = "file"
    MEMORY = "memory"
    PROCESS = "process"
    TIMER = "timer"
    LOCK = "lock"
    CUSTOM = "custom"

    def __str__(self) -> str:
        return self.value


class Handle:
    """A registered resource: leaving `with` and `close()` clean it up once, `release()` forgets it without cleaning."""

    __slots__ = (
        "__weakref__",
        "_cleanup",
        "_finalizer",
        "_manager",
        "abandoned",
        "is_own",
        "long_lived",
        "metadata",
        "opened_at",
        "orphaned",
        "registered",
        "resource_id",
        "told",
        "touched",
        "type",
    )

    def __init__(self, manager: ResourceManager, resource_id: str, kind: ResourceType, now: float) -> None:
        self._manager = manager
        self._cleanup: Callable[[], object] | None = None
        self._finalizer: Any = None  # tells of the end of its owner
        self.resource_id = resource_id
        self.type = kind
        self.metadata: Mapping[str, Any] = {}
        self.long_lived = False
        self.opened_at = ""
        self.registered = self.touched = now
        self.is_own = False  # the toolkit's, which ends by itself
        self.abandoned = False  # its call was given up and still runs
        self.orphaned = False  # its owner is gone
        self.told = False  # its leak was counted

    def forget_owner(self) -> None:
        """The end of the owner means nothing any more."""
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def touch(self) -> None:
        """Says that the resource is in use: it is idle again 300 s from now."""
        self.touched = self._manager.now()

    def release(self) -> None:
        """Forgets the resource without cleaning it up: somebody else owns it now."""
        self._manager.unregister_resource(self.resource_id, _handle=self)

    def close(self) -> None:
        """Cleans the resource up, once; an error of the clean-up is counted, not raised."""
        self._manager._close(self)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Handle {self.type} {self.resource_id!r} opened at {self.opened_at}>"


class Owned:
    """What the toolkit keeps open, as it is registered: calling this says that it has ended, once.

    It keeps nothing alive, and takes no lock that somebody else holds: finalizers call it.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle) -> None:
        self._handle = weakref.ref(handle)

    def __call__(self) -> None:
        handle = self._handle()
        if handle is not None:
            handle._manager._note_end(handle)

    def abandon(self) -> None:
        """Its call was given up and still runs: counted apart until the end."""
        handle = self._handle()
        if handle is not None:
            handle.abandoned = True

    def lose(self) -> None:
        """The garbage collector has found what was open: a leak."""
        handle = self._handle()
        if handle is not None:
            handle._manager._orphans.append(self._handle)


class Counters:
    """What became of the resources of one type."""

    __slots__ = ("_warned", "cleanup_errors", "current_active", "last_cleanup_time", "leaks_detected", "limit",
                 "total_cleaned", "total_created")  # fmt: skip

    def __init__(self, limit: int | None) -> None:
        self.total_created = self.total_cleaned = self.current_active = 0
        self.leaks_detected = self.cleanup_errors = 0
        self.last_cleanup_time: float | None = None
        self.limit = limit
        self._warned = False

    @property
    def usage(self) -> float | None:
        """The share of the limit in use; None without one."""
        return self.current_active / self.limit if self.limit else None

    def crosses(self) -> bool:
        """Whether use has just risen above 80 % of the limit; again only after it was down to 72 %."""
        usage = self.usage or 0.0
        if usage <= WARN_AT * CLEARS_AT:
            self._warned = False
        if usage <= WARN_AT or self._warned:
            return False
        self._warned = True
        return True

    def as_dict(self) -> dict[str, Any]:
        """The counters as plain data."""
        return {name: getattr(self, name) for name in self.__slots__ if name[0] != "_"}


def opened_at() -> str:
    """file:line of the nearest frame that is neither the toolkit's nor a driver's."""
    frame: FrameType | None = sys._getframe(2)
    nearest = frame
    while frame is not None and (
        frame.f_code.co_filename.startswith(OURS)
        or str(frame.f_globals.get("__name__")).partition(".")[0] in _DRIVERS
    ):
        frame = frame.f_back
    shown = frame or nearest
    assert shown is not None
    return f"{shown.f_code.co_filename}:{shown.f_lineno}"
