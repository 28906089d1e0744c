"""What is known of one host: its breaker, its queue, how much it may have at once, until when it wants peace."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitState

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.strategies.circuit_breaker import CircuitBreakerConfig

    from .tasks import Task

WIDEN_AFTER = 10  # answers in a row after which a host that asked for peace gets one more request at a time
OUT_OF_TIME = "out of time: --deadline passed"


class Host:
    """One host:port of the list. Not safe to share: the scheduler's lock guards it."""

    __slots__ = (
        "breaker",
        "failed",
        "failures",
        "in_flight",
        "is_listed",
        "is_live",
        "is_proven",
        "is_shelved",
        "last_error",
        "moved",
        "name",
        "ok",
        "paused_until",
        "pending",
        "ready",
        "states",
        "streak",
        "threshold",
        "timer",
        "too_long",
        "tries",
        "untried",
        "waited",
        "width",
    )

    def __init__(self, name: str, breaker: CircuitBreaker, width: int) -> None:
        self.name = name
        self.breaker = breaker
        config: CircuitBreakerConfig = breaker.config
        self.threshold = config.failure_threshold or config.minimum_calls
        self.ready: deque[Task] = deque()
        self.pending = 0  # tasks that are neither in flight nor finished
        self.in_flight = 0
        self.width = width
        self.streak = 0
        self.failures = 0  # in a row
        self.is_proven = False  # has answered since the run or the breaker's last opening
        self.is_listed = False
        self.is_live = False
        self.is_shelved = False  # its breaker is open: nothing is sent for now
        self.paused_until = float("-inf")
        self.timer = float("-inf")
        self.too_long: float | None = None  # a Retry-After beyond what this run waits for
        self.ok = self.failed = self.tries = self.untried = 0
        self.moved = 0  # answers that were redirects to other hosts
        self.waited = 0.0
        self.last_error = ""
        self.states: list[str] = []  # of the breaker, the last few, once it has left closed

    def room(self, per_host: int) -> int:
        """How many more requests may be sent now.

        On trial - nothing answered yet, or failures pending - never so many that, should all fail, more than the
        breaker's threshold have been sent; a half-open breaker's first probe goes alone.
        """
        limit = min(per_host, self.width)
        if self.breaker.state is not CircuitState.CLOSED:
            limit = limit if self.is_proven else 1
        elif self.failures or not self.is_proven:
            limit = min(limit, max(1, self.threshold - self.failures))
        return limit - self.in_flight

    def answered(self, per_host: int) -> None:
        """It gave an answer that is no failure of its own."""
        self.failures = 0
        self.is_proven = True
        self.streak += 1
        if self.width < per_host and self.streak >= WIDEN_AFTER:
            self.width += 1
            self.streak = 0

    def failed_us(self, error: str) -> None:
        """It gave no answer, or one that is its own failure."""
        self.failures += 1
        self.streak = 0
        self.last_error = error

    def keep_pause(self, now: float, wait: float, longest: float) -> None:
        """It asked an earlier run for peace, and `wait` seconds of that are left."""
        if wait > longest:
            self.too_long = wait
            self.is_shelved = True
        self.pause(now, now + wait)

    def pause(self, now: float, until: float) -> None:
        """It asked for peace until then: nothing is sent before, and then one at a time."""
        if until > self.paused_until:
            self.waited += until - max(now, self.paused_until)
            self.paused_until = until
        self.width = 1
        self.streak = 0

    def why_left(self, out_of_time: bool) -> str:
        """Why an item of it stays without an end in this run."""
        if self.too_long is not None:
            return f"the host asks to wait {self.too_long:.0f} s, longer than this run does"
        return "breaker open" if self.is_shelved or not out_of_time else OUT_OF_TIME

    def note_state(self) -> str | None:
        """The state of the breaker if it is another one than when last asked."""
        state = str(self.breaker.state)
        if state == (self.states[-1] if self.states else "closed"):
            return None
        self.states.append(state)
        del self.states[:-4]
        return state


class Hosts(dict[str, Host]):
    """The hosts by name, in the order in which they were first asked for: `make(name)` gives a new one."""

    def __init__(self, make: Callable[[str], Host]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Host:
        host = self[name] = self._make(name)
        return host
