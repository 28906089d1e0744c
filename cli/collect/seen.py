"""A collection as `resilience top` sees it: the requests under way, and how far it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from resilience.agent import server
from resilience.agent.presence import OFF, VARIABLE, tell
from resilience.core.clock import SYSTEM

from ..output import redacted

if TYPE_CHECKING:
    from .run import Run


@contextmanager
def agent() -> Iterator[None]:
    """The agent of this process for the length of a run, unless `RESILIENCE_AGENT=0` forbids it."""
    if os.environ.get(VARIABLE, "1").strip().lower() in OFF or not server.start():
        yield
        return
    try:
        yield
    finally:
        server.stop()


def make_known(run: Run) -> None:
    """Lets those who look at this process see the run."""
    tell(run, of_run)


def of_run(run: Run) -> dict[str, Any]:
    """The requests under way, each with its URL, age and time left; and where the run stands."""
    now = SYSTEM.monotonic()
    with run.lock:
        attempts = list(run.scheduler.in_flight)
        snapshot = run.scheduler.snapshot()
        left = sum(host.pending for host in run.scheduler.hosts.values())
    operations = [
        {
            "operation": attempt.task.item.host,
            "operation_id": redacted(attempt.task.item.url),
            "age": now - attempt.started,
            "time_left": max(0.0, attempt.deadline - now),
            "timeout": run.scheduler.rules.timeout,
            "attempt": attempt.task.attempts,
            "phase": "running",
            "thread": "collect",
            "where": f"{attempt.task.item.method} {redacted(attempt.task.item.url)}",
        }
        for attempt in attempts
    ]
    text = f"{left} left, {len(attempts)} in flight, {snapshot.waiting} waiting for their next try"
    if snapshot.open_hosts:
        text += f", breaker open: {', '.join(snapshot.open_hosts[:5])}"
    if snapshot.slowed:
        text += f", {snapshot.slowed}"
    return {"operations": operations, "progress": {"collect": {"text": text}}}
