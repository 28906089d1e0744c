"""The rules for Prometheus are valid YAML, name only metrics that exist, and carry the specification's thresholds."""

import re
import shutil
import subprocess

import pytest
import yaml

from resilience.monitoring.alert_rules import prometheus_rules
from resilience.monitoring.alerts import THRESHOLDS


def rules():
    (group,) = yaml.safe_load(prometheus_rules())["groups"]
    return {rule["labels"]["rule"]: rule for rule in group["rules"]}


def test_there_is_one_rule_for_each_alert_with_its_threshold():
    found = rules()
    assert set(found) == set(THRESHOLDS)
    for name, rule in found.items():
        assert f"> {THRESHOLDS[name]:g} or" in rule["expr"]
        assert f"> {THRESHOLDS[name] * 0.9:g} and ignoring (" in rule["expr"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["annotations"]["summary"]


def test_rates_need_twenty_calls_and_errors_a_critical_operation():
    found = rules()
    for name in ("retry_rate", "timeout_rate", "error_rate"):
        assert ">= 20" in found[name]["expr"]
    assert "resilience_operation_critical == 1" in found["error_rate"]["expr"]
    assert ">= 20" not in found["resource_usage"]["expr"]


def test_they_name_only_metrics_that_are_exported():
    from resilience.integrations.prometheus import METRICS

    named = set(re.findall(r"\bresilience_\w+", "".join(rule["expr"] for rule in rules().values())))
    assert named <= set(METRICS)


# -- what Prometheus itself makes of them --------------------------------------------------------------------------

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
MINUTES = 8  # of each phase: the window of five minutes lies inside of it at the end
# Each phase by its share of the threshold: not beyond it, beyond, back but not below 90 %, below.
PHASES = (0.98, 1.2, 0.94, 0.8)
RATES = {"retry_rate": "resilience_retries_total", "timeout_rate": "resilience_timeouts_total",
         "error_rate": "resilience_failures_total"}  # fmt: skip
SUMMARIES = {
    "breaker_open": "breaker api has been open for {}",
    "retry_rate": "retries are {} of the calls of api",
    "timeout_rate": "{} of the calls of api timed out",
    "resource_usage": "{} of the limit of api in use",
    "error_rate": "{} of the calls of api failed",
}


def promtool(tmp_path, *words, stdin=None):
    (tmp_path / "rules.yml").write_text(prometheus_rules())
    done = subprocess.run(["promtool", *words], cwd=tmp_path, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def counter(by_phase):
    total, values = 0.0, []
    for by_minute in by_phase:
        for _ in range(MINUTES):
            values.append(f"{total:g}")
            total += by_minute
    return " ".join(values)


def gauge(by_phase):
    return " ".join(f"{value:g}" for value in by_phase for _ in range(MINUTES))


def history_of(rule):
    """Series of one subject that goes through the phases, and of others that must never fire."""
    beyond = THRESHOLDS[rule]
    if rule not in RATES:
        name, label = {"breaker_open": ("resilience_breaker_open_seconds", "name"),
                       "resource_usage": ("resilience_resource_usage_ratio", "resource")}[rule]  # fmt: skip
        return {
            f'{name}{{{label}="api", instance="one"}}': gauge(beyond * phase for phase in PHASES),
            f'{name}{{{label}="api", instance="two"}}': gauge(beyond * 0.94 for _ in PHASES),
        }
    series = {}
    for name, calls, share, critical in (("api", 100, None, 1), ("rare", 3, 1.0, 1), ("idle", 100, 1.0, 0)):
        bad = [calls * (share if share is not None else beyond * phase) for phase in PHASES]
        if name == "idle" and rule != "error_rate":
            continue
        series[f'resilience_calls_total{{name="{name}", outcome="ok"}}'] = counter(calls - one for one in bad)
        series[f'resilience_calls_total{{name="{name}", outcome="error"}}'] = counter(bad)
        series[f'{RATES[rule]}{{name="{name}"}}'] = counter(bad)
        series[f'resilience_operation_critical{{name="{name}"}}'] = gauge(critical for _ in PHASES)
    return series


def fires(rule, phase):
    """The alert as Prometheus tells it at the end of a phase in which it fires."""
    value = THRESHOLDS[rule] * phase
    labels = {"name": "api"} if rule in RATES else {"instance": "one"}
    labels["resource" if rule == "resource_usage" else "name"] = "api"
    shown = f"{value // 60:.0f}m {value % 60:.0f}s" if rule == "breaker_open" else f"{value * 100:.4g}%"
    severity = rules()[rule]["labels"]["severity"]
    return {
        "exp_labels": {**labels, "severity": severity, "rule": rule},
        "exp_annotations": {"summary": SUMMARIES[rule].format(shown)},
    }


@needs_promtool
def test_prometheus_takes_them(tmp_path):
    promtool(tmp_path, "check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


@needs_promtool
@pytest.mark.parametrize("rule", THRESHOLDS)
def test_in_prometheus_each_fires_beyond_its_threshold_and_clears_below_ninety_percent(tmp_path, rule):
    expected = [[], [fires(rule, PHASES[1])], [fires(rule, PHASES[2])], []]
    tests = [
        {"eval_time": f"{MINUTES * (phase + 1) - 1}m", "alertname": rules()[rule]["alert"], "exp_alerts": alerts}
        for phase, alerts in enumerate(expected)
    ]
    series = [{"series": name, "values": values} for name, values in history_of(rule).items()]
    plan = {
        "rule_files": ["rules.yml"], "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests}],
    }  # fmt: skip
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(plan))
    promtool(tmp_path, "test", "rules", "plan.yml")
