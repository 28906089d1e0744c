"""The five alerts fire exactly beyond their thresholds, clear at 90 % of them, and are told once each."""

import json

import pytest

from resilience import (
    CircuitBreakerConfig,
    ConfigError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    EventStream,
    ResourceType,
    RetryPolicy,
)
from resilience.monitoring.alerts import Alerts, Observation, fires
from resilience.testing import ManualClock

FIELDS = {"rule", "value", "threshold", "since"}


class StillReader:
    """A process that uses what a test says."""

    def __init__(self):
        self.shares = {"memory": 0.1, "fds": 0.1, "threads": None}

    def read(self):
        return dict.fromkeys(("cpu", "rss", "threads", "os_threads", "fds", "children")) | {"limits": {}}

    def usage(self, reading=None):
        return dict(self.shares)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def manager(clock):
    with ErrorRecoveryManager(clock=clock) as made:
        made.monitor.reader = StillReader()
        yield made


@pytest.fixture
def told(manager):
    """(kind, fields) of the alert events so far, waiting for the stream."""
    heard = []
    manager.events.subscribe(heard.append, kinds=("alert_fired", "alert_cleared"))

    def look():
        manager.events.flush()
        return [(event.kind, event.rule) for event in heard]

    look.events = heard
    return look


def rules_of(alerts):
    return [alert["rule"] for alert in alerts]


def run(manager, name, *, calls, failing=0, timing_out=0, retries=0):
    """Makes `calls` calls of an operation without delays."""
    manager.register_retry_policy(name, RetryPolicy(max_retries=retries, base_delay=0.0, jitter=False))

    def work(kind):
        if kind == "fail":
            raise PermissionError("no")
        if kind == "late":
            raise DeadlineExceeded(name=name, timeout=1.0)

    kinds = ["fail"] * failing + ["late"] * timing_out + ["ok"] * (calls - failing - timing_out)
    for kind in kinds:
        manager.execute_with_recovery(name, work, kind)


@pytest.mark.parametrize(
    ("firing", "value", "expected"),
    [(False, 0.5, False), (False, 0.5000001, True), (True, 0.5, True), (True, 0.4500001, True), (True, 0.45, False),
     (False, 0.46, False), (True, None, False), (False, None, False)],
)  # fmt: skip
def test_strictly_above_fires_and_ninety_percent_clears(firing, value, expected):
    assert fires(firing, value, 0.5) is expected


def test_the_timeout_rate_fires_beyond_ten_percent_of_twenty_calls(manager):
    run(manager, "api", calls=19, timing_out=19)
    assert manager.status()["alerts"] == []  # too few for a rate
    run(manager, "other", calls=20, timing_out=2)
    assert "other" not in [alert.get("operation") for alert in manager.status()["alerts"]]
    run(manager, "api", calls=1)
    fired = [alert for alert in manager.status()["alerts"] if alert["rule"] == "timeout_rate"]
    assert fired[0].keys() == FIELDS | {"operation"}
    assert (fired[0]["operation"], fired[0]["value"], fired[0]["threshold"]) == ("api", 0.95, 0.1)


def test_the_error_rate_is_watched_on_critical_operations_only(manager):
    run(manager, "plain", calls=20, failing=20)
    run(manager, "payments", calls=20, failing=1)
    manager.protect("payments", critical=True)
    assert manager.status()["alerts"] == []  # exactly 5 %
    run(manager, "payments", calls=1, failing=1)
    assert [(alert["rule"], alert["operation"]) for alert in manager.status()["alerts"]] == [("error_rate", "payments")]


def test_an_operation_can_be_marked_critical_in_the_configuration(tmp_path, clock):
    path = tmp_path / "r.yaml"
    path.write_text("error_recovery:\n  operations:\n    payments:\n      critical: true\n")
    with ErrorRecoveryManager.from_config(str(path), env={}, clock=clock) as manager:
        for _ in range(20):
            manager.monitor.record_operation("payments", 0.1, success=False)
        assert rules_of(manager.status()["alerts"]) == ["error_rate"]


def test_the_retry_rate_counts_repeats_by_call(manager):
    attempts = iter(range(1000))
    manager.register_retry_policy("api", RetryPolicy(max_retries=1, base_delay=0.0, jitter=False))

    def every_second_fails_once():
        if next(attempts) % 3 == 0:
            raise ConnectionError("reset")

    for _ in range(20):
        manager.execute_with_retry("api", every_second_fails_once)
    assert manager.monitor.operations()["api"]["retries"] == 10
    assert manager.status()["alerts"] == []
    for _ in range(3):
        manager.execute_with_recovery("api", lambda: (_ for _ in ()).throw(ConnectionError("down")))
    assert rules_of(manager.status()["alerts"]) == ["retry_rate"]


def test_a_breaker_open_for_more_than_five_minutes(manager, clock, told):
    manager.register_circuit_breaker("db", CircuitBreakerConfig(failure_threshold=1))
    manager.circuit_breaker("db").force_open()
    clock.advance(300.0)
    assert manager.status()["alerts"] == []
    clock.advance(0.5)
    (alert,) = manager.status()["alerts"]
    assert (alert["rule"], alert["operation"]) == ("breaker_open", "db")
    assert (alert["value"], alert["threshold"]) == (300.5, 300.0)
    manager.circuit_breaker("db").reset()
    assert manager.status()["alerts"] == []
    assert told() == [("alert_fired", "breaker_open"), ("alert_cleared", "breaker_open")]


def test_resource_usage_beyond_eighty_percent(manager, told):
    manager.monitor.reader.shares["fds"] = 0.80
    assert manager.status()["alerts"] == []
    manager.monitor.reader.shares["fds"] = 0.81
    (alert,) = manager.status()["alerts"]
    assert (alert["rule"], alert["resource"], alert["value"]) == ("resource_usage", "fds", 0.81)
    manager.monitor.reader.shares["fds"] = 0.73
    assert len(manager.status()["alerts"]) == 1  # above 72 %: still firing
    manager.monitor.reader.shares["fds"] = 0.72
    assert manager.status()["alerts"] == []
    assert told() == [("alert_fired", "resource_usage"), ("alert_cleared", "resource_usage")]


def test_a_limited_resource_type_is_watched_too(manager):
    manager.resources.set_limit(ResourceType.CONNECTION, 5)
    handles = [manager.resources.register_resource(f"c{number}", ResourceType.CONNECTION) for number in range(5)]
    assert [alert["resource"] for alert in manager.status()["alerts"]] == ["connection"]
    for handle in handles:
        handle.close()


def test_an_alert_is_told_once_and_ends_with_its_window(manager, clock, told):
    run(manager, "api", calls=20, timing_out=10)
    for _ in range(3):
        assert rules_of(manager.status()["alerts"]) == ["timeout_rate"]
    run(manager, "api", calls=10, timing_out=1)
    assert told() == [("alert_fired", "timeout_rate")]
    clock.advance(301.0)
    assert manager.status()["alerts"] == []
    assert told() == [("alert_fired", "timeout_rate"), ("alert_cleared", "timeout_rate")]
    assert told.events[0].since == told.events[1].since
    assert {*told.events[0].as_dict()} == {"kind", "name", "at", "rule", "operation", "value", "threshold", "since"}


def test_a_listener_hears_of_a_rate_without_anybody_reading_it(manager, told):
    run(manager, "api", calls=21, timing_out=0)
    run(manager, "api", calls=3, timing_out=3)
    assert told() == [("alert_fired", "timeout_rate")]


def test_a_recorded_operation_counts_too(manager):
    manager.protect("feed", critical=True)
    for number in range(20):
        manager.monitor.record_operation("feed", 0.01, success=number > 1)
    assert rules_of(manager.status()["alerts"]) == ["error_rate"]
    assert json.loads(json.dumps(manager.status()["alerts"]))[0]["operation"] == "feed"


def test_calls_through_the_express_lane_are_counted_to_the_last(manager, clock):
    manager.protect("fast", critical=True)
    state = {"fail": False}

    @manager.protect("fast", isolation="caller")
    def work():
        if state["fail"]:
            raise PermissionError("no")

    work()
    clock.advance(400.0)  # the first call is older than the window now
    for _ in range(18):
        work()
    state["fail"] = True
    manager.register_retry_policy("fast", RetryPolicy(max_retries=0))
    for _ in range(2):
        with pytest.raises(PermissionError):
            work()
    (alert,) = manager.status()["alerts"]
    assert alert["value"] == 0.1  # 2 of exactly 20


def test_an_observation_that_is_gone_clears_its_alert(clock):
    seen = [Observation("breaker_open", "db", 400.0)]
    heard = []
    events = EventStream(clock=clock)
    events.subscribe(heard.append)
    alerts = Alerts(lambda: seen, clock=clock, events=events)
    assert len(alerts.evaluate()) == 1
    seen.clear()
    assert alerts.evaluate() == []
    events.flush()
    assert [event.kind for event in heard] == ["alert_fired", "alert_cleared"]


@pytest.mark.parametrize("target", ["ftp://host/", "echo hello", 5, [], None, ["ok", 3]])
def test_a_target_that_is_none_is_refused(manager, target):
    with pytest.raises(ConfigError):
        manager.alerts.notify(target)


@pytest.mark.parametrize("target", ["http://", "https:///secret", "http://host:99999/secret", "http://host:x/secret",
                                    "http://host:0/secret", "http://[::1/secret", "http://host/secret \u00fc",
                                    "http://host/a?b=secret c"])  # fmt: skip
def test_a_webhook_that_could_never_be_called_is_refused_at_once_without_its_secrets(manager, target):
    with pytest.raises(ConfigError) as caught:
        manager.alerts.notify(target)
    assert caught.value.key == "target"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["http://host", "https://user:pass@host:8443/a/b?c=%20d", "http://[::1]:80/",
                                    "http://b\u00fccher.example/x"])  # fmt: skip
def test_a_webhook_that_can_be_called_is_taken(manager, target):
    manager.alerts.notify(target)()


def test_an_unknown_rule_is_refused_by_name(manager):
    with pytest.raises(ConfigError, match="no_such"):
        manager.alerts.notify(print, rules=["no_such"])
