"""The file store: exact over processes, whole after any kill, and nothing that was acknowledged is lost."""

import json
import sqlite3
import subprocess
import sys
import time

import pytest

from resilience import open_store

pytestmark = pytest.mark.slow
PROCESSES, TRANSITIONS, KILLS = 8, 2_000, 200


def assert_is_whole(path):
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_two_thousand_transitions_of_each_of_eight_processes_are_exact(tmp_path, name, workers):
    url = f"file://{tmp_path}/state"
    crowd = workers(PROCESSES, "breaker", url, name)
    began = time.monotonic()
    crowd.do(f"[breaker.reset() for _ in range({TRANSITIONS})][:0]")
    took = time.monotonic() - began
    assert all(crowd.do("store.link.flush(50.0)"))
    print(f"{PROCESSES * TRANSITIONS / took:,.0f} transitions a second")
    with open_store(url) as store:
        assert store.read(f"breaker/{name}")["generation"] == 1 + PROCESSES * TRANSITIONS
    for worker in crowd:
        worker.close()
    assert_is_whole(tmp_path / "state")


KILLED = """
import json, os, random, signal, sys
from resilience import CircuitBreaker, CircuitBreakerConfig, open_store

url, rounds = sys.argv[1], int(sys.argv[2])

def write_until_killed(name, told):
    store = open_store(url)
    breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=10**6), store=store)
    while True:
        breaker.acquire().failure()
        if store.link.state == "ready":
            os.write(told, b".")

lost, most = [], 0
for number in range(rounds):
    name = f"killed-{number}"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        write_until_killed(name, writer)
    os.close(writer)
    acknowledged, enough = 0, random.randint(1, 40)
    while acknowledged < enough:
        acknowledged += len(os.read(reader, enough))
    os.kill(child, signal.SIGKILL)
    while more := os.read(reader, 65536):
        acknowledged += len(more)
    os.close(reader)
    os.waitpid(child, 0)
    with open_store(url) as store:
        counted = store.read(f"breaker/{name}")["failures"]
    if not acknowledged <= counted <= acknowledged + 1:
        lost.append((acknowledged, counted))
    most = max(most, acknowledged)
print(json.dumps([lost, most]))
"""


def test_two_hundred_kills_of_a_writer_lose_nothing_that_was_acknowledged(tmp_path):
    url = f"file://{tmp_path}/state"
    run = [sys.executable, "-W", "ignore", "-c", KILLED, url, str(KILLS)]
    with open_store(url) as store:  # somebody has it open all the time, which spares each opening the clean-up
        store.read("breaker")
        done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lost, most = json.loads(done.stdout)
    print(f"up to {most} acknowledged before the kill")
    assert lost == []
    assert most > 1
    assert_is_whole(tmp_path / "state")
