"""The resource manager: knows what is open, ends it in order, and tells of leaks."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from collections import deque

from ..core.clock import SYSTEM
from ..core.errors import BulkheadFullError, ConfigError, ShutdownInProgress, require, require_count, require_seconds
from ..core.events import EventStream
from ..core.forks import living
from ..core.logs import logger
from ..monitoring.sampling import Sampler
from .cleanup import report_at_exit, run_cleanup
from .handles import Counters, Handle, Owned, ResourceType, opened_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..core.clock import Clock

IDLE_AFTER = 300.0  # seconds without a touch until a resource is idle
LEAKED_AFTER = 600.0  # seconds since registration until an idle one is a leak


_USAGE_NAMES = {ResourceType.MEMORY: "registered memory"}  # "memory" is what the whole process uses


class ResourceManager:
    """Knows every registered resource. Safe to use from any thread; clean-ups never run under its lock.

    `limits` bounds how many of a type may be open: above 80 % a warning is logged, at 100 % registration is refused
    with `BulkheadFullError`. A forked child starts with nothing registered: what was open is its parent's.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        events: EventStream | None = None,
        limits: Mapping[ResourceType, int] | None = None,
        idle_after: float = IDLE_AFTER,
        leaked_after: float = LEAKED_AFTER,
    ) -> None:
        require_seconds("idle_after", idle_after)
        require_seconds("leaked_after", leaked_after)
        for kind, limit in (limits or {}).items():
            require(isinstance(kind, ResourceType), "limits", kind, "expected limits by ResourceType")
            require_count(f"limits[{kind}]", limit)
        self._clock = clock or SYSTEM
        self._events = events or EventStream(clock=self._clock)
        self._idle_after = idle_after
        self._leaked_after = leaked_after
        self._limits = {kind: (limits or {}).get(kind) for kind in ResourceType}
        self._closed = False
        self._sampler: Sampler | None = None
        self._fresh()
        report_at_exit(self)
        _all.add(self)

    def _fresh(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a finalizer may close a handle in the middle
        self._handles: dict[str, Handle] = {}
        self._counters = {kind: Counters(limit) for kind, limit in self._limits.items()}
        self._orphans: deque[weakref.ref[Handle]] = deque()  # appended by finalizers, which must take no lock
        self._ended: deque[Handle] = deque()  # the toolkit's own that have ended, likewise
        self._numbers = itertools.count(2)

    def set_limit(self, resource_type: ResourceType, limit: int | None) -> None:
        """Bounds how many of a type may be open at once; None lifts it. What is open already stays."""
        require(isinstance(resource_type, ResourceType), "resource_type", resource_type, "expected a ResourceType")
        require_count("limit", limit, optional=True)
        with self._lock:
            self._limits[resource_type] = self._counters[resource_type].limit = limit

    def now(self) -> float:
        """The manager's clock, in seconds."""
        return self._clock.monotonic()

    def register_resource(
        self,
        resource_id: str,
        resource_type: ResourceType,
        cleanup: Callable[[], object] | None = None,
        metadata: Mapping[str, Any] | None = None,
        long_lived: bool = False,
        owner: object | None = None,
    ) -> Handle:
        """Registers a resource under an id of its own; `cleanup()` ends it.

        A `long_lived` one is never idle and never a leak while the process runs. When `owner` is garbage-collected
        first, that is a leak (and `cleanup_idle()` ends it). Raises `ConfigError` for an id in use,
        `BulkheadFullError` at the limit of its type and `ShutdownInProgress` after `shutdown()`.
        """
        require(isinstance(resource_type, ResourceType), "resource_type", resource_type, "expected a ResourceType")
        handle = Handle(self, resource_id, resource_type, self.now())
        handle._cleanup = cleanup
        handle.metadata = dict(metadata or {})
        handle.long_lived = long_lived
        handle.opened_at = opened_at()
        if owner is not None:
            handle._finalizer = weakref.finalize(owner, self._orphans.append, weakref.ref(handle))
            handle._finalizer.atexit = False
        self._settle()  # what has ended takes no place
        try:
            crosses = self._admit(handle)
        except BaseException:
            handle.forget_owner()
            raise
        kind = str(resource_type)
        self._events.emit("resource_registered", resource_id, type=kind, opened_at=handle.opened_at)
        if crosses:
            _log().warning("%s", self._pressure_of(resource_type, handle))
        return handle

    def own(self, kind: str, label: str, cleanup: Callable[[], object] | None = None) -> Owned:
        """Registers something of the toolkit itself, until what this gives is called; `kind` as in `ResourceType`.

        It is long-lived, under `label` or the next free one like it; `shutdown()` runs `cleanup()`, and later ones are
        not registered. Raises `BulkheadFullError` at the limit of its type.
        """
        if self._orphans:
            self.detect_leaks()
        self._settle()
        while True:
            resource_id = f"{label} #{next(self._numbers)}" if label in self._handles else label
            try:
                handle = self.register_resource(resource_id, ResourceType(kind), cleanup, long_lived=True)
            except ConfigError:  # another thread was faster
                continue
            except ShutdownInProgress:  # no reason to fail a call
                handle = Handle(self, resource_id, ResourceType(kind), 0.0)
            handle.is_own = True
            return Owned(handle)

    def _note_end(self, handle: Handle) -> None:
        """One of the toolkit's own has ended; told at once unless somebody holds the lock, else at the next look."""
        self._ended.append(handle)
        self._settle(blocking=False)

    def _settle(self, *, blocking: bool = True) -> None:
        """Takes out what has ended."""
        closed = []
        if not self._ended or not self._lock.acquire(blocking):
            return
        try:
            while self._ended:
                handle = self._ended.popleft()
                if self._handles.get(handle.resource_id) is handle:
                    self._remove_held(handle)
                    counters = self._counters[handle.type]
                    counters.total_cleaned += 1
                    counters.last_cleanup_time = self._clock.time()
                    closed.append(handle)
        finally:
            self._lock.release()
        for handle in closed:
            self._events.emit("resource_closed", handle.resource_id, type=str(handle.type), cleaned=True)

    def _admit(self, handle: Handle) -> bool:
        """Registers the handle; whether that was the one to warn of. Raises what refuses it."""
        resource_id = handle.resource_id
        with self._lock:
            counters = self._counters[handle.type]
            if self._closed:
                raise ShutdownInProgress(f"the resource manager is shut down, {resource_id!r} was not registered")
            if resource_id in self._handles:
                since = self._handles[resource_id].opened_at
                reason = f"{resource_id!r} is in use since {since}; ids are unique while open"
                raise ConfigError(reason, key="resource_id", value=resource_id)
            if counters.limit is not None and counters.current_active >= counters.limit:
                raise BulkheadFullError(self._refusal_held(handle, counters), name=resource_id, limit=counters.limit)
            self._handles[resource_id] = handle
            counters.total_created += 1
            counters.current_active += 1
            return counters.crosses()

    def _refusal_held(self, handle: Handle, counters: Counters) -> str:
        oldest = next((other for other in list(self._handles.values()) if other.type is handle.type), None)
        held = f"; the oldest is {oldest.resource_id!r}, opened at {oldest.opened_at}" if oldest is not None else ""
        return (
            f"{handle.type} {handle.resource_id!r} was not registered: {counters.current_active} of {counters.limit} "
            f"are open{held}"
        )

    def _pressure_of(self, kind: ResourceType, last: Handle) -> str:
        counters = self._counters[kind]
        share = counters.usage or 0.0
        return f"{share:.0%} of the limit of {kind} in use ({counters.limit}), last by {last!r}"

    def unregister_resource(self, resource_id: str, *, _handle: Handle | None = None) -> None:
        """Forgets a resource without cleaning it up; an unknown id is ignored."""
        with self._lock:
            handle = self._handles.get(resource_id)
            if handle is None or (_handle is not None and handle is not _handle):
                return
            self._remove_held(handle)
        self._events.emit("resource_closed", resource_id, type=str(handle.type), cleaned=False)

    def operation(self, operation_id: str, kind: str = "operation", units: int = 1) -> Handle:
        """Registers an operation for the length of a `with` block (specification, "Resource Cleanup")."""
        return self.register_resource(operation_id, ResourceType.CUSTOM, metadata={"kind": kind, "units": units})

    def register_operation(self, operation_id: str, kind: str = "operation", units: int = 1) -> Handle:
        """The specification's name of `operation`."""
        return self.operation(operation_id, kind, units)

    def unregister_operation(self, operation_id: str) -> None:
        """Ends what `register_operation` began."""
        self.unregister_resource(operation_id)

    def _remove_held(self, handle: Handle) -> None:
        del self._handles[handle.resource_id]
        counters = self._counters[handle.type]
        counters.current_active -= 1
        counters.crosses()  # notes that the use is down
        handle.forget_owner()

    def _close(self, handle: Handle, timeout: float | None = None) -> None:
        with self._lock:
            if self._handles.get(handle.resource_id) is not handle:
                return
            self._remove_held(handle)
        failure = run_cleanup(handle, timeout)
        with self._lock:
            counters = self._counters[handle.type]
            counters.last_cleanup_time = self._clock.time()
            if failure is None:
                counters.total_cleaned += 1
            else:
                counters.cleanup_errors += 1
        if failure is not None:
            _log().warning("the clean-up of %r failed: %s", handle, failure)
        self._events.emit("resource_closed", handle.resource_id, type=str(handle.type), cleaned=failure is None)

    def cleanup_idle(self, idle: float | None = None) -> int:
        """Closes what was not touched for `idle` seconds (300 by default) and is not long-lived; gives how many.

        What has lost its owner is closed as well.
        """
        require_seconds("idle", idle, optional=True)
        limit = self._idle_after if idle is None else idle
        self.detect_leaks()
        closed = 0
        for handle in self.active():
            if handle.orphaned or self._is_idle(handle, self.now(), limit):  # asked late: clean-ups take their time
                handle.close()
                closed += 1
        return closed

    @staticmethod
    def _is_idle(handle: Handle, now: float, limit: float) -> bool:
        return not handle.long_lived and now - handle.touched >= limit

    def detect_leaks(self) -> list[Handle]:
        """The leaks not told before: old and idle ones, and those whose owner is gone. Counts and tells each."""
        now = self.now()
        self._settle()
        while self._orphans:
            handle = self._orphans.popleft()()
            if handle is not None:
                handle.orphaned = True
        found = [
            handle
            for handle in self.active()
            if handle.orphaned
            or (now - handle.registered > self._leaked_after and self._is_idle(handle, now, self._idle_after))
        ]
        leaks = [handle for handle in found if self._count_leak(handle)]
        for handle in leaks:
            if handle.is_own:  # it has gone with its owner
                handle.release()
        return leaks

    def _count_leak(self, handle: Handle) -> bool:
        with self._lock:
            if handle.told or self._handles.get(handle.resource_id) is not handle:
                return False
            handle.told = True
            self._counters[handle.type].leaks_detected += 1
        _log().warning("leak: %s %r, opened at %s, was never closed", handle.type, handle.resource_id, handle.opened_at)
        self._events.emit("resource_leaked", handle.resource_id, type=str(handle.type), opened_at=handle.opened_at)
        return True

    def stats(self) -> dict[str, dict[str, Any]]:
        """The counters by type: total_created total_cleaned current_active leaks_detected cleanup_errors ...

        `abandoned` of the active ones belong to calls that were given up and still run.
        """
        self.detect_leaks()
        with self._lock:
            told = {str(kind): {**counters.as_dict(), "abandoned": 0} for kind, counters in self._counters.items()}
            for handle in list(self._handles.values()):  # a finalizer may close one in the middle
                told[str(handle.type)]["abandoned"] += handle.abandoned
            return told

    def usage(self) -> dict[str, float]:
        """The share of its limit in use, for each type that has one."""
        self._settle()
        with self._lock:
            return {
                _USAGE_NAMES.get(kind, str(kind)): counters.usage
                for kind, counters in self._counters.items()
                if counters.usage is not None
            }

    def active(self) -> list[Handle]:
        """Everything registered now, oldest first."""
        self._settle()
        with self._lock:
            return list(self._handles.values())

    def start(self, interval: float = 60.0) -> None:
        """Looks for leaks and closes what is idle every `interval` real seconds on a daemon thread; idempotent."""
        require_seconds("interval", interval, positive=True)
        with self._lock:
            if self._sampler is None:
                self._sampler = Sampler(self, interval, name="resilience-resources")

    def sample(self) -> None:
        """Looks for leaks and closes what is idle, once."""
        self.cleanup_idle()

    def stop(self) -> None:
        """Ends what `start()` began; idempotent."""
        with self._lock:
            sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    def shutdown(self, timeout: float = 5.0) -> None:
        """Closes everything, last opened first, each clean-up within `timeout` seconds; refuses later registrations."""
        require_seconds("timeout", timeout)
        self.stop()
        with self._lock:
            self._closed = True
            handles = list(self._handles.values())
        for handle in reversed(handles):
            self._close(handle, timeout)

    def report_leaks_at_exit(self) -> None:
        """Counts what is still open and not long-lived as leaked, and says so on stderr, a line each."""
        self.detect_leaks()
        for handle in self.active():
            if not handle.long_lived and self._count_leak(handle):
                what = f"{handle.type} {handle.resource_id!r} opened at {handle.opened_at}"
                if sys.stderr is not None:  # print() would take stdout instead
                    print(f"resilience: leaked {what}", file=sys.stderr)


def _log() -> Any:
    return logger("resources")


_all: weakref.WeakSet[ResourceManager] = weakref.WeakSet()


def _after_fork() -> None:
    for resources in living(_all):
        resources._fresh()
        if resources._sampler is not None:
            resources._sampler = resources._sampler.again()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
