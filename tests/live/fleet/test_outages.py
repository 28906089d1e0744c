"""Stores that are killed, stopped, emptied, filled with garbage, read-only or full at 500 calls a second."""

import os
import subprocess
import time

import pytest
from places import FilePlace, PostgresPlace, RedisPlace

from resilience.testing import eventually

pytestmark = pytest.mark.slow
ROOM = 8 << 20  # bytes of a small file system
LONGEST = 0.5  # seconds: ten times what a call may wait for a store, once an outage
CONVERGED = 10.0  # seconds: five times the goal


@pytest.fixture
def small_disk(tmp_path):
    """A small file system where we may make one; else an ordinary folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(words, check=False).returncode == 0
    if not is_mounted:
        print("no file system of our own may be made here: a full disk is left to test_troubled_stores")
    yield folder, ROOM if is_mounted else 0
    if is_mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["file", "redis", "postgres"])
def place(request):
    """A store of each kind that may be mistreated."""
    if request.param == "file":
        return FilePlace(*request.getfixturevalue("small_disk"))
    if request.param == "redis":
        return RedisPlace(request.getfixturevalue("own_valkey"))
    return PostgresPlace(request.getfixturevalue("own_postgres"))


def test_no_call_fails_or_waits_whatever_happens_to_the_store_and_all_agree_afterwards(place, name, workers):
    crowd = here, there = workers(2, "breaker", place.url, name, failure_threshold=1_000)
    crowd.do("call(int, canary)")
    crowd.do("start(5, load)")
    began = time.monotonic()
    time.sleep(1.0)
    for fault in place.faults:
        crowd.do("load.begin()")
        with fault():
            time.sleep(1.5)
            assert here.do("[call(failing, canary), call(failing, canary), str(canary.state)]")[2] == "open"
            time.sleep(1.0)
        back = time.monotonic()
        eventually(lambda: there.do("str(canary.state)") == "open")
        opened = time.monotonic()
        there.do("canary.reset()")
        eventually(lambda: here.do("str(canary.state)") == "closed")
        closed = time.monotonic()
        seen = crowd.do("load.told()")
        print(f"{fault.__name__}: shared {opened - back:.2f} s after, reset {closed - opened:.2f} s after that; "
              f"longest call {max(one['slowest'] for one in seen) * 1000:.0f} ms, {[one['slow'] for one in seen]} "
              f"over 50 ms, {[one['warnings'] for one in seen]} warnings")  # fmt: skip
        assert [one["wrong"] for one in seen] == [[], []], fault.__name__
        assert all(one["slowest"] < LONGEST + one["stalled"] for one in seen), fault.__name__
        assert closed - back < CONVERGED, fault.__name__
        assert max(one["warnings"] for one in seen) <= 3, fault.__name__
    rate = sum(crowd.do("load.calls")) / (time.monotonic() - began)
    print(f"{rate:.0f} calls a second")
    assert rate > 450
