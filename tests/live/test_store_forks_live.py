"""Forks in the middle of what stores do, and files that are changed under them."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from resilience import CircuitBreaker, CircuitBreakerConfig, StoreUnavailable, open_store
from resilience.stores import file
from resilience.stores.link import link_to
from resilience.testing import eventually

PATIENCE = 30.0
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def count(old, now):
    number = (old or {"n": 0})["n"] + 1
    return {"n": number}, number


def in_a_child(work):
    """The exit code of a forked child that does `work`: 0 when it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def held(path):
    """Another process keeps the file to itself."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate()


def test_forks_while_others_open_stores_find_every_store_ready(monkeypatch):
    failed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: failed.append(problem.exc_value))
    stop = threading.Event()

    def work():
        kept = []
        while not stop.is_set():
            kept = [*kept[-200:], open_store("memory://")]

    threads = [threading.Thread(target=work) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        codes = [in_a_child(lambda: None) for _ in range(40)]
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 40
    assert failed == []


@pytest.mark.slow
def test_a_child_leaves_alone_a_file_that_was_in_use_while_it_was_forked(tmp_path):
    """SQLite's books of locks are wrong there: what it wrote could be lost, and the file with it."""
    path = str(tmp_path / "state")
    with open_store(f"file://{path}") as store:
        assert store.transact("key", count) == 1

        def child():
            for use in (store, open_store(f"file://{path}")):
                with pytest.raises(StoreUnavailable, match="forked"):
                    use.transact("key", count)
            breaker = CircuitBreaker("own", CircuitBreakerConfig(failure_threshold=1), store=store)
            assert breaker.call(lambda: 1) == 1
            with open_store(f"file://{path}-other") as other:
                assert other.transact("key", count) == 1

        answers = []
        thread = threading.Thread(target=lambda: answers.append(store.transact("key", count, within=PATIENCE)))
        with held(path):
            thread.start()
            eventually(store._lock.locked)
            assert in_a_child(child) == 0
            assert answers == []
        thread.join()
        assert answers == [2]
        assert store.transact("key", count) == 3
        assert in_a_child(lambda: store.transact("key", count)) == 0
        assert store.read("key") == {"n": 4}


class Member:
    """Whoever keeps something in the store: counts what it is told."""

    prefix = "x/"

    def __init__(self):
        self.heard = []

    def told(self, key, data):
        self.heard.append(data)

    def store_back(self, emptied):
        """Nothing to bring back."""

    def store_lost(self):
        """Nothing that has to go on alone."""

    def settle(self):
        """Nothing undecided."""

    def keep(self):
        """Nothing to renew."""

    def streams(self):
        return set()


def test_a_childs_child_is_told_once_of_each_change(tmp_path):
    url = f"file://{tmp_path}/state"

    def generation(number):
        link.start()
        eventually(lambda: link.clerk.joined)
        member.heard.clear()
        with open_store(url) as other:
            other.transact("x/1", count)
        eventually(lambda: member.heard)
        time.sleep(0.1)
        assert member.heard == [{"n": number}]
        if number < 3:
            assert in_a_child(lambda: generation(number + 1)) == 0

    with open_store(url) as store:
        link = link_to(store)
        member = Member()
        link.join(member)
        generation(1)


class Heard(list):
    """A subscriber that keeps what it was told."""

    def __call__(self, key, data):
        self.append((key, data))


def test_news_of_a_file_made_anew_are_heard_also_after_the_clock_was_put_back(tmp_path, monkeypatch):
    url, key, lost = f"file://{tmp_path}/state", uuid.uuid4().hex, uuid.uuid4().hex
    heard = Heard()
    with open_store(url) as store, open_store(url) as other:
        store.subscribe("", heard)
        with monkeypatch.context() as ahead:
            clock = file.SYSTEM
            ahead.setattr(file, "SYSTEM", type("Ahead", (), {"__getattr__": lambda self, name: getattr(clock, name)})())
            ahead.setattr(file.SYSTEM, "time", lambda: time.time() + 3600.0, raising=False)
            other.transact(key, count)
            other.transact(lost, count)
        eventually(lambda: heard[-1:] == [(lost, {"n": 1})])
        for name in os.listdir(tmp_path):
            Path(tmp_path, name).unlink()
        with open_store(url) as fresh:
            fresh.transact(key, lambda old, now: ({"n": 10}, None))
            eventually(lambda: (key, {"n": 10}) in heard)
        eventually(lambda: heard[-1:] == [(lost, None)])
