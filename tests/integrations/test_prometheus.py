"""What Prometheus reads is what the manager counts, to the last call."""

import json
import os
import shutil
import subprocess
import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from resilience_cli.main import run as command

from resilience import (
    Bulkhead,
    BulkheadFullError,
    CircuitBreakerConfig,
    DeadlineExceeded,
    ErrorRecoveryManager,
    OperationCancelled,
    ResourceType,
    RetryPolicy,
    open_store,
)
from resilience.integrations import prometheus
from resilience.testing import ManualClock


@pytest.fixture
def manager():
    with ErrorRecoveryManager(clock=ManualClock()) as made:
        yield made


def parsed(text):
    """Value by (sample name, sorted labels)."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, /, **labels):
    return samples[(name, *sorted(labels.items()))]


def mixed_calls(manager, calls=5000, threads=8):
    """Makes calls of every outcome from several threads; gives how many there were of each."""
    manager.register_retry_policy("api", RetryPolicy(max_retries=1, base_delay=0.0, jitter=False))
    tries, lock = {}, threading_lock()

    def work(kind, number):
        if kind == "error":
            raise PermissionError("no")
        if kind == "timeout":
            raise DeadlineExceeded(name="api", timeout=1.0)
        if kind == "recovers":
            with lock:
                tries[number] = tries.get(number, 0) + 1
                if tries[number] == 1:
                    raise ConnectionError("reset")
        if kind == "exhausted":
            raise ConnectionError("down")
        if kind == "rejected":
            raise BulkheadFullError(name="inner", limit=1)
        if kind == "cancelled":
            raise OperationCancelled(name="api")

    kinds = ["ok", "ok", "ok", "ok", "error", "timeout", "recovers", "exhausted", "cancelled", "saved"]
    protected = manager.protect("api", isolation="caller")(work)

    def run(first):
        for number in range(first, calls, threads):
            kind = kinds[number % len(kinds)]
            if kind == "saved":
                manager.execute_with_recovery("api", work, "exhausted", number, fallback="stale")
                continue
            try:
                protected(kind, number)
            except Exception:
                pass

    workers = [threading.Thread(target=run, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return calls // len(kinds)


def threading_lock():
    return threading.Lock()


def test_5000_mixed_calls_agree_in_status_monitor_text_and_report(tmp_path, capsys):
    url = f"file://{tmp_path}/state"
    with open_store(url) as store, ErrorRecoveryManager(clock=ManualClock(), store=store) as manager:
        known, seen = agreed_by_the_living(manager)
    assert command(["report", "--store", url, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    counts = report["operations"]["api"]
    told = {"calls", "successes", "failures", "timeouts", "cancelled", "rejections", "retries", "fallbacks"}
    assert {name: counts[name] for name in told} == {name: known[name] for name in told}
    assert {name: counts[name] for name in ("success_rate", "p50", "p95", "p99")} == pytest.approx(
        {name: seen[name] for name in ("success_rate", "p50", "p95", "p99")}
    )
    assert (report["errors"]["errors"], report["errors"]["total"]) == (known["failures"], known["calls"])
    assert sum(group["count"] for group in report["errors"]["groups"]) == known["failures"]


def agreed_by_the_living(manager):
    """Makes the calls; gives their numbers, on which all agree while the manager lives, and what the monitor says."""
    each = mixed_calls(manager)
    counts = manager.monitor.operations()["api"]
    known = {
        "calls": 10 * each, "successes": 5 * each, "failures": 4 * each, "timeouts": each, "cancelled": each,
        "rejections": 0, "retries": 4 * each, "recovered": each, "exhausted": 3 * each, "fallbacks": each,
    }  # fmt: skip
    assert {name: counts[name] for name in known} == known
    assert {name: manager.status()["operations"]["api"][name] for name in known} == known
    samples = parsed(prometheus.render(manager))
    outcomes = {"ok": 5, "error": 3, "timeout": 1, "rejected": 0, "cancelled": 1}
    for outcome, times in outcomes.items():
        assert value(samples, "resilience_calls_total", name="api", outcome=outcome) == times * each
    kinds = {"successful_without_retry": 4, "successful_with_retry": 1,
             "failed_without_retry": 1, "failed_with_retry": 3}  # fmt: skip
    for kind, times in kinds.items():
        assert value(samples, "resilience_retry_calls_total", name="api", kind=kind) == times * each
    for name, times in (("failures", 4), ("timeouts", 1), ("retries", 4), ("fallbacks", 1)):
        assert value(samples, f"resilience_{name}_total", name="api") == times * each
    assert value(samples, "resilience_call_duration_seconds_count", name="api") == 10 * each
    assert value(samples, "resilience_call_duration_seconds_bucket", name="api", le="+Inf") == 10 * each
    assert sum(value(samples, "resilience_errors_total", category=category)
               for category in ("transient", "permanent")) == len(manager.errors) == 4 * each  # fmt: skip
    return known, counts


def test_the_histogram_puts_durations_at_the_right_edges(manager):
    stats = manager.monitor.stats_of("timed")
    for seconds in (50e-6, 100e-6, 0.001, 0.5, 2.0, 100.0, 500.0):
        stats.record(0.0, seconds, "success")
    samples = parsed(prometheus.render(manager))
    edges = {
        float(labels["le"]): number
        for (name, *pairs), number in samples.items()
        if name == "resilience_call_duration_seconds_bucket" and (labels := dict(pairs))["name"] == "timed"
    }
    durations = (50e-6, 100e-6, 0.001, 0.5, 2.0, 100.0, 500.0)
    for edge, number in edges.items():
        assert number == sum(seconds <= edge for seconds in durations), edge
    assert len(edges) == 23
    assert value(samples, "resilience_call_duration_seconds_sum", name="timed") == pytest.approx(602.50115, rel=0.02)


def test_breakers_bulkheads_and_resources(manager):
    manager.register_circuit_breaker("db", CircuitBreakerConfig(failure_threshold=1))
    bulkhead = Bulkhead("db", 3)
    manager.register_bulkhead("db", bulkhead)
    manager.execute_with_recovery("db", lambda: 1)
    manager.circuit_breaker("db").acquire().failure()
    manager._clock.advance(7.0)
    manager.execute_with_recovery("db", lambda: 1)
    with bulkhead:
        samples = parsed(prometheus.render(manager))
    states = {state: value(samples, "resilience_breaker_state", name="db", state=state)
              for state in ("closed", "open", "half_open", "forced_open", "disabled", "metrics_only")}  # fmt: skip
    assert states == {"closed": 0, "open": 1, "half_open": 0, "forced_open": 0, "disabled": 0, "metrics_only": 0}
    assert value(samples, "resilience_breaker_not_permitted_calls_total", name="db") >= 1
    assert value(samples, "resilience_breaker_transitions_total", name="db") == 1
    assert value(samples, "resilience_breaker_open_seconds", name="db") == 7.0
    assert value(samples, "resilience_breaker_calls_total", name="db", outcome="failed") == 1
    assert value(samples, "resilience_bulkhead_max", name="db") == 3
    assert value(samples, "resilience_bulkhead_available", name="db") == 2
    assert value(samples, "resilience_resources", type="thread") >= 1
    assert value(samples, "resilience_calls_total", name="db", outcome="rejected") == 1


def test_alerts_caches_workers_and_the_process(manager):
    manager.monitor.record_cache("symbols", hit=3, miss=1)
    manager.monitor.record_worker_health("binance", False, 4)
    manager.protect("pay", critical=True)
    for _ in range(20):
        manager.monitor.record_operation("pay", 0.1, success=False)
    samples = parsed(prometheus.render(manager))
    assert value(samples, "resilience_alert_firing", rule="error_rate", subject="pay") == 1
    assert value(samples, "resilience_operation_critical", name="pay") == 1
    assert value(samples, "resilience_cache_hits_total", cache="symbols") == 3
    assert value(samples, "resilience_worker_up", worker="binance") == 0
    assert value(samples, "resilience_worker_errors", worker="binance") == 4
    assert value(samples, "resilience_process_resident_memory_bytes") > 1e6
    assert 0 < value(samples, "resilience_resource_usage_ratio", resource="memory") < 1
    assert value(samples, "resilience_health_score") < 100
    assert value(samples, "resilience_degraded") == 0


def test_labels_are_escaped(manager):
    name = 'a "quoted" \\ back\nslash'
    manager.monitor.record_operation(name, 0.1, success=True)
    samples = parsed(prometheus.render(manager))
    assert value(samples, "resilience_calls_total", name=name, outcome="ok") == 1


def test_a_registry_shows_the_same_and_forgets_the_manager(manager):
    registry = CollectorRegistry()
    remove = prometheus.register(manager, registry)
    mixed_calls(manager, calls=50)
    ours, theirs = parsed(prometheus.render(manager)), parsed(generate_latest(registry).decode())
    moving = ("resilience_process", "resilience_resource_usage", "resilience_health")
    for key, number in ours.items():
        if not key[0].startswith(moving):
            assert theirs[key] == number, key
    remove()
    remove()
    assert generate_latest(registry) == b""


def test_a_registry_does_not_keep_a_manager_alive():
    import gc

    registry = CollectorRegistry()
    manager = ErrorRecoveryManager()
    prometheus.register(manager, registry)
    manager.monitor.record_operation("a", 0.1, success=True)
    assert b"resilience_calls_total" in generate_latest(registry)
    manager.close()
    del manager
    gc.collect()
    assert b"resilience_calls_total" not in generate_latest(registry)


def test_every_metric_is_in_the_table_of_the_documentation():
    from pathlib import Path

    table = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, (kind, labels, what) in prometheus.METRICS.items():
        shown = f"{name}{{{','.join(labels)}}}" if labels else name
        assert f"| `{shown}` | {kind} | {what} |" in table


def test_a_textfile_goes_on_from_the_run_before(tmp_path):
    path = tmp_path / "nightly.prom"
    for run in range(1, 4):
        with ErrorRecoveryManager() as manager, prometheus.Textfile(manager, path) as file:
            for _ in range(5):
                manager.monitor.record_operation("fetch", 0.1, success=True)
            manager.monitor.record_operation(f"only in {run}", 0.1, success=False)
            file.write()  # now and then, and at the end
        samples = parsed(path.read_text())
        assert value(samples, "resilience_calls_total", name="fetch", outcome="ok") == 5 * run
        assert value(samples, "resilience_call_duration_seconds_count", name="fetch") == 5 * run
        assert value(samples, "resilience_calls_total", name="only in 1", outcome="error") == 1
        assert value(samples, "resilience_job_last_success_timestamp_seconds", job="nightly") > 1.7e9
    assert os.listdir(tmp_path) == ["nightly.prom"]


@pytest.mark.parametrize("name", ["two\u2028lines", "next\x85line", "return\r", "feed\x0c"])
def test_a_textfile_goes_on_whatever_is_in_a_name(tmp_path, name):
    path = tmp_path / "nightly.prom"
    for _ in range(2):
        with ErrorRecoveryManager() as manager, prometheus.Textfile(manager, path):
            manager.monitor.record_operation(name, 0.1, success=True)
    assert f'resilience_calls_total{{name="{name}",outcome="ok"}} 2\n'.encode() in path.read_bytes()


def test_a_run_that_fails_leaves_the_time_of_the_last_success(tmp_path):
    path = tmp_path / "job.prom"
    with ErrorRecoveryManager() as manager:
        with prometheus.Textfile(manager, path, job="a"):
            pass
        before = value(parsed(path.read_text()), "resilience_job_last_success_timestamp_seconds", job="a")
        with pytest.raises(ZeroDivisionError), prometheus.Textfile(manager, path, job="a"):
            _ = 1 / 0
        assert value(parsed(path.read_text()), "resilience_job_last_success_timestamp_seconds", job="a") == before


def test_a_textfile_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, manager):
    path = tmp_path / "job.prom"
    path.write_text('resilience_retries_total{name="x"} 7\nnot a line\n# noise\n')

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        prometheus.Textfile(manager, path).write()
    assert path.read_text().startswith("resilience_retries_total")
    monkeypatch.undo()
    prometheus.Textfile(manager, path).write()
    assert value(parsed(path.read_text()), "resilience_retries_total", name="x") == 7
    assert os.listdir(tmp_path) == ["job.prom"]


def test_rendering_needs_no_library(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from resilience import ErrorRecoveryManager\n"
        "from resilience.integrations.prometheus import render\n"
        "with ErrorRecoveryManager() as manager:\n"
        "    assert 'resilience_health_score' in render(manager)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about(tmp_path, manager):
    odd = 'ü "quoted" \\\\ back\nslash'
    manager.register_bulkhead(odd, Bulkhead(odd, 3))
    manager.register_circuit_breaker(odd, CircuitBreakerConfig(failure_threshold=1))
    manager.protect(odd, critical=True)
    mixed_calls(manager, calls=50)
    for _ in range(20):
        manager.monitor.record_operation(odd, 0.1, success=False)
    manager.monitor.record_cache(odd, hit=1, miss=2, eviction=3)
    manager.monitor.record_worker_health(odd, True, 1)
    manager.resources.set_limit(ResourceType.FILE, 5)
    prometheus.Textfile(manager, tmp_path / "job.prom").write(success=True)
    for text in (prometheus.render(manager), (tmp_path / "job.prom").read_text(encoding="utf-8")):
        assert {"resilience_alert_firing", "resilience_cache_evictions_total"} <= {name for name, *_ in parsed(text)}
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
