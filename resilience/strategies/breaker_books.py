"""The books of a breaker: its state, its counters and the lock over them, made when there is something to write."""

from __future__ import annotations

import itertools
import threading

from ..core.classify import classify
from ..core.forks import BREAKERS, held_across_forks
from ..core.logs import logger
from ..rules.breaker import failures_in_a_row, retry_after
from ..rules.breaker_state import METRICS_ONLY, BreakerState
from .breaker_verdict import ORDINARY, timed_out, verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..rules.breaker_state import CircuitState
    from .breaker_config import CircuitBreakerConfig
    from .breaker_shared import SharedBreaker
    from .breaker_stats import BreakerStats

# Books share a few locks, held for single state changes only: so a fork can take all of them, and the child finds
# every breaker in one piece. Re-entrant, because a signal handler or finalizer may call a breaker in the middle.
LOCKS = tuple(threading.RLock() for _ in range(32))
_next_lock = itertools.cycle(LOCKS)


def _before_fork() -> None:
    for lock in LOCKS:
        lock.acquire()


def _after_fork() -> None:
    for lock in LOCKS:
        lock.release()


held_across_forks(BREAKERS, _before_fork, _after_fork)


def line_of(last: tuple[type | None, str]) -> str:
    """An error in one line."""
    kind, message = last
    return ": ".join(part for part in (kind and kind.__name__, message) if part)


class Books:
    """What a breaker has written down. The counters leave out what the breaker counts itself without the lock."""

    __slots__ = ("config", "failures", "harmless", "ignored", "last", "late_results", "lock", "memory", "ordinary",
                 "passing", "permitted", "rejected", "shared", "slow", "state", "successes")  # fmt: skip

    classify = staticmethod(classify)
    line_of = staticmethod(line_of)

    def __init__(
        self, config: CircuitBreakerConfig, now: float, has_gil: bool, shared: SharedBreaker | None = None
    ) -> None:
        self.lock = next(_next_lock)
        self.config = config
        self.state = BreakerState(config, now)
        self.permitted = self.rejected = 0
        self.successes = self.failures = self.ignored = self.slow = self.late_results = 0
        self.ordinary = ORDINARY if config.is_failure is None else frozenset()  # types to ask `classify` about at once
        self.last: tuple[type | None, str] | None = None  # the last error: its type and its message
        self.shared = shared  # its part in a store, None for a breaker of this process alone
        self.passing = 1 if shared is None else 0  # the generation while every call may pass, else 0
        by_rows = shared is None and config.window is None and config.failure_threshold is not None and has_gil
        self.harmless = (config.failure_threshold or 0) - 1 if by_rows else 0  # failures in a row that open nothing
        self.memory = float("inf") if config.reset_timeout is None else config.reset_timeout

    def verdict(self, error: BaseException) -> bool | None:
        """Whether this exception is a failure, a success or to be ignored. Calls user code: not under the lock."""
        return verdict(self.config, error)

    def last_error(self) -> str | None:
        """The last error in one line."""
        return None if self.last is None else line_of(self.last)

    def is_slow(self, duration: float | None, error: BaseException | None = None) -> bool:
        """Whether a call of this duration counts as slow; one ended by its own time limit always does."""
        limit = self.config.slow_call_duration
        return (limit is not None and duration is not None and duration >= limit) or timed_out(error)

    def stats(self, name: str, silent: int, refused: int, now: float) -> BreakerStats:
        """The books as a reader sees them; `silent` successes and `refused` calls stand beside them."""
        from .breaker_stats import BreakerStats

        state, config = self.state, self.config
        with self.lock:
            counts = (0, 0, 0) if state.window is None else state.window.counts(now, state.successes + silent)
            total, failed, slow = counts
            return BreakerStats(
                name=name,
                state=state.mode.value,
                reason=state.reason,
                generation=state.generation,
                permitted=self.permitted + silent,
                rejected=self.rejected + refused,
                successes=self.successes + silent,
                failures=self.failures,
                ignored=self.ignored,
                slow=self.slow,
                late_results=self.late_results,
                state_changes=state.changes,
                suppressed=state.suppressed,
                failures_in_a_row=failures_in_a_row(state, config, now, silent),
                in_flight=sum(1 for end in state.probes.values() if now < end),
                failure_rate=failed / total if total else None,
                slow_rate=slow / total if total and self.config.is_timed else None,
                retry_after=retry_after(state, config, now),
                since=state.since,
                opened_at=state.opened_at,
                not_closed_since=state.left_closed_at,
                last_error=self.last_error(),
            )


def warn(name: str, state: CircuitState, reason: str, last_error: str | None) -> None:
    """Logs an opening, or what would have been one; a log handler that raises changes no call."""
    what = "would have opened (it only counts)" if state is METRICS_ONLY else f"is {state}"
    because = f"{reason} (last error: {last_error})" if last_error else reason
    try:
        logger("breaker").warning("breaker %r %s: %s", name, what, because)
    except Exception:
        pass
