"""Metrics and spans for OpenTelemetry (extra `otel`); without an SDK both do nothing, as its API is meant.

Names follow its rules: no `total`, attributes with a prefix of their own (`resilience.name`, `resilience.outcome`), and
a call that recovered by retries is no error.
"""

from __future__ import annotations

import functools
import weakref

from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation
from opentelemetry.trace import SpanKind, Status, StatusCode

from ..core.pipeline import refuse_async
from ..metrics import METRICS, families

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, ParamSpec, TypeVar

    from ..manager import ErrorRecoveryManager, OperationResult

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["instrument", "protect"]

_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}
_QUANTILES = ("p50", "p95", "p99")


def instrument(manager: ErrorRecoveryManager, meter: Any = None) -> None:
    """Lets `meter` (by default that of the global provider) observe the manager at each of its collections.

    Counters of `docs/metrics.md` become observable counters (`resilience_calls_total` is `resilience.calls`), gauges
    observable gauges; durations are the gauge `resilience.call.duration` by `resilience.quantile`, in seconds. The
    meter does not keep the manager alive.
    """
    chosen = meter if meter is not None else metrics.get_meter("resilience")
    source = _Source(manager)
    for name, (kind, _, what) in METRICS.items():
        shown = otel_name(name)
        callbacks = [functools.partial(source.observe, name)]
        if kind == "counter":
            chosen.create_observable_counter(shown, callbacks, unit=_unit(name), description=what)
        elif kind == "gauge":
            chosen.create_observable_gauge(shown, callbacks, unit=_unit(name), description=what)
    chosen.create_observable_gauge(
        "resilience.call.duration", [source.durations], unit="s", description="Durations of calls by quantile."
    )


def otel_name(name: str) -> str:
    """The name of a metric as OpenTelemetry has it: dots, and neither unit nor `total` in it."""
    words = name.removesuffix("_total").split("_")
    while words[-1] in _UNITS:
        words.pop()
    area = {"breaker", "bulkhead", "process", "cache", "worker", "retry", "resource", "resources"}
    if len(words) > 2 and words[1] in area:
        return ".".join((words[0], words[1], "_".join(words[2:])))
    return f"{words[0]}.{'_'.join(words[1:])}"


def _unit(name: str) -> str:
    last = name.removesuffix("_total").rsplit("_", 1)[-1]
    return _UNITS.get(last, "1")


class _Source:
    """The manager's figures for the instruments of one meter; one look serves a whole collection."""

    def __init__(self, manager: ErrorRecoveryManager) -> None:
        self._manager = weakref.ref(manager)
        self._looked: dict[str, list[tuple[dict[str, str], float]]] = {}
        self._served: set[str] = set()

    def observe(self, name: str, options: Any) -> Iterator[Observation]:
        """The samples of one metric; a second question for the same one takes a new look."""
        if name in self._served or not self._looked:
            self._look()
        self._served.add(name)
        for labels, value in self._looked.get(name, ()):
            yield Observation(value, {f"resilience.{label}": text for label, text in labels.items()})

    def _look(self) -> None:
        self._served = set()
        manager = self._manager()
        found = families(manager) if manager is not None else ()
        self._looked = {
            family.name: [(labels, value) for suffix, labels, value in family.samples if not suffix] for family in found
        }

    def durations(self, options: Any) -> Iterable[Observation]:
        """The percentiles of every operation."""
        manager = self._manager()
        if manager is None:
            return
        for name, counts in manager.monitor.operations().items():
            for quantile in _QUANTILES:
                if counts[quantile] is not None:
                    share = int(quantile[1:]) / 100
                    yield Observation(counts[quantile], {"resilience.name": name, "resilience.quantile": share})


def protect(
    manager: ErrorRecoveryManager, name: str, *, tracer: Any = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator like `manager.protect(name)` in which each call is a span, and each attempt that failed its event.

    Attributes: `resilience.name`, `resilience.outcome`, `resilience.attempts`, and `error.type` of a call that failed.
    Spans that the function itself begins are children of it, on worker threads as well.
    """

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        refuse_async(fn)

        @functools.wraps(fn)
        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            chosen = tracer if tracer is not None else trace.get_tracer("resilience")
            with chosen.start_as_current_span(
                name, kind=SpanKind.INTERNAL, record_exception=False, set_status_on_exception=False
            ) as span:
                result = manager.execute_with_recovery(name, functools.partial(fn, *args, **kwargs))
                _describe(span, name, result)
                if result.error is not None:
                    try:
                        raise result.error
                    finally:
                        del result  # its frame is in the error's traceback
                return result.value  # type: ignore[no-any-return]  # R by the function

        return traced

    return decorate


def _describe(span: Any, name: str, result: OperationResult) -> None:
    if not span.is_recording():
        return
    span.set_attribute("resilience.name", name)
    span.set_attribute("resilience.attempts", result.attempts)
    span.set_attribute("resilience.outcome", _outcome(result))
    for attempt in result.history:
        if attempt.error is not None:
            shown = {"resilience.attempt": attempt.number, "error.message": attempt.error,
                     "resilience.category": str(attempt.category), "resilience.delay": attempt.delay}  # fmt: skip
            span.add_event("attempt_failed", {key: value for key, value in shown.items() if value is not None})
    if result.error is not None:
        span.set_attribute("error.type", type(result.error).__qualname__)
        span.set_status(Status(StatusCode.ERROR, str(result.error)))
        span.record_exception(result.error)


def _outcome(result: OperationResult) -> str:
    if result.fallback_used:
        return "fallback"
    if result.success:
        return "recovered" if result.recovered else "ok"
    from ..core.errors import CallRejected, DeadlineExceeded

    if isinstance(result.error, CallRejected):
        return "rejected"
    return "timeout" if isinstance(result.error, DeadlineExceeded) else "error"
