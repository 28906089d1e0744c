"""Fan-out with real means: Ctrl-C, threads the system refuses, hung items at exit, memory."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resilience import fan_out, fan_out_iter
from resilience.testing import Gate

PATIENCE = 60.0  # real seconds for a script to start on a busy machine

INTERRUPTED = """
import sys, threading, time
from resilience import fan_out, fan_out_iter
from resilience.testing import Gate

def work(item):
    if item == 3:
        print("ready", flush=True)
    time.sleep(0.002 if item < 3 else HANG)
    return item

try:
    CALL
except KeyboardInterrupt:
    print("interrupted", time.monotonic(), flush=True)
    sys.exit(5)
"""

CALLS = {
    "gathered": "fan_out(work, range(10_000), max_workers=4)",
    "streamed": "[item for item in fan_out_iter(work, range(10_000), max_workers=4)]",
    "in the caller": "fan_out(work, range(10_000), isolation='caller')",
    "on a pool": "from concurrent.futures import ThreadPoolExecutor; "
    "fan_out(work, range(10_000), executor=lambda: ThreadPoolExecutor(4))",
}


@pytest.mark.parametrize("form", CALLS)
def test_ctrl_c_ends_it_at_once(form):
    hang = "0.002" if form == "on a pool" else "600"  # a pool of the standard library holds up the exit
    script = INTERRUPTED.replace("CALL", CALLS[form]).replace("HANG", hang)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        begun = time.monotonic()
        child.send_signal(signal.SIGINT)
        word, when = child.stdout.readline().split()
        assert word == "interrupted"
        assert float(when) - begun < 2.0
        assert child.wait(10) == 5
        assert time.monotonic() - begun < 10.0
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


EXIT = """
import threading
from resilience import fan_out

result = fan_out(lambda item: threading.Event().wait() if item % 2 else item, range(8), max_workers=8, deadline=0.3)
print(sum(item.ok for item in result.items), flush=True)
"""


def test_items_that_hang_do_not_hold_up_the_exit_and_are_named():
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n")
    assert time.monotonic() - begun < 30
    leftovers = [line for line in done.stderr.splitlines() if "leftover: 'fan_out' abandoned" in line]
    assert len(leftovers) == 4
    assert all("still runs at File" in line for line in leftovers)


REFUSED = """
import resource, threading
from resilience import fan_out

fan_out(lambda item: item, range(10), max_workers=2)  # everything is imported
threading.stack_size(1 << 26)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (ROOM << 26) + (1 << 25),) * 2)
barrier = threading.Event()
result = fan_out(lambda item: barrier.wait(0.002) or item, range(200), max_workers=16)
print(result.values == list(range(200)), result.degraded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("room", [0, 2])
def test_threads_that_the_system_refuses_leave_the_work_to_the_others(room):
    script = REFUSED.replace("ROOM", str(room))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    right, _, reason = done.stdout.strip().partition(" ")
    assert right == "True"
    assert reason in {f"only {count} of 16 threads could be started" for count in range(room + 2)}


def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def fails(item):
    raise ConnectionError(f"item {item} is not to be had")


def settled(what, most):
    give_up = time.monotonic() + 10
    while what() > most and time.monotonic() < give_up:
        time.sleep(0.01)
    return what()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["gathered and forgotten", "streamed", "streamed with a key"])
def test_100_000_failing_items_leave_nothing_behind(form):
    def run(count):
        if form == "streamed":
            return sum(not item.ok for item in fan_out_iter(fails, range(count), max_workers=8))
        if form == "streamed with a key":
            stream = fan_out_iter(fails, range(count), max_workers=8, key=lambda item: item % 100)
            return sum(not item.ok for item in stream)
        result = fan_out(fails, range(count), max_workers=8)
        return len(result.errors)

    run(20_000)
    gc.collect()
    before, fds, threads = rss(), descriptors(), threading.active_count()
    assert run(100_000) == 100_000
    gc.collect()
    assert rss() - before < 20 * 2**20
    assert settled(descriptors, fds) <= fds
    assert settled(threading.active_count, threads) <= threads


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_streamed_items_take_no_memory():
    stream = fan_out_iter(lambda item: item, itertools.count(), max_workers=8, look_ahead=256)
    before = 0
    for item in stream:
        if item.index == 50_000:
            before = rss()
        if item.index == 1_000_000:
            break
    stream.close()
    assert rss() - before < 5 * 2**20


def test_one_at_a_time_costs_no_more_than_a_thread_would():
    """After the fall the workers that wait must not keep each other busy."""
    begun = time.monotonic()
    first = iter([True])

    def work(item):
        if next(first, False):
            raise ConnectionError("down")

    calm = {"failure_threshold": 0.00001, "window": 100_000, "min_calls": 1, "restore_after": 10**9}
    result = fan_out(work, [None] * 20_000, max_workers=32, **calm)
    assert result.degraded
    assert time.monotonic() - begun < 20


def all_of(form, fn, items, **options):
    """Every item's outcome, of either form."""
    given = form(fn, items, **options)
    return list(given) if form is fan_out_iter else list(given.items)


def test_a_worker_that_waits_for_the_consumer_holds_no_place():
    """Item 0 fails last, when the others wait for the consumer, who waits for item 0."""
    gate = Gate()

    def work(item):
        if item == 0 and not gate_passed:
            gate_passed.append(item)
            gate(item)
            raise ConnectionError("down")
        return item

    gate_passed = []
    stream = fan_out_iter(work, itertools.count(), max_workers=3, min_calls=1, failure_threshold=0.01)

    def let_go():
        assert gate.arrived(1)
        time.sleep(0.1)  # the others read on as far as they may
        gate.open()

    opener = threading.Thread(target=let_go)
    opener.start()
    assert [next(stream).value for _ in range(20)] == list(range(20))
    opener.join()
    stream.close()


@pytest.mark.parametrize("form", [fan_out, fan_out_iter])
def test_in_the_callers_thread_the_deadline_is_seen_between_items(form):
    items = all_of(form, lambda item: time.sleep(0.02), range(1000), isolation="caller", deadline=0.1)
    assert len(items) == 1000
    assert sum(item.ok for item in items) <= 6


@pytest.mark.parametrize("form", [fan_out, fan_out_iter])
def test_endless_input_ends_with_its_deadline(form):
    begun = time.monotonic()
    items = all_of(form, lambda item: time.sleep(0.01), itertools.count(), max_workers=2, deadline=0.2)
    assert time.monotonic() - begun < 10
    assert [item.index for item in items] == list(range(len(items)))
