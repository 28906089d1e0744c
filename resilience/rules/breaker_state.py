"""What a breaker remembers: plain data that a store can hold, with the version of its form."""

from __future__ import annotations

from enum import Enum
from operator import attrgetter

from .window import window_from_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .window import CountedResults, TimedResults

    class WindowKind(Protocol):
        """What the settings know about a window: how to begin one."""

        def begin(self, fast: int) -> CountedResults | TimedResults:
            """An empty window, begun after `fast` fast successes."""

    class Limits(Protocol):
        """The settings of a breaker; durations are seconds."""

        @property
        def failure_threshold(self) -> int | None: ...
        @property
        def success_threshold(self) -> int: ...
        @property
        def timeout(self) -> float: ...
        @property
        def max_requests(self) -> int: ...
        @property
        def reset_timeout(self) -> float | None: ...
        @property
        def window(self) -> WindowKind | None: ...
        @property
        def failure_rate(self) -> float | None: ...
        @property
        def minimum_calls(self) -> int: ...
        @property
        def slow_call_duration(self) -> float | None: ...
        @property
        def slow_call_rate(self) -> float: ...
        @property
        def lease(self) -> float: ...


class CircuitState(str, Enum):
    """The state of a breaker; `str(state)` is its lower-case name."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"

    def __str__(self) -> str:
        return self.value


CLOSED = CircuitState.CLOSED
OPEN = CircuitState.OPEN
HALF_OPEN = CircuitState.HALF_OPEN
FORCED_OPEN = CircuitState.FORCED_OPEN
DISABLED = CircuitState.DISABLED
METRICS_ONLY = CircuitState.METRICS_ONLY

FOREVER = float("inf")
VERSION = 1  # of the plain form
_PLAIN = ("changes", "failures", "generation", "forget_at", "left_closed_at", "mark", "mode",
          "next_probe", "opened_at", "probe_successes", "reason", "since", "successes", "suppressed",
          "until")  # fmt: skip
_values = attrgetter(*_PLAIN)


class BreakerState:
    """Everything a breaker has to remember to decide, as plain data; times are `now`s, in seconds."""

    __slots__ = (*_PLAIN, "probes", "window")

    def __init__(self, limits: Limits, now: float, silent: int = 0) -> None:
        self.mode = CLOSED
        self.generation = 1
        self.changes = 0
        self.since = now
        self.until: float | None = None  # when OPEN or FORCED_OPEN ends at the next call; None: only by a reset
        self.opened_at: float | None = None
        self.left_closed_at: float | None = None
        self.reason = ""
        self.failures = 0  # in a row, as of `mark`
        self.mark = 0  # fast successes when the last failure came: any later one has ended the row
        self.forget_at = FOREVER  # when the row is forgotten for idleness
        self.successes = 0  # fast ones in closed generations, beside the silent ones
        self.suppressed = 0  # openings that metrics_only has only told of
        self.probes: dict[int, float] = {}  # places in flight: number -> end of the lease
        self.next_probe = 0
        self.probe_successes = 0
        self.window = None if limits.window is None else limits.window.begin(silent)

    def to_plain(self) -> dict[str, Any]:
        """The state as plain data, ready for JSON, with the version of its form."""
        plain: dict[str, Any] = dict(zip(_PLAIN, _values(self), strict=True))
        plain["mode"] = self.mode.value
        plain["forget_at"] = None if self.forget_at == FOREVER else self.forget_at  # JSON knows no infinity
        plain["probes"] = [[number, end] for number, end in self.probes.items()]
        plain["window"] = None if self.window is None else self.window.to_plain()
        return {"version": VERSION, **plain}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> BreakerState:
        """The state that `to_plain` has described; raises `ValueError` for a form of another version."""
        if plain.get("version") != VERSION:
            raise ValueError(f"breaker state of version {plain.get('version')!r}, expected {VERSION}")
        state = cls.__new__(cls)
        for name in _PLAIN:
            setattr(state, name, plain[name])
        state.mode = CircuitState(plain["mode"])
        state.forget_at = FOREVER if plain["forget_at"] is None else plain["forget_at"]
        state.probes = dict(plain["probes"])
        state.window = window_from_plain(plain["window"])
        return state
