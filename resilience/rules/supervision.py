"""How a periodic worker is supervised: slower while it fails, stopped when it fails for long, restarted so many times.

| event | what follows |
|---|---|
| success | the errors are forgotten, the interval is the first one again |
| `slow_after` failures in a row, and each further so many | the interval is doubled, up to `max_interval` |
| `max_errors` failures in a row, or a crash | stopped; it starts again after `restart_after` seconds |
| more than `max_restarts` restarts within `restart_window` seconds | it stays stopped |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

RUNNING, STOPPED, GIVEN_UP = "running", "stopped", "given_up"


@dataclass(frozen=True)
class Supervision:
    """What is asked of a worker; durations in seconds. `restart_after` None: it is never started again by itself."""

    interval: float
    max_interval: float
    slow_after: int = 3
    max_errors: int = 10
    restart_after: float | None = 60.0
    max_restarts: int = 3
    restart_window: float = 3600.0


@dataclass(frozen=True)
class WorkerState:
    """Where a worker is: `next_run` is when it runs (or starts again), None when it does not."""

    mode: str
    interval: float
    errors: int = 0  # in a row
    next_run: float | None = None
    restarts: tuple[float, ...] = field(default=())  # when it was started again, within the window


def begin(rules: Supervision, now: float) -> WorkerState:
    """A worker that runs at once."""
    return WorkerState(RUNNING, rules.interval, next_run=now)


def succeeded(state: WorkerState, rules: Supervision, began: float, now: float) -> WorkerState:
    """After a run that began at `began` and succeeded."""
    return replace(state, interval=rules.interval, errors=0, next_run=max(now, began + rules.interval))


def failed(state: WorkerState, rules: Supervision, began: float, now: float) -> WorkerState:
    """After a run that began at `began` and failed."""
    errors = state.errors + 1
    if errors >= rules.max_errors:
        return lost(replace(state, errors=errors), rules, now)
    interval = state.interval
    if errors % rules.slow_after == 0:
        interval = min(rules.max_interval, 2 * interval)
    return replace(state, errors=errors, interval=interval, next_run=max(now, began + interval))


def lost(state: WorkerState, rules: Supervision, now: float) -> WorkerState:
    """After `max_errors` failures or a crash: stopped until its restart, or for good."""
    recent = tuple(at for at in state.restarts if at > now - rules.restart_window)
    if rules.restart_after is None or len(recent) >= rules.max_restarts:
        return replace(state, mode=GIVEN_UP, next_run=None, restarts=recent)
    return replace(state, mode=STOPPED, next_run=now + rules.restart_after, restarts=recent)


def restarted(state: WorkerState, rules: Supervision, now: float) -> WorkerState:
    """When a stopped worker starts again: with nothing counted against it but the restart."""
    return WorkerState(RUNNING, rules.interval, next_run=now, restarts=(*state.restarts, now))
