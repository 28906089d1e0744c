"""The performance monitor tells what was recorded, and of the process what can be known."""

import os
import threading
from pathlib import Path

import pytest

from resilience import ConfigError, PerformanceMonitor
from resilience.monitoring.health import health
from resilience.monitoring.system import SystemReader, read_limits
from resilience.testing import ManualClock, eventually


@pytest.fixture
def monitor():
    made = PerformanceMonitor(clock=ManualClock())
    yield made
    made.stop()


def test_without_workers_it_is_unhealthy_and_from_half_of_them_on_healthy(monitor):
    assert not monitor.is_healthy()
    monitor.record_worker_health("binance", True, 0)
    monitor.record_worker_health("kraken", False, 5)
    assert monitor.is_healthy()
    monitor.record_worker_health("bybit", False, 1)
    assert not monitor.is_healthy()
    assert monitor.is_healthy(min_ratio=0.3)
    monitor.record_worker_health("bybit", True, 1)
    assert monitor.report()["workers"]["bybit"]["is_running"] is True


def test_cache_events_are_added_up(monitor):
    for _ in range(3):
        monitor.record_cache("symbols", hit=1)
    monitor.record_cache("symbols", miss=1)
    monitor.record_cache("symbols", eviction=2)
    monitor.record_cache("cold", eviction=1)
    caches = monitor.report()["caches"]
    assert caches["symbols"] == {"hits": 3, "misses": 1, "evictions": 2, "hit_rate": 0.75}
    assert caches["cold"]["hit_rate"] is None


def test_a_recorded_operation_is_counted(monitor):
    monitor.record_operation("symbol_fetch", 0.25, True)
    monitor.record_operation("symbol_fetch", 0.25, False)
    shown = monitor.operations()["symbol_fetch"]
    assert (shown["calls"], shown["successes"], shown["failures"]) == (2, 1, 1)
    with pytest.raises(ConfigError):
        monitor.record_operation("symbol_fetch", float("nan"), True)


def test_the_system_figures_are_this_processs_own(monitor):
    before = threading.active_count()
    system = monitor.system()
    assert system["rss"] > 1_000_000
    # threads of earlier tests may end meanwhile
    assert threading.active_count() <= system["threads"] <= before
    assert system["fds"] > 0
    assert system["children"] >= 0
    assert 0 < system["usage"]["memory"] < 1


def test_a_figure_that_cannot_be_read_is_none(monkeypatch):
    reader = SystemReader()
    monkeypatch.setattr(SystemReader, "_own_process", lambda self: None)
    monkeypatch.setattr("os.listdir", lambda path: (_ for _ in ()).throw(PermissionError(path)))
    reading = reader.read()
    assert (reading["rss"], reading["fds"], reading["children"]) == (None, None, None)
    assert reader.usage(reading)["memory"] is None


def test_a_cgroup_limit_of_any_level_binds(tmp_path: Path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "outer" / "memory.max").write_text("209715200\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "cpu.max").write_text("50000 100000\n")
    (inner / "pids.max").write_text("64\n")
    own = tmp_path / "self"
    own.write_text("0::/outer/inner\n")
    limits = read_limits(tmp_path, own)
    assert (limits.memory, limits.cpus, limits.threads) == (209715200, 0.5, 64)


def test_a_list_of_cgroups_that_makes_no_sense_is_read_as_far_as_it_goes(tmp_path: Path):
    (tmp_path / "own").write_bytes(b"nonsense\n\n0::/\xff\n0::/service\n")
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "pids.max").write_text("77\n")
    assert read_limits(root=tmp_path, own=tmp_path / "own").pids == 77


def test_a_cgroup_of_version_1_is_read_too(tmp_path: Path):
    folder = tmp_path / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("104857600\n")
    own = tmp_path / "self"
    own.write_text("5:memory:/box\n")
    assert read_limits(tmp_path, own).memory == 104857600


def test_samples_become_a_trend_with_its_slope():
    class Reader:
        rss = 1000

        def read(self):
            Reader.rss += 50
            return {"cpu": None, "rss": Reader.rss, "threads": 3, "os_threads": 3, "fds": 5, "children": 0}

        def usage(self, reading=None):
            return {"memory": None}

    clock = ManualClock()
    sampled = PerformanceMonitor(clock=clock, reader=Reader())
    for _ in range(3):
        sampled.sample()
        clock.advance(5.0)
    assert [round(sample["at"] - sampled.trend()[0]["at"]) for sample in sampled.trend()] == [0, 5, 10]
    found = sampled.trends()
    assert found["rss"] == {"first": 1050, "last": 1150, "least": 1050, "most": 1150, "per_hour": pytest.approx(36_000)}
    assert found["threads"]["per_hour"] == 0.0
    assert "cpu" not in found


def test_starting_twice_runs_one_sampler(new_threads):
    monitor = PerformanceMonitor()
    begun = new_threads()
    monitor.start(interval=60.0)
    monitor.start(interval=60.0)
    assert begun() == ["resilience-monitor"]
    monitor.stop()
    monitor.stop()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sampling_goes_on_in_a_forked_child_until_it_is_stopped_there():
    monitor, stopped = PerformanceMonitor(), PerformanceMonitor()
    monitor.start(interval=60.0)
    stopped.start(interval=60.0)
    stopped.stop()
    eventually(monitor.trend)
    before = len(monitor.trend())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            eventually(lambda: len(monitor.trend()) > before, within=20)
            running = monitor.is_running, stopped.is_running
            monitor.stop()
            code = 0 if (*running, monitor.is_running) == (True, False, False) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert monitor.is_running
    monitor.stop()


def test_each_deduction_of_the_health_score_says_why():
    fine = health(workers_healthy=True, recent={}, breakers={"a": "closed"}, usage={"memory": 0.5})
    assert fine == {"score": 100.0, "deductions": []}
    bad = health(
        workers_healthy=False,
        recent={"api": {"failures": 10, "successes": 10}, "rare": {"failures": 3, "successes": 0}},
        breakers={"db": "open", "ok": "half_open"},
        usage={"memory": 0.97, "fds": 0.85, "threads": None},
        abandoned=1,
        leaks=10,
    )
    points = {deduction["reason"]: deduction["points"] for deduction in bad["deductions"]}
    assert sorted(points.values()) == [5, 10, 10, 15, 20, 25, 30]
    assert bad["score"] == 0.0
    assert any("'api'" in reason for reason in points)


def test_the_report_is_plain_data(monitor):
    import json

    monitor.record_worker_health("w", True)
    monitor.record_operation("op", 0.1, True)
    assert set(json.loads(json.dumps(monitor.report()))) == {"workers", "caches", "system", "operations", "health"}
