"""Stores that are killed, stopped, emptied or filled with garbage: no call fails or waits, and all agree afterwards."""

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from places import FilePlace, PostgresPlace, RedisPlace
from stalls import Stalls

from resilience import (
    Bulkhead,
    BulkheadFullError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    EventStream,
    open_store,
)
from resilience.stores.redis import STATE
from resilience.testing import eventually

pytestmark = pytest.mark.slow
PATIENCE = 30.0
LONGEST = 0.5  # seconds: ten times what a call may wait for a store, once


@pytest.fixture
def stalls():
    """What the machine adds to the longest call."""
    seen = Stalls()
    yield seen
    seen.end()


def failing():
    raise ConnectionError("refused")


@pytest.fixture(params=["file", "redis", "postgres"])
def place(request, tmp_path):
    """A store of each kind that may be mistreated."""
    if request.param == "file":
        return FilePlace(tmp_path)
    if request.param == "redis":
        return RedisPlace(request.getfixturevalue("own_valkey"))
    return PostgresPlace(request.getfixturevalue("own_postgres"))


class Load:
    """Calls through a breaker, and how long the slowest took."""

    def __init__(self, breaker):
        self.breaker = breaker
        self.slowest = 0.0
        self.slow = 0

    def call(self, fn, times=1):
        for _ in range(times):
            began = time.monotonic()
            try:
                self.breaker.call(fn)
            except (ConnectionError, CircuitOpenError):
                pass
            took = time.monotonic() - began
            self.slowest = max(self.slowest, took)
            self.slow += took > 0.04


def ready(store):
    eventually(lambda: store.link is not None and store.link.state == "ready" and store.link.clerk.epoch is not None)


def test_while_the_store_hangs_local_state_decides_and_the_opening_is_shared_afterwards(place, name, caplog, stalls):
    events = EventStream()
    heard = []
    events.subscribe(lambda event: heard.append(event.kind), ("store_lost", "store_restored", "breaker_state_changed"))
    config = CircuitBreakerConfig(failure_threshold=3, timeout=600.0)
    with open_store(place.url) as store, open_store(place.url) as other:
        mine = CircuitBreaker(name, config, store=store, events=events)
        theirs = CircuitBreaker(name, config, store=other)
        assert mine.call(lambda: 1) == theirs.call(lambda: 1) == 1
        ready(store)
        ready(other)
        load = Load(mine)
        with caplog.at_level(logging.WARNING, "resilience.store"), place.away():
            load.call(failing, 2)
            load.call(lambda: 1, 200)
            eventually(lambda: store.link.state == "away")
            load.call(failing, 3)
            assert str(mine.state) == "open"
            load.call(lambda: 1, 200)
        eventually(lambda: str(theirs.state) == "open")
        eventually(lambda: store.link.state == "ready")
        eventually(lambda: other.link.state == "ready")
        assert load.slowest < LONGEST + stalls.longest
        told = [record for record in caplog.records if record.name == "resilience.store"]
        eventually(lambda: heard.count("store_restored") >= 1)
        events.flush(5.0)
        lost = heard.count("store_lost")  # more than one only where a busy machine makes it look away again
        assert len(told) <= 3 * 2 * lost  # by two stores, three an outage at most
        assert heard.count("breaker_state_changed") == 1


class Traffic:
    """Four threads that call through a shared bulkhead, some hundred times a second, until the end of the block."""

    def __init__(self, bulkhead):
        self.bulkhead = bulkhead
        self.calls, self.refused, self.took = [], [], []

    def work(self):
        while not self.over:
            began = time.monotonic()
            try:
                self.bulkhead.call(time.sleep, 0.005)
                self.calls.append(1)
            except BulkheadFullError as error:
                self.refused.append(error)
            self.took.append(time.monotonic() - began)

    def __enter__(self):
        self.over = False
        self.threads = [threading.Thread(target=self.work) for _ in range(4)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self.over = True
        for thread in self.threads:
            thread.join()


def test_no_call_of_a_shared_bulkhead_with_room_notices_a_store_that_hangs_and_comes_back_empty(place, name, stalls):
    with open_store(place.url) as store:
        bulkhead = Bulkhead(name, 40, store=store)
        with Traffic(bulkhead) as traffic:
            ready(store)
            eventually(lambda: len(traffic.calls) > 200)
            with place.away():
                eventually(lambda: store.link.state == "away")
                so_far = len(traffic.calls)
                eventually(lambda: len(traffic.calls) > so_far + 200)
            eventually(lambda: store.link.state == "ready")
            slowest = max(traffic.took)
            place.empty()

            def is_back():
                with open_store(place.url) as fresh:
                    return (fresh.read(f"bulkhead/{name}") or {}).get("holders")

            eventually(is_back)
            so_far = len(traffic.calls)
            eventually(lambda: len(traffic.calls) > so_far + 200)
        assert traffic.refused == []
        assert slowest < LONGEST + stalls.longest


def test_an_emptied_store_is_written_again(place, name, stalls):
    config = CircuitBreakerConfig(failure_threshold=2, timeout=600.0)
    with open_store(place.url) as store:
        breaker = CircuitBreaker(name, config, store=store)
        healthy = CircuitBreaker(f"{name}-healthy", config, store=store)
        assert healthy.call(lambda: 1) == 1
        load = Load(breaker)
        load.call(failing, 2)
        ready(store)
        eventually(lambda: store.read(f"breaker/{name}-healthy"))
        began = time.monotonic()
        place.empty()

        def is_back():
            with open_store(place.url) as fresh:
                doc = fresh.read(f"breaker/{name}")
                return doc is not None and doc["mode"] == "open" and fresh.read(f"breaker/{name}-healthy")

        eventually(is_back)
        assert time.monotonic() - began < 20  # goal: 2 s
        assert str(breaker.state) == "open"
        load.call(lambda: 1, 10)
        assert load.slowest < LONGEST + stalls.longest


def test_a_killed_server_is_found_again_empty(own_valkey, name, stalls):
    place = RedisPlace(own_valkey)
    config = CircuitBreakerConfig(failure_threshold=2, timeout=600.0)
    with open_store(place.url) as store:
        breaker = CircuitBreaker(name, config, store=store)
        assert breaker.call(lambda: 1) == 1
        ready(store)
        own_valkey.kill()
        load = Load(breaker)
        load.call(failing, 2)
        load.call(lambda: 1, 50)
        assert str(breaker.state) == "open"
        own_valkey.restart()
        with open_store(place.url) as fresh:
            eventually(lambda: (fresh.read(f"breaker/{name}") or {}).get("mode") == "open")
        assert load.slowest < LONGEST + stalls.longest


def test_a_database_that_restarts_is_found_again(own_postgres, name, stalls):
    with open_store(own_postgres.dsn) as store, open_store(own_postgres.dsn) as other:
        breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=2, timeout=600.0), store=store)
        theirs = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=2, timeout=600.0), store=other)
        assert breaker.call(lambda: 1) == theirs.call(lambda: 1) == 1
        ready(store)
        own_postgres.restart()
        load = Load(breaker)
        load.call(failing, 2)
        assert str(breaker.state) == "open"
        eventually(lambda: str(theirs.state) == "open")
        assert load.slowest < LONGEST + stalls.longest


def test_garbage_under_a_key_is_replaced(own_valkey, name):
    place = RedisPlace(own_valkey)
    with open_store(place.url) as store:
        breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=2), store=store)
        assert breaker.call(lambda: 1) == 1
        ready(store)
        for garbage in ("\x00\xff{", b"\xff\xfe no text at all", "17 {}", "17 [1]", '5 {"version": 1}'):
            place.command("HSET", STATE, f"breaker/{name}", garbage)
            load = Load(breaker)
            load.call(failing, 2)
            load.call(lambda: 1, 5)
            eventually(lambda: str(breaker.state) == "open")
            breaker.reset()
        place.command("DEL", STATE)
        place.command("SET", STATE, "a text")
        Load(breaker).call(failing, 2)
        eventually(lambda: (store.read(f"breaker/{name}") or {}).get("mode") == "open")


@pytest.mark.parametrize("version", ["\u00b2", "\u0661", "9" * 40, "1" * 400, str(2**60), "-5", "nan"])
def test_a_version_that_is_none_is_replaced_and_the_next_change_is_heard(valkey_url, name, version):
    import redis

    heard = []
    with redis.Redis.from_url(valkey_url) as client, open_store(valkey_url) as store, open_store(valkey_url) as other:
        other.subscribe(name, lambda key, data: heard.append(data))
        client.hset(STATE, name, f'{version} {{"n": 1}}')
        assert store.transact(name, lambda old, now: ({"n": 7}, old)) is None
        assert store.transact(name, lambda old, now: ({"n": 8}, old)) == {"n": 7}
        assert other.read(name) == {"n": 8}
        eventually(lambda: heard[-1:] == [{"n": 8}])


def test_a_file_of_garbage_leaves_local_state_and_few_warnings(tmp_path, name, caplog, stalls):
    path = tmp_path / "state"
    path.write_bytes(os.urandom(5000))
    with caplog.at_level(logging.WARNING, "resilience.store"), open_store(f"file://{path}") as store:
        breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=2), store=store)
        load = Load(breaker)
        assert breaker.call(lambda: 1) == 1
        load.call(failing, 2)
        load.call(lambda: 1, 10)
        assert str(breaker.state) == "open"
        assert load.slowest < LONGEST + stalls.longest
        eventually(lambda: store.link.state == "away")
        time.sleep(1.5)
    assert 1 <= len([record for record in caplog.records if record.name == "resilience.store"]) <= 3
    assert len(path.read_bytes()) == 5000  # left alone


def test_a_database_of_another_program_is_left_alone(tmp_path, name):
    path = tmp_path / "state"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    with open_store(f"file://{path}") as store:
        breaker = CircuitBreaker(name, store=store)
        assert breaker.call(lambda: 1) == 1
        eventually(lambda: store.link.state == "away")
    connection = sqlite3.connect(path)
    assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master")] == ["theirs"]
    connection.close()


FULL = """
import resource, signal, sys
from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store(sys.argv[1])
breaker = CircuitBreaker("full", CircuitBreakerConfig(failure_threshold=1000), store=store)
def failing(): raise ConnectionError("refused")
def fail(times):
    for number in range(times):
        try:
            breaker.call(failing)
        except ConnectionError:
            continue
fail(3)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
fail(50)
assert breaker.call(lambda: 1) == 1
fail(2)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
fail(1)
import time
end = time.monotonic() + 30
while store.link.state != "ready" and time.monotonic() < end:
    time.sleep(0.01)
print(store.link.state, breaker.stats.failures)
store.close()
"""


def test_on_a_full_disk_calls_go_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, f"file://{tmp_path}/state"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ready", "56"]
    connection = sqlite3.connect(tmp_path / "state")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_threads_under_load_are_not_held_up(place, name, stalls):
    with open_store(place.url) as store:
        breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=10_000), store=store)
        assert breaker.call(lambda: 1) == 1
        ready(store)
        loads = [Load(breaker) for _ in range(4)]
        stop = threading.Event()

        def work(load):
            while not stop.is_set():
                load.call(lambda: 1, 20)
                load.call(failing)
                stop.wait(0.01)

        threads = [threading.Thread(target=work, args=(load,)) for load in loads]
        for thread in threads:
            thread.start()
        with place.away():
            time.sleep(3)
        time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join()
        assert max(load.slowest for load in loads) < LONGEST + stalls.longest
        eventually(lambda: store.link.state == "ready")
