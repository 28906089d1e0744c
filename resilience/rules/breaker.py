"""The circuit breaker as a pure state machine: a state, an event and `now` give the next state and an answer.

The functions take the state over and change it in place (a store that wants the old one copies it by
`BreakerState.from_plain(state.to_plain())`). Who calls them brings the clock and the lock. `TRANSITIONS` is the whole
machine: README and tests are made from it.

`silent` is the number of fast successes that the caller has counted itself, without telling the state of each: while
a breaker is closed a success matters only to the failure that comes after it.
"""

from __future__ import annotations

from .breaker_state import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    FOREVER,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
    BreakerState,
    CircuitState,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .breaker_state import Limits

# from, event, on condition that, to. What is not listed leaves the state as it is. Every row, and every reset(),
# starts a generation; results of an older generation are late and change nothing.
TRANSITIONS: tuple[tuple[CircuitState, str, str, CircuitState], ...] = (
    (CLOSED, "failure", "failure_threshold reached, or a rate with a window", OPEN),
    (CLOSED, "slow call", "a rate reached", OPEN),
    (OPEN, "call", "timeout has passed", HALF_OPEN),
    (HALF_OPEN, "success", "success_threshold reached", CLOSED),
    (HALF_OPEN, "failure", "", OPEN),
    (HALF_OPEN, "slow call", "slow_call_duration is set", OPEN),
    (FORCED_OPEN, "call", "`until` has passed", HALF_OPEN),
    *((state, "force_open", "", FORCED_OPEN) for state in CircuitState if state is not FORCED_OPEN),
    *((state, "disable", "", DISABLED) for state in CircuitState if state is not DISABLED),
    *((state, "metrics_only", "", METRICS_ONLY) for state in CircuitState if state is not METRICS_ONLY),
    *((state, "reset", "", CLOSED) for state in CircuitState if state is not CLOSED),
)

LATE = "late"  # the answer came when it no longer mattered
COUNTED = "counted"
CHANGED = "changed"  # it was counted and has changed the state
SUPPRESSED = "suppressed"  # it was counted and would have opened the breaker, had it not been metrics_only

FREE = 0  # the place of a call that needs none
UNCOUNTED = -1  # the place of a call that passed a disabled breaker: its result is nobody's business
_COUNTING = (CLOSED, METRICS_ONLY)


def admit(state: BreakerState, limits: Limits, now: float) -> int | None:
    """The place of a call that may run (`FREE`, `UNCOUNTED` or the number of its probe), None for one that may not."""
    mode = state.mode
    if mode is CLOSED or mode is METRICS_ONLY:
        return FREE
    if mode is DISABLED:
        return UNCOUNTED
    if mode is not HALF_OPEN:
        if state.until is None or now < state.until:
            return None
        _change(state, limits, HALF_OPEN, now, "the next call is a probe")
    if not _has_room(state, limits, now):
        return None
    state.probes = {number: end for number, end in state.probes.items() if now < end}
    state.next_probe += 1
    state.probes[state.next_probe] = now + limits.lease
    return state.next_probe


def succeed(
    state: BreakerState, limits: Limits, now: float, generation: int, place: int, slow: bool, silent: int
) -> str:
    """Records a success (`slow`: as long as `slow_call_duration`); `LATE` when it no longer matters."""
    if generation != state.generation:
        return LATE
    if state.mode is HALF_OPEN:
        if not _leave(state, place, now):
            return LATE
        if slow:
            return _open(state, limits, now, "a probe was slow", silent)
        state.probe_successes += 1
        if state.probe_successes >= limits.success_threshold:
            return _change(state, limits, CLOSED, now, f"{state.probe_successes} probes succeeded", silent)
        return COUNTED
    if state.mode not in _COUNTING:
        return LATE
    window = state.window
    if window is None or not slow:
        state.successes += 1
    if window is not None:
        window.add(now, False, slow, state.successes + silent)
        if slow:
            return _judge(state, limits, now, silent)
    return COUNTED


def fail(state: BreakerState, limits: Limits, now: float, generation: int, place: int, slow: bool, silent: int) -> str:
    """Records a failure; `LATE` when it no longer matters."""
    if generation != state.generation:
        return LATE
    if state.mode is HALF_OPEN:
        return _open(state, limits, now, "a probe failed", silent) if _leave(state, place, now) else LATE
    if state.mode not in _COUNTING:
        return LATE
    successes = state.successes + silent
    if state.window is not None:
        state.window.add(now, True, slow, successes)
        return _judge(state, limits, now, silent)
    if state.mark != successes or now >= state.forget_at:
        state.failures = 0
        state.mark = successes
    state.failures += 1
    state.forget_at = FOREVER if limits.reset_timeout is None else now + limits.reset_timeout
    threshold = limits.failure_threshold
    if threshold is None or state.failures < threshold:
        return COUNTED
    return _open(state, limits, now, "1 failure" if threshold == 1 else f"{threshold} failures in a row", silent)


def trip(state: BreakerState, limits: Limits, now: float, generation: int, reason: str) -> str:
    """Opens a closed breaker for a reason found elsewhere: a process's own window; `LATE` when it is too late."""
    if generation != state.generation or state.mode is not CLOSED:
        return LATE
    return _open(state, limits, now, reason, 0)


def give_back(state: BreakerState, now: float, generation: int, place: int) -> str:
    """Gives a place back as if the call had never been; `LATE` when it was lost already."""
    if generation != state.generation or (state.mode is HALF_OPEN and not _leave(state, place, now)):
        return LATE
    return COUNTED


def order(
    state: BreakerState, limits: Limits, mode: CircuitState, now: float, reason: str, silent: int,
    until: float | None = None,
) -> str:  # fmt: skip
    """Obeys an operator: FORCED_OPEN (until then, or until a reset), DISABLED, METRICS_ONLY, or CLOSED for a reset."""
    if mode is CLOSED or mode is not state.mode:
        _change(state, limits, mode, now, reason, silent)
    if mode is FORCED_OPEN:
        state.until = until
        state.reason = reason
    return CHANGED


def retry_after(state: BreakerState, limits: Limits, now: float) -> float | None:
    """Seconds until a call may pass: 0.0 when one may now, None when only a reset ends the state.

    While all probes are out this is the end of the first lease, the latest moment at which a place is free.
    """
    if state.mode is OPEN or state.mode is FORCED_OPEN:
        return None if state.until is None else max(0.0, state.until - now)
    if state.mode is HALF_OPEN and not _has_room(state, limits, now):
        return min(end for end in state.probes.values() if now < end) - now
    return 0.0


def failures_in_a_row(state: BreakerState, limits: Limits, now: float, silent: int) -> int:
    """How many failures count towards `failure_threshold` at the moment."""
    is_over = state.mark != state.successes + silent or now >= state.forget_at
    return 0 if state.window is not None or is_over else state.failures


def _has_room(state: BreakerState, limits: Limits, now: float) -> bool:
    """Whether one more probe may start; those whose lease has ended have lost their places."""
    in_flight = sum(1 for end in state.probes.values() if now < end)
    most = limits.max_requests
    return in_flight < most and state.probe_successes + in_flight < max(most, limits.success_threshold)


def _leave(state: BreakerState, place: int, now: float) -> bool:
    end = state.probes.pop(place, None)
    return end is not None and now < end


def _judge(state: BreakerState, limits: Limits, now: float, silent: int) -> str:
    if state.window is None:
        return COUNTED
    total, failed, slow = state.window.counts(now, state.successes + silent)
    if total < limits.minimum_calls:
        return COUNTED
    if limits.failure_rate is not None and failed / total >= limits.failure_rate:
        return _open(state, limits, now, f"{failed} of the last {total} calls failed", silent)
    if limits.slow_call_duration is not None and slow / total >= limits.slow_call_rate:
        return _open(state, limits, now, f"{slow} of the last {total} calls were slow", silent)
    return COUNTED


def _open(state: BreakerState, limits: Limits, now: float, reason: str, silent: int) -> str:
    if state.mode is METRICS_ONLY:
        state.suppressed += 1
        state.reason = reason
        _begin_count(state, limits, silent)
        return SUPPRESSED
    _change(state, limits, OPEN, now, reason, silent)
    state.opened_at = now
    state.until = now + limits.timeout
    return CHANGED


def _change(state: BreakerState, limits: Limits, mode: CircuitState, now: float, reason: str, silent: int = 0) -> str:
    """Starts a generation in `mode`, with nothing counted and nobody in flight."""
    state.generation += 1
    if mode is not state.mode:
        state.changes += 1
        if state.mode is CLOSED:
            state.left_closed_at = now
        elif mode is CLOSED:
            state.left_closed_at = None
    state.mode = mode
    state.since = now
    state.until = None
    state.reason = reason
    state.probes = {}
    state.probe_successes = 0
    if mode is CLOSED or mode is METRICS_ONLY:
        _begin_count(state, limits, silent)
    return CHANGED


def _begin_count(state: BreakerState, limits: Limits, silent: int) -> None:
    state.failures = 0
    state.mark = state.successes + silent
    state.forget_at = FOREVER
    if limits.window is not None:
        state.window = limits.window.begin(state.successes + silent)
