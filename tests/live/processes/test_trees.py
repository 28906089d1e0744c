"""Ending process trees by real means: other sessions, ignored signals, stopped processes, orphans, endless forks."""

import os
import signal
import subprocess
import sys

import pytest

from resilience.testing import eventually
from resilience.workers import trees

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sessions and orphans as on Linux")


@pytest.fixture(params=["as the kernel lists them", "by a look at all processes"], autouse=True)
def walk(request, monkeypatch):
    if request.param == "as the kernel lists them":
        if not trees._LISTS_CHILDREN:
            pytest.skip("this kernel lists no children")
    else:
        monkeypatch.setattr(trees, "_LISTS_CHILDREN", False)


def shell(script):
    return subprocess.Popen(["sh", "-c", script], start_new_session=True, stdin=subprocess.DEVNULL)


def below(process, count):
    """The descendants once there are `count` of them."""
    eventually(lambda: len(trees.descendants(process.pid)) >= count)
    return trees.descendants(process.pid)


def test_a_tree_is_walked_parents_first_and_without_zombies():
    process = shell("sh -c 'sleep 60 & sleep 60 & wait' & (exit 0) & exec sleep 60")
    try:
        eventually(lambda: len([m for m in trees.descendants(process.pid) if not m.is_zombie]) == 3)
        found = trees.descendants(process.pid)
        order = [process.pid] + [member.pid for member in found]
        assert all(order.index(member.parent) < order.index(member.pid) for member in found)
        assert not any(member.is_zombie for member in found)
    finally:
        trees.end_tree(process.pid)
        process.wait(10)


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("sleep 60 & sleep 60", 2),
        ("setsid sleep 60 & sleep 60", 2),
        ("(trap '' TERM INT HUP; sleep 60) & sleep 60", 2),
        ("setsid sh -c 'setsid sleep 60 & sleep 60' & sleep 60", 3),
    ],
)
def test_nothing_of_a_tree_outlives_its_end(script, count):
    process = shell(script)
    members = below(process, count)
    assert trees.end_tree(process.pid) > count
    assert process.wait(10) == -signal.SIGKILL
    assert trees.wait_until_gone(members, timeout=10.0)


def test_a_stopped_tree_ends_too():
    process = shell("sleep 60 & sleep 60")
    members = below(process, 2)
    os.killpg(process.pid, signal.SIGSTOP)
    trees.end_tree(process.pid)
    assert process.wait(10) == -signal.SIGKILL
    assert trees.wait_until_gone(members, timeout=10.0)


def test_a_tree_that_keeps_forking_does_not_outrun_its_end():
    process = shell("n=0; while [ $n -lt 400 ]; do sleep 7 & n=$((n+1)); done; wait")
    below(process, 20)
    trees.end_tree(process.pid)
    process.wait(10)

    def leftover():
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getpgid(int(pid)) == process.pid and not trees.look(int(pid)).is_zombie:
                    return True
            except (ProcessLookupError, AttributeError):
                continue
        return False

    eventually(lambda: not leftover(), within=10.0)


def test_a_soft_signal_reaches_every_process_once():
    process = shell("sleep 60 & sleep 60 & wait")
    below(process, 2)
    assert trees.signal_tree(process.pid, signal.SIGTERM) == 3
    assert process.wait(10) == -signal.SIGTERM


def test_the_end_of_a_pid_that_is_gone_reaches_nobody():
    process = shell("exit 0")
    process.wait(10)
    assert trees.end_tree(process.pid) == 0
    assert trees.signal_tree(process.pid, signal.SIGTERM) == 0


SUBREAPER = """
import os, subprocess, sys, time
from resilience.workers import trees
assert trees.become_subreaper()
# the middle shell ends at once: what it started in another session has lost its parent
subprocess.run(["sh", "-c", "setsid sleep 60 & setsid sleep 60 & exit 0"], check=True)
end = time.monotonic() + 20
while len(trees.descendants(os.getpid())) < 2 and time.monotonic() < end:
    time.sleep(0.005)
orphans = trees.descendants(os.getpid())
print(len(orphans), trees.end_descendants(), any(o.is_alive() for o in orphans), len(trees.descendants(os.getpid())))
"""


def test_a_subreaper_keeps_orphans_and_ends_them():
    done = subprocess.run([sys.executable, "-c", SUBREAPER], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["2", "2", "False", "0"], done.stderr
