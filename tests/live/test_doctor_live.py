"""`resilience doctor` and `status` against real processes, each with one fault on purpose."""

import json
import os
import signal
import socket
import time

import pytest

HEAD = """
import gc, os, sys, threading
from resilience import *
from resilience.core.clock import SystemClock

manager = ErrorRecoveryManager()

def ready():
    print("ready", flush=True)
    sys.stdin.read()
    manager.close(0.0)
    os._exit(0)
"""

STUCK_OPEN = """
manager.register_circuit_breaker("payments", CircuitBreakerConfig(failure_threshold=2, timeout=0.05))
manager.register_retry_policy("payments", RetryPolicy(max_retries=0))
def down():
    raise ConnectionError("connection refused")
import time
for _ in range(6):
    try:
        manager.execute_with_retry("payments", down)
    except Exception:
        pass
    time.sleep(0.06)
time.sleep(0.2)
ready()
"""

RETRY_STORM = """
manager.register_retry_policy("search", RetryPolicy(max_retries=3, base_delay=0.0))
def down():
    raise ConnectionError("reset by peer")
for _ in range(25):
    try:
        manager.execute_with_retry("search", down)
    except ConnectionError:
        pass
ready()
"""

LEAKED = """
class Owner: pass
def open_one():
    owner = Owner()
    manager.resources.register_resource("socket-1", ResourceType.CONNECTION, owner=owner)
open_one()
gc.collect()
ready()
"""

BLOCKED = """
manager.register_timeout("backfill", 0.2)
def hang():
    os.read(os.pipe()[0], 1)
try:
    manager.execute_with_retry("backfill", hang)
except DeadlineExceeded:
    pass
ready()
"""

EXHAUSTED = """
manager.register_bulkhead("reports", Bulkhead("reports", 2, max_queue=5, max_wait=60.0))
inside = threading.Barrier(3)
release = threading.Event()
def work():
    inside.wait()
    release.wait()
for _ in range(2):
    threading.Thread(target=lambda: manager.execute_with_retry("reports", work), daemon=True).start()
inside.wait()
threading.Thread(target=lambda: manager.execute_with_retry("reports", release.wait), daemon=True).start()
ready()
"""

SKEWED = """
class Skewed(SystemClock):
    def time(self):
        return super().time() + 3600
wrong = ErrorRecoveryManager(clock=Skewed())
ready()
"""

HEALTHY = """
for _ in range(30):
    manager.execute_with_retry("api_call", int)
ready()
"""

FAULTS = [
    (STUCK_OPEN, "breaker stuck open", "payments"),
    (RETRY_STORM, "retry storm", "75 retries for 25 calls"),
    (LEAKED, "resource leak", "socket-1"),
    (BLOCKED, "blocking call", "in hang"),
    (EXHAUSTED, "pool exhausted", "2 of 2 slots"),
    (SKEWED, "clock skew", "+3600"),
]


def examined(home, process):
    done = home.run("doctor", process.pid, "--json", "--timeout", "30s")
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(("script", "fault", "measured"), FAULTS, ids=[fault for _, fault, _ in FAULTS])
def test_the_doctor_names_the_fault_and_what_was_measured(home, script, fault, measured):
    code, found = examined(home, home.start(HEAD + script))
    assert code == 1
    assert found["faults"] == [fault]
    named = [check["measured"] for check in found["checks"] if check["fault"] == fault]
    assert any(measured in words for words in named), named


def test_a_healthy_process_has_every_check_and_no_fault(home):
    process = home.start(HEAD + HEALTHY)
    code, found = examined(home, process)
    assert (code, found["faults"]) == (0, [])
    assert {check["list"] for check in found["checks"]} == {
        "Circuit Breaker Stuck Open", "High Retry Rates", "Resource Leaks", "Timeout Issues", "Clocks",
    }  # fmt: skip
    assert len(found["checks"]) == 13
    text = home.run("doctor", process.pid, "--timeout", "30s").stdout
    assert text.endswith("nothing found\n")
    assert "Check service health: 0 breakers, all closed" in text


def test_a_stopped_process_is_a_blocking_call(home):
    process = home.start(HEAD + HEALTHY)
    process.send_signal(signal.SIGSTOP)
    try:
        done = home.run("doctor", process.pid, "--json", "--timeout", "200ms")
    finally:
        process.send_signal(signal.SIGCONT)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["faults"] == ["blocking call"]
    assert "SIGSTOP" in found["checks"][0]["measured"]


def test_a_call_that_holds_the_gil_is_named_by_its_line(home):
    script = """
import re, threading
def spin():
    re.match(r"(a+)+$", "a" * 64 + "b")
print("ready", flush=True)
manager.protect("parse", isolation="caller")(spin)()
"""
    process = home.start(HEAD + script)
    time.sleep(0.3)
    done = home.run("doctor", process.pid, "--timeout", "300ms")
    assert done.returncode == 1
    assert "blocking call" in done.stdout
    assert "in spin" in done.stdout


def test_an_open_breaker_named_after_a_host_is_connected_to(home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"127.0.0.1:{server.getsockname()[1]}"
        process = home.start(HEAD + f"manager.circuit_breaker({name!r}).force_open('deploy')\nready()")
        _, found = examined(home, process)
    (reached,) = [check for check in found["checks"] if check["item"] == "Verify network connectivity"]
    assert reached["measured"].startswith(f"{name}: connected in ")


def test_without_an_agent_or_a_process_the_doctor_cannot_look(home):
    assert home.run("doctor").returncode == 69
    process = home.start(HEAD + HEALTHY, agent=False)
    done = home.run("doctor", process.pid)
    assert done.returncode == 69
    assert "RESILIENCE_AGENT=1" in done.stderr


def test_status_is_0_for_a_healthy_process_and_1_for_one_with_an_open_breaker(home):
    well = home.start(HEAD + HEALTHY)
    done = home.run("status", well.pid, "--timeout", "30s")
    told = json.loads(done.stdout)
    assert (done.returncode, told["healthy"], told["score"], told["reasons"]) == (0, True, 100.0, [])
    assert told["operations"]["api_call"]["calls"] == 30
    ill = home.start(HEAD + "manager.circuit_breaker('db').force_open('deploy')\nready()")
    done = home.run("status", ill.pid, "--timeout", "30s")
    told = json.loads(done.stdout)
    assert (done.returncode, told["healthy"], told["breakers"]) == (1, False, {"db": "forced_open"})
    assert told["reasons"] == ["breakers refuse calls: db"]
    done = home.run("status", "--timeout", "30s")
    assert done.returncode == 1
    assert [entry["healthy"] for entry in json.loads(done.stdout)] == [True, False]


def test_status_is_1_while_an_alert_fires_and_when_half_of_the_workers_stand(home):
    storm = home.start(HEAD + RETRY_STORM)
    told = json.loads(home.run("status", storm.pid, "--timeout", "30s").stdout)
    assert told["healthy"] is False
    assert [alert["rule"] for alert in told["alerts"]] == ["retry_rate"]
    standing = home.start(
        HEAD + "for n, runs in enumerate([True, False, False]): manager.monitor.record_worker_health(str(n), runs)\n"
        "ready()"
    )
    done = home.run("status", standing.pid, "--timeout", "30s")
    assert done.returncode == 1
    assert "fewer than half" in json.loads(done.stdout)["reasons"][0]


def test_status_is_69_when_nothing_can_be_asked(home):
    assert home.run("status").returncode == 69
    process = home.start(HEAD + HEALTHY, agent=False)
    assert home.run("status", process.pid).returncode == 69
    process.kill()
    os.waitpid(process.pid, 0)
    process.returncode = -9
    assert home.run("status", process.pid).returncode == 69
