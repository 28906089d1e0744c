"""Everything a manager counts, as metric families: one table of names, read by every exporter.

A family is a name of `METRICS` with its samples; `families(manager)` takes them all at one moment.
"""

from __future__ import annotations

from .rules.breaker_state import CircuitState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from .manager import ErrorRecoveryManager
    from .monitoring.histogram import Histogram

# name: (type, labels, help). Counters end in `_total`; seconds and bytes are the units; shares are 0 to 1.
METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "resilience_calls_total": ("counter", ("name", "outcome"), "Calls by how they ended; each call has one outcome."),
    "resilience_failures_total": ("counter", ("name",), "Calls that failed, also by timeout or saved by a fallback."),
    "resilience_timeouts_total": ("counter", ("name",), "Calls that ran out of time."),
    "resilience_retries_total": ("counter", ("name",), "Attempts after the first one of a call."),
    "resilience_retry_calls_total": ("counter", ("name", "kind"), "Finished calls by success and need of retries."),
    "resilience_fallbacks_total": ("counter", ("name",), "Calls that a fallback answered."),
    "resilience_call_duration_seconds": ("histogram", ("name",), "Durations of calls that ran (within 2 %)."),
    "resilience_operation_critical": ("gauge", ("name",), "1 for an operation marked as critical."),
    "resilience_active_calls": ("gauge", ("name",), "Calls that run now."),
    "resilience_abandoned_calls": ("gauge", ("name",), "Calls that were given up and still run."),
    "resilience_breaker_state": ("gauge", ("name", "state"), "1 for the state the breaker is in, 0 for the others."),
    "resilience_breaker_calls_total": ("counter", ("name", "outcome"), "Permitted calls that have ended."),
    "resilience_breaker_slow_calls_total": ("counter", ("name",), "Calls that took long enough to count as slow."),
    "resilience_breaker_not_permitted_calls_total": ("counter", ("name",), "Calls that the breaker refused."),
    "resilience_breaker_transitions_total": ("counter", ("name",), "Changes of state."),
    "resilience_breaker_failure_ratio": ("gauge", ("name",), "Share of failures in the breaker's window."),
    "resilience_breaker_open_seconds": ("gauge", ("name",), "Seconds since it was last closed, 0 while it is."),
    "resilience_bulkhead_max": ("gauge", ("name",), "Calls the bulkhead lets run at once."),
    "resilience_bulkhead_available": ("gauge", ("name",), "Calls it would let run now."),
    "resilience_bulkhead_waiting": ("gauge", ("name",), "Calls that wait for a slot."),
    "resilience_errors_total": ("counter", ("category",), "Errors by category."),
    "resilience_resources": ("gauge", ("type",), "Registered resources that are open."),
    "resilience_resources_created_total": ("counter", ("type",), "Resources registered so far."),
    "resilience_resources_cleaned_total": ("counter", ("type",), "Resources cleaned up."),
    "resilience_resource_leaks_total": ("counter", ("type",), "Resources found to have leaked."),
    "resilience_resource_cleanup_errors_total": ("counter", ("type",), "Clean-ups that failed."),
    "resilience_resource_usage_ratio": ("gauge", ("resource",), "Share of a limit in use."),
    "resilience_process_cpu_ratio": ("gauge", (), "Cores in use since the last look."),
    "resilience_process_resident_memory_bytes": ("gauge", (), "Resident memory."),
    "resilience_process_threads": ("gauge", (), "Threads of the process."),
    "resilience_process_open_fds": ("gauge", (), "Open file descriptors."),
    "resilience_process_children": ("gauge", (), "Child processes, theirs included."),
    "resilience_worker_up": ("gauge", ("worker",), "1 for a worker that runs."),
    "resilience_worker_errors": ("gauge", ("worker",), "Errors a worker reports."),
    "resilience_cache_hits_total": ("counter", ("cache",), "Cache hits."),
    "resilience_cache_misses_total": ("counter", ("cache",), "Cache misses."),
    "resilience_cache_evictions_total": ("counter", ("cache",), "Cache evictions."),
    "resilience_alert_firing": ("gauge", ("rule", "subject"), "1 for an alert that fires now."),
    "resilience_degraded": ("gauge", (), "1 in degradation mode or near a limit of the process."),
    "resilience_health_score": ("gauge", (), "The health score, 0 to 100."),
    "resilience_events_dropped_total": ("counter", (), "Events that no listener took in time."),
}  # fmt: skip
EDGES = tuple((1 << power) / 1e9 for power in range(16, 38))  # of the buckets, in seconds: 66 us to 137 s


class Family:
    """One metric with its samples: (suffix of the name, labels, value)."""

    __slots__ = ("help", "name", "samples", "type")

    def __init__(self, name: str) -> None:
        self.name = name
        self.type, _, self.help = METRICS[name]
        self.samples: list[tuple[str, dict[str, str], float]] = []


class _Sheet:
    """Collects samples by metric."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {name: Family(name) for name in METRICS}

    def put(self, name: str, value: float | None, *labels: str) -> None:
        """Adds a sample, unless its value is unknown."""
        if value is not None:
            named = dict(zip(METRICS[name][1], labels, strict=True))
            self.families[name].samples.append(("", named, value))

    def put_histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        """Adds the cumulative buckets, the count and the sum."""
        family, named = self.families[name], dict(zip(METRICS[name][1], labels, strict=True))
        counts = histogram.counts.copy()
        for edge in EDGES:
            within = sum(count for seconds, count in counts.items() if seconds <= edge)
            family.samples.append(("_bucket", {**named, "le": repr(edge)}, within))
        total = sum(counts.values())
        family.samples.append(("_bucket", {**named, "le": "+Inf"}, total))
        family.samples.append(("_count", named, total))
        family.samples.append(("_sum", named, sum(seconds * count for seconds, count in counts.items())))


def families(manager: ErrorRecoveryManager) -> Iterator[Family]:
    """The metrics of a manager at this moment; those without samples are left out."""
    sheet = _Sheet()
    report = manager.monitor.report()
    _operations(sheet, manager, report["operations"])
    _breakers(sheet, manager)
    _resources(sheet, manager)
    _process(sheet, report)
    for alert in manager.alerts.evaluate():
        sheet.put("resilience_alert_firing", 1, alert["rule"], alert.get("operation") or alert["resource"])
    for category, count in _by_category(manager).items():
        sheet.put("resilience_errors_total", count, category)
    degraded = manager.in_degradation_mode or manager.watch.throttle.reason is not None
    sheet.put("resilience_degraded", float(degraded))
    sheet.put("resilience_events_dropped_total", manager.events.dropped)
    return (family for family in sheet.families.values() if family.samples)


def _operations(sheet: _Sheet, manager: ErrorRecoveryManager, operations: Mapping[str, Mapping[str, Any]]) -> None:
    critical = manager.watch.critical()
    for name, counts in operations.items():
        outcomes = {
            "ok": counts["successes"],
            "error": counts["failures"] - counts["timeouts"],
            "timeout": counts["timeouts"],
            "rejected": counts["rejections"],
            "cancelled": counts["cancelled"],
        }
        for outcome, count in outcomes.items():
            sheet.put("resilience_calls_total", count, name, outcome)
        kinds = {
            "successful_without_retry": counts["successes"] - counts["recovered"],
            "successful_with_retry": counts["recovered"],
            "failed_without_retry": counts["failures"] - counts["exhausted"],
            "failed_with_retry": counts["exhausted"],
        }
        for kind, count in kinds.items():
            sheet.put("resilience_retry_calls_total", count, name, kind)
        for counter in ("failures", "timeouts", "retries", "fallbacks"):
            sheet.put(f"resilience_{counter}_total", counts[counter], name)
        sheet.put_histogram("resilience_call_duration_seconds", manager.monitor.stats_of(name).durations, name)
        sheet.put("resilience_operation_critical", float(name in critical), name)
    active: dict[str, int] = {}
    for running in manager.timeouts.active_operations():
        active[running.kind] = active.get(running.kind, 0) + 1
    for name, count in active.items():
        sheet.put("resilience_active_calls", count, name)
    for name, count in manager.status()["abandoned"].items():
        sheet.put("resilience_abandoned_calls", count, name)


def _breakers(sheet: _Sheet, manager: ErrorRecoveryManager) -> None:
    now = manager.watch.now()
    for name, breaker in manager.watch.breakers().items():
        stats = breaker.stats
        for state in CircuitState:
            sheet.put("resilience_breaker_state", float(state.value == stats.state), name, state.value)
        for outcome, count in (("successful", stats.successes), ("failed", stats.failures), ("ignored", stats.ignored),
                               ("late", stats.late_results)):  # fmt: skip
            sheet.put("resilience_breaker_calls_total", count, name, outcome)
        sheet.put("resilience_breaker_slow_calls_total", stats.slow, name)
        sheet.put("resilience_breaker_not_permitted_calls_total", stats.rejected, name)
        sheet.put("resilience_breaker_transitions_total", stats.state_changes, name)
        sheet.put("resilience_breaker_failure_ratio", stats.failure_rate, name)
        since = stats.not_closed_since if stats.state in ("open", "half_open", "forced_open") else None
        sheet.put("resilience_breaker_open_seconds", 0.0 if since is None else now - since, name)
    for name, bulkhead in manager.watch.bulkheads().items():
        sheet.put("resilience_bulkhead_max", bulkhead.max_concurrent, name)
        sheet.put("resilience_bulkhead_available", max(0, bulkhead.max_concurrent - bulkhead.in_flight), name)
        sheet.put("resilience_bulkhead_waiting", bulkhead.waiting, name)


def _resources(sheet: _Sheet, manager: ErrorRecoveryManager) -> None:
    for kind, counters in manager.resources.stats().items():
        sheet.put("resilience_resources", counters["current_active"], kind)
        sheet.put("resilience_resources_created_total", counters["total_created"], kind)
        sheet.put("resilience_resources_cleaned_total", counters["total_cleaned"], kind)
        sheet.put("resilience_resource_leaks_total", counters["leaks_detected"], kind)
        sheet.put("resilience_resource_cleanup_errors_total", counters["cleanup_errors"], kind)
    for name, share in manager.watch.usage().items():
        sheet.put("resilience_resource_usage_ratio", share, name)


def _process(sheet: _Sheet, report: Mapping[str, Any]) -> None:
    system = report["system"]
    sheet.put("resilience_process_cpu_ratio", None if system["cpu"] is None else system["cpu"] / 100)
    sheet.put("resilience_process_resident_memory_bytes", system["rss"])
    sheet.put("resilience_process_threads", system["threads"])
    sheet.put("resilience_process_open_fds", system["fds"])
    sheet.put("resilience_process_children", system["children"])
    sheet.put("resilience_health_score", report["health"]["score"])
    for name, state in report["workers"].items():
        sheet.put("resilience_worker_up", float(state["is_running"]), name)
        sheet.put("resilience_worker_errors", state["error_count"], name)
    for name, counts in report["caches"].items():
        for event in ("hits", "misses", "evictions"):
            sheet.put(f"resilience_cache_{event}_total", counts[event], name)


def _by_category(manager: ErrorRecoveryManager) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in manager.errors.to_json()["groups"]:
        counts[group["category"] or "other"] = counts.get(group["category"] or "other", 0) + group["count"]
    return counts


def text(found: Iterable[Family]) -> str:
    """The families in Prometheus's text format, version 0.0.4."""
    lines = []
    for family in found:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.type}")
        for suffix, labels, value in family.samples:
            lines.append(f"{sample_key(family.name + suffix, labels)} {number(value)}")
    return "\n".join(lines) + "\n"


def sample_key(name: str, labels: Mapping[str, str]) -> str:
    """The name of a sample with its labels, as the text format writes it."""
    shown = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
    return f"{name}{{{shown}}}" if shown else name


def number(value: float) -> str:
    """A value as the text format writes it."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
