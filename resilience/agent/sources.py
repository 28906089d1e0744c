"""What each kind of thing in a process has to tell: functions from the thing to its part of a report, as plain data.

They read; they change nothing, take no lock for long and do no I/O.
"""

from __future__ import annotations

from ..core.clock import SYSTEM
from ..core.forks import imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def of_breaker(breaker: Any) -> dict[str, Any]:
    """A breaker: its stats, and for how many seconds it has been in this state and not been closed."""
    return {"breakers": {breaker.name: breaker_entry(breaker)}}  # a manager may tell of it too: see `uid`


def breaker_entry(breaker: Any) -> dict[str, Any]:
    """The stats of a breaker with ages in place of points in time that mean nothing to another process."""
    if getattr(breaker, "_books", breaker) is None:  # nothing but successes so far: reading would make it bigger
        return {"name": breaker.name, "state": "closed", "successes": breaker.successes, "uid": id(breaker)}
    entry: dict[str, Any] = breaker.snapshot()
    now = breaker.clock.monotonic()
    for field, moment in (("age", "since"), ("not_closed_for", "not_closed_since")):
        since = entry.pop(moment, None)
        entry[field] = None if since is None else max(0.0, now - since)
    entry.pop("opened_at", None)
    config = getattr(breaker, "config", None)
    entry["timeout"] = getattr(config, "timeout", None)
    entry["uid"] = id(breaker)
    return entry


def of_timeouts(timeouts: Any) -> dict[str, Any]:
    """A timeout manager: the contexts of its active operations, each with the thread that entered it."""
    return {"contexts": timeouts.active_contexts()}


def of_manager(manager: Any) -> dict[str, Any]:
    """A manager: what `status()` and `monitor.report()` say, what guards each operation, and its idea of the time."""
    status = manager.status()
    seen = manager.monitor.report()
    recent = manager.monitor.recent()
    operations = {
        name: {**figures, "recent": recent.get(name, {})} for name, figures in seen["operations"].items()
    }
    return {
        "rates": operations,
        "breakers": {name: breaker_entry(breaker) for name, breaker in list(manager._breakers.items())},
        "alerts": status["alerts"],
        "resources": [status["resources"]],
        "errors": [status["errors"]],
        "degradation_mode": [status["degradation_mode"]],
        "workers": seen["workers"],
        "caches": seen["caches"],
        "health": [seen["health"]],
        "usage": [seen["system"]["usage"]],
        "clocks": [_clock_entry(manager._clock)],
        "guards": guards_of(manager),
        "leaks": [
            {"id": handle.resource_id, "type": str(handle.type), "opened_at": handle.opened_at,
             "age": manager.resources.now() - handle.registered}
            for handle in manager.resources.active() if handle.told
        ],
    }  # fmt: skip


def guards_of(manager: Any) -> dict[str, Any]:
    """By operation: its timeout, its attempts, and how full its bulkhead is."""
    found: dict[str, Any] = {}
    for name, operation in list(manager._operations.items()):
        parts = operation.parts
        policy, bulkhead = parts.policy, parts.bulkhead
        retries = None if policy is None else policy.max_retries
        entry: dict[str, Any] = {"timeout": parts.timeout, "total": parts.total, "max_retries": retries}
        if bulkhead is not None:
            entry["bulkhead"] = {
                "in_flight": bulkhead.in_flight,
                "max_concurrent": bulkhead.max_concurrent,
                "queued": len(bulkhead.queue),
            }
        found[name] = entry
    return found


def _clock_entry(clock: Any) -> dict[str, Any]:
    """How far a clock of the program is from the machine's; a manual clock starts at zero and is no wrong clock."""
    is_machines = clock is SYSTEM
    return {"kind": type(clock).__name__, "ahead": 0.0 if is_machines else clock.time() - SYSTEM.time()}


def of_fan_out(job: Any) -> dict[str, Any]:
    """A fan-out under way: how far it is and how wide; nothing once it is through."""
    if not job.active:
        return {}
    gate = job.gate
    return {
        "fan_outs": [
            {
                "operation": job.name,
                "read": job.read,
                "done": max(len(job.slots), job.consumed),
                "running": sum(1 for item in list(job.holding) if item is not None),
                "width": gate.limit if gate.narrow else gate.width.full,
                "degraded": gate.degraded,
            }
        ]
    }


def of_pools() -> dict[str, Any]:
    """Every set of worker threads that has threads: how many are busy, waited for and abandoned."""
    pools = {}
    for workers in imported("resilience.workers.threads").living_sets():  # on the agent's thread
        busy = workers._workers - len(workers._idle)
        if workers._workers or workers._abandoned or workers._queue:
            pools[workers.name] = {
                "busy": busy,
                "idle": len(workers._idle),
                "queued": len(workers._queue or ()),
                "max_workers": workers.max_workers,
                "abandoned": workers._abandoned,
                "max_abandoned": workers.max_abandoned,
                "late_results": workers.late_results,
            }
    return {"pools": pools}
