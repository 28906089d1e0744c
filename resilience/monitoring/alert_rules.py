"""The five alerts as rules for a Prometheus server, over the metrics of `integrations.prometheus`.

Prometheus knows no hysteresis: each expression keeps an alert that fires (`ALERTS`) down to 90 % of its threshold.
"""

from __future__ import annotations

from .alerts import CLEARS_AT, MIN_CALLS, THRESHOLDS

_OF_THE_ALERT = "alertname, alertstate, severity, rule"  # the labels it has beside those of its series
_CALLS = "sum by (name) (increase(resilience_calls_total[5m]))"


def prometheus_rules() -> str:
    """The text of a rules file (YAML) for `rule_files` of a Prometheus server."""
    enough = f"and on (name) {_CALLS} >= {MIN_CALLS}"
    critical = "and on (name) resilience_operation_critical == 1"
    rules = (
        ("breaker_open", "ResilienceBreakerOpen", "resilience_breaker_open_seconds", "", "critical",
         "breaker {{ $labels.name }} has been open for {{ $value | humanizeDuration }}"),
        ("retry_rate", "ResilienceRetryRate", _share("resilience_retries_total"), enough, "warning",
         "retries are {{ $value | humanizePercentage }} of the calls of {{ $labels.name }}"),
        ("timeout_rate", "ResilienceTimeoutRate", _share("resilience_timeouts_total"), enough, "warning",
         "{{ $value | humanizePercentage }} of the calls of {{ $labels.name }} timed out"),
        ("resource_usage", "ResilienceResourceUsage", "resilience_resource_usage_ratio", "", "warning",
         "{{ $value | humanizePercentage }} of the limit of {{ $labels.resource }} in use"),
        ("error_rate", "ResilienceErrorRate", _share("resilience_failures_total"), f"{enough} {critical}",
         "critical", "{{ $value | humanizePercentage }} of the calls of {{ $labels.name }} failed"),
    )  # fmt: skip
    lines = ["groups:", "- name: resilience", "  rules:"]
    for rule, alert, value, also, severity, summary in rules:
        lines += [
            f"  - alert: {alert}",
            f"    expr: {_expression(alert, value, THRESHOLDS[rule], also)}",
            "    labels:",
            f"      severity: {severity}",
            f"      rule: {rule}",
            "    annotations:",
            f'      summary: "{summary}"',
        ]
    return "\n".join(lines) + "\n"


def _share(counter: str) -> str:
    return f"sum by (name) (increase({counter}[5m])) / {_CALLS}"


def _expression(alert: str, value: str, threshold: float, also: str) -> str:
    """Above the threshold, or above 90 % of it while it fires: that very series, of that instance."""
    cleared = round(threshold * CLEARS_AT, 6)
    firing = f'and ignoring ({_OF_THE_ALERT}) ALERTS{{alertname="{alert}", alertstate="firing"}}'
    text = f"({value} > {threshold:g} or ({value} > {cleared:g} {firing}))"
    return f"{text} {also}".strip()
