"""The five alerts of the specification, judged in process: strictly above a threshold fires, 90 % of it clears.

| rule | value | threshold | of |
|---|---|---|---|
| breaker_open | seconds since the breaker last was closed | 300 | each breaker |
| retry_rate | retries / calls | 0.50 | each operation |
| timeout_rate | timeouts / calls | 0.10 | each operation |
| resource_usage | share of a limit in use | 0.80 | memory, fds, threads, and each limited resource type |
| error_rate | failures / calls | 0.05 | each critical operation |

Rates look at the last 300 s of the clock and need at least 20 calls there (a single failure of two calls is no rate).
"""

from __future__ import annotations

import os
import threading
import weakref

from ..core.clock import SYSTEM
from ..core.events import EventStream
from ..core.forks import living

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from ..core.clock import Clock

THRESHOLDS = {
    "breaker_open": 300.0,
    "retry_rate": 0.50,
    "timeout_rate": 0.10,
    "resource_usage": 0.80,
    "error_rate": 0.05,
}
MIN_CALLS = 20
CLEARS_AT = 0.9  # share of the threshold at or below which a firing alert ends
KINDS = ("alert_fired", "alert_cleared")


class Observation:
    """One value a rule looks at; `value` None says that nothing can be told."""

    __slots__ = ("rule", "subject", "subject_kind", "value")

    def __init__(self, rule: str, subject: str, value: float | None, subject_kind: str = "operation") -> None:
        self.rule = rule
        self.subject = subject
        self.subject_kind = subject_kind
        self.value = value


def fires(firing: bool, value: float | None, threshold: float) -> bool:
    """Whether an alert fires now: strictly above the threshold, or still above 90 % of it."""
    if value is None:
        return False
    return value > threshold or (firing and value > threshold * CLEARS_AT)


def rates(recent: Mapping[str, Mapping[str, int]], critical: Iterable[str]) -> list[Observation]:
    """What the rate rules see in the counts of the last five minutes."""
    marked = set(critical)
    found = []
    for name, counts in recent.items():
        calls = counts["calls"]
        enough = calls >= MIN_CALLS
        for rule, counter in (("retry_rate", "retries"), ("timeout_rate", "timeouts"), ("error_rate", "failures")):
            if rule != "error_rate" or name in marked:
                found.append(Observation(rule, name, counts[counter] / calls if enough else None))
    return found


class Alerts:
    """Knows which alerts fire, since when, and tells each change once. Safe to use from any thread.

    `observe()` gives the observations of the moment. It runs in `evaluate()`, in the thread that asks, one at a time:
    so no older look overtakes a newer one.
    """

    def __init__(
        self,
        observe: Callable[[], Iterable[Observation]],
        *,
        clock: Clock | None = None,
        events: EventStream | None = None,
    ) -> None:
        self._observe = observe
        self._clock = clock or SYSTEM
        self._events = events or EventStream(clock=self._clock)
        self._firing: dict[tuple[str, str], dict[str, Any]] = {}
        self.on_first_hook: Callable[[], object] | None = None  # starts whatever judges while nobody asks
        self._fresh()
        _all.add(self)

    def _fresh(self) -> None:
        self._lock = threading.RLock()

    def evaluate(self) -> list[dict[str, Any]]:
        """Judges all rules now; gives what fires: rule, operation or resource, value, threshold, since (wall clock)."""
        with self._lock:
            seen = list(self._observe())
            known = {(observation.rule, observation.subject) for observation in seen}
            for key in [key for key in self._firing if key not in known]:
                self._clear_held(key, None)
            self._judge_held(seen)
            return [dict(alert) for alert in self._firing.values()]

    def judge(self, seen: Iterable[Observation]) -> None:
        """Judges these observations only; what else fires stays as it is."""
        with self._lock:
            self._judge_held(seen)

    @property
    def firing(self) -> list[dict[str, Any]]:
        """What fired when it was last judged."""
        with self._lock:
            return [dict(alert) for alert in self._firing.values()]

    def notify(
        self, target: Any, *, rules: Iterable[str] | None = None, timeout: float = 10.0, cleared: bool = True
    ) -> Callable[[], None]:
        """Tells `target` of each alert that fires, and that clears unless `cleared=False`; returns what ends it.

        A callable gets the `Event`; a command (a list of words) gets it as JSON on its standard input; a webhook (an
        http or https URL) gets it posted as JSON. `rules` limits which. It runs beside the calls, never in one, for at
        most `timeout` seconds; a target that fails or hangs is logged, and is told the next alert all the same.
        """
        from .alert_hooks import Hook

        hook = Hook(target, rules=rules, timeout=timeout)
        end = self._events.subscribe(hook, KINDS if cleared else KINDS[:1])
        if self.on_first_hook is not None:
            self.on_first_hook()
        return end

    def _judge_held(self, seen: Iterable[Observation]) -> None:
        for observation in seen:
            key = (observation.rule, observation.subject)
            threshold = THRESHOLDS[observation.rule]
            current = self._firing.get(key)
            if not fires(current is not None, observation.value, threshold):
                self._clear_held(key, observation.value)
            elif current is not None:
                current["value"] = observation.value
            else:
                alert = self._firing[key] = {
                    "rule": observation.rule,
                    observation.subject_kind: observation.subject,
                    "value": observation.value,
                    "threshold": threshold,
                    "since": self._clock.time(),
                }
                self._events.emit("alert_fired", observation.rule, **alert)

    def _clear_held(self, key: tuple[str, str], value: float | None) -> None:
        alert = self._firing.pop(key, None)
        if alert is not None:
            self._events.emit("alert_cleared", alert["rule"], **{**alert, "value": value})


_all: weakref.WeakSet[Alerts] = weakref.WeakSet()


def _after_fork() -> None:
    for alerts in living(_all):
        alerts._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
