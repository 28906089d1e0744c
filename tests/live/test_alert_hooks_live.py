"""Alerts reach callables, commands and webhooks, and a target that fails or hangs holds nothing up."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from resilience import ErrorRecoveryManager, ResourceType
from resilience.testing import ManualClock


@pytest.fixture
def manager():
    with ErrorRecoveryManager(clock=ManualClock()) as made:
        made.resources.set_limit(ResourceType.LOCK, 1)
        yield made


def fire(manager):
    """Lets one alert fire and clear."""
    with manager.resources.register_resource("x", ResourceType.LOCK):
        assert len(manager.status()["alerts"]) == 1
    assert manager.status()["alerts"] == []


def await_end_of(name):
    until = time.monotonic() + 20
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < until, f"{name} still runs"
        time.sleep(0.01)


class Webhook:
    """A server that keeps what is posted to it."""

    def __init__(self, *, hangs=False):
        self.posted = []
        self.release = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.posted.append((self.path, self.headers["Content-Type"], json.loads(body)))
                if hangs:
                    hook.release.wait(20)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts?key=secret"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def webhook():
    made = Webhook()
    yield made
    made.close()


def test_a_callable_hears_of_firing_and_clearing_until_it_is_ended(manager):
    heard = []
    end = manager.alerts.notify(heard.append)
    fire(manager)
    assert manager.events.flush(10)
    assert [event.kind for event in heard] == ["alert_fired", "alert_cleared"]
    end()
    fire(manager)
    manager.events.flush(10)
    assert len(heard) == 2


def test_only_the_rules_asked_for_and_no_clearing(manager):
    heard, others = [], []
    manager.alerts.notify(heard.append, rules=["resource_usage"], cleared=False)
    manager.alerts.notify(others.append, rules=["retry_rate"])
    fire(manager)
    assert manager.events.flush(10)
    assert [event.kind for event in heard] == ["alert_fired"]
    assert others == []


def test_a_command_gets_the_alert_as_json(manager, tmp_path):
    log = tmp_path / "log"
    code = f"import sys; open({str(log)!r}, 'a').write(sys.stdin.read() + '\\n')"
    manager.alerts.notify([sys.executable, "-c", code])
    fire(manager)
    assert manager.events.flush(30)
    fired, cleared = (json.loads(line) for line in log.read_text().splitlines())
    assert (fired["kind"], fired["rule"], fired["resource"]) == ("alert_fired", "resource_usage", "lock")
    assert fired["value"] == 1.0
    assert cleared["kind"] == "alert_cleared"


def test_a_webhook_gets_the_alert_posted_as_json(manager, webhook):
    manager.alerts.notify(webhook.url)
    fire(manager)
    assert manager.events.flush(30)
    (path, kind, alert), _ = webhook.posted
    assert (path, kind, alert["threshold"]) == ("/alerts?key=secret", "application/json", 0.8)


def test_a_target_that_fails_is_logged_without_its_secrets_and_the_others_hear(manager, caplog):
    heard = []
    manager.alerts.notify(lambda event: 1 / 0)
    manager.alerts.notify(["/no/such/command"])
    manager.alerts.notify([sys.executable, "-c", "import sys; sys.exit(3)"])
    manager.alerts.notify("http://user:password@127.0.0.1:9/token")
    manager.alerts.notify(heard.append)
    fire(manager)
    assert manager.events.flush(60)
    assert len(heard) == 2
    for said in ("ZeroDivisionError", "FileNotFoundError", "exit code 3", "127.0.0.1:9/..."):
        assert said in caplog.text
    assert "password" not in caplog.text
    assert "token" not in caplog.text


def test_a_hanging_target_delays_no_call_and_the_others_only_once(manager, caplog):
    release, heard = threading.Event(), []
    manager.alerts.notify(lambda event: release.wait(30), timeout=0.05)
    manager.alerts.notify(heard.append)
    begun = time.monotonic()
    fire(manager)
    fire(manager)
    assert time.monotonic() - begun < 5
    assert manager.events.flush(20)
    release.set()
    assert len(heard) == 4
    assert "still busy" in caplog.text


def test_a_command_and_a_webhook_end_at_their_limit(manager, tmp_path, caplog):
    hanging = Webhook(hangs=True)
    mark = tmp_path / "mark"
    code = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    try:
        manager.alerts.notify(hanging.url, timeout=0.3, cleared=False)
        manager.alerts.notify([sys.executable, "-c", code], timeout=0.3, cleared=False)
        fire(manager)
        assert manager.events.flush(20)
        until = time.monotonic() + 20
        while time.monotonic() < until and sum("not passed on" in line for line in caplog.messages) < 2:
            time.sleep(0.02)
        assert sum("not passed on" in line for line in caplog.messages) == 2
    finally:
        hanging.close()
    await_end_of("resilience-alert")


def test_with_a_listener_alerts_are_judged_without_anybody_asking(monkeypatch):
    monkeypatch.setattr("resilience.watch.INTERVAL", 0.05)
    with ErrorRecoveryManager() as manager:
        heard, told = [], threading.Event()
        manager.alerts.notify(lambda event: (heard.append(event), told.set()))
        manager.resources.set_limit(ResourceType.LOCK, 1)
        with manager.resources.register_resource("x", ResourceType.LOCK):
            assert told.wait(20)
        assert (heard[0].kind, heard[0].resource) == ("alert_fired", "lock")
    await_end_of("resilience-watch")
