"""A bulkhead over eight processes, on every store: never more than its limit, and what the dead held comes back."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from resilience.strategies.bulkhead_shared import LEASE
from resilience.testing import eventually

pytestmark = pytest.mark.slow
PATIENCE = 30.0
CODE = """
import json, sys, threading, time
from resilience import Bulkhead, BulkheadFullError, open_store
url, settings = sys.argv[1], json.loads(sys.argv[2])
bulkhead = Bulkhead(**settings, store=open_store(url))
link = bulkhead.shared._link
lost, lose = [], link._lose
link._lose = lambda *reason, **more: (lost.append(1), lose(*reason, **more))
def work(seconds, log):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            bulkhead.acquire()
        except BulkheadFullError:
            log.append(None)
            time.sleep(0.01)
            continue
        began = time.monotonic()
        time.sleep(0.005)
        log.append((began, time.monotonic()))
        bulkhead.release()
def crowd(seconds):
    log = []
    threads = [threading.Thread(target=work, args=(seconds, log)) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return log
def take(count):
    taken = 0
    for _ in range(count):
        try:
            bulkhead.acquire()
            taken += 1
        except BulkheadFullError:
            pass
    return taken
def forked(fn):
    import os
    child = os.fork()
    if child == 0:
        try:
            link.start()
            until_joined()
            os._exit(fn())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def until_joined():
    while not bulkhead.shared._is_joined:
        time.sleep(0.01)
until_joined()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Worker:
    """A process with a bulkhead of its own, told line by line what to do."""

    def __init__(self, url, **settings):
        command = [sys.executable, "-W", "error", "-c", CODE, url, json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def do(self, expression):
        self.tell(expression)
        return self.answer()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(params=["file", "redis", "postgres"])
def url(request, tmp_path):
    fixture = {"redis": "valkey_url", "postgres": "postgres_dsn"}.get(request.param)
    return request.getfixturevalue(fixture) if fixture else f"file://{tmp_path}/state"


@pytest.fixture
def workers(url):
    """Makes processes that share a bulkhead; they end with the test."""
    made, name = [], uuid.uuid4().hex

    def make(count, **settings):
        new = [Worker(url, name=name, **settings) for _ in range(count)]
        made.extend(new)
        for worker in new:
            assert worker.process.stdout.readline() == "ready\n"
        return new

    yield make
    for worker in made:
        worker.close()


def most_at_once(bodies):
    """How many bodies ran at the same time, at most; the clock is the machine's."""
    now = most = 0
    for _, change in sorted([(began, 1) for began, _ in bodies] + [(ended, -1) for _, ended in bodies]):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("waiting", [{}, {"max_queue": 8, "max_wait": 5.0}], ids=["refused", "queued"])
def test_never_more_than_five_of_sixty_four_threads_are_inside(workers, waiting):
    crowd = workers(8, max_concurrent=5, **waiting)
    for _ in range(4):
        for worker in crowd:
            worker.tell("crowd(3.0)")
        logs = [worker.answer() for worker in crowd]
        bodies = [[body for body in log if body] for log in logs]
        together = most_at_once([body for log in bodies for body in log])
        print(f"seen: {together} at once, {sum(map(len, bodies))} bodies, {sorted(map(len, bodies))} by process")
        lost = sum(worker.do("[len(lost), lost.clear()][0]") for worker in crowd)
        if not lost:
            break
        print(f"seen: {lost} processes had no answer from their store for a second: that run says nothing")
        eventually(lambda: all(worker.do("bulkhead.shared._is_joined") for worker in crowd))
    assert not lost
    assert 2 <= together <= 5
    if waiting:
        assert all(bodies)  # each process has its turns
        assert not any(body is None for log in logs for body in log)


def test_the_slots_of_a_killed_process_come_back(workers):
    dying, heir = workers(2, max_concurrent=5)
    assert dying.do("take(9)") == 5
    assert heir.do("take(9)") == 0
    os.kill(dying.process.pid, signal.SIGKILL)
    began, taken = time.monotonic(), 0
    while taken < 5:
        taken += heir.do("take(1)")
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)
    took = time.monotonic() - began
    print(f"seen: the slots were back after {took:.2f} s")
    assert 1.0 < took < LEASE + 1.0 + 5.0  # goal: lease + 1 s; generous for a busy machine


def test_a_call_that_waits_gets_the_slot_of_a_killed_process(workers):
    dying, heir = workers(2, max_concurrent=1, max_queue=1, max_wait=PATIENCE)
    assert dying.do("take(1)") == 1
    heir.tell("take(1)")
    os.kill(dying.process.pid, signal.SIGKILL)
    began = time.monotonic()
    assert heir.answer() == 1
    took = time.monotonic() - began
    print(f"seen: the call that waited was in after {took:.2f} s")
    assert took < LEASE + 1.0 + 5.0


def test_a_stopped_process_has_lost_its_slots_and_starts_nothing_on_them(workers):
    stopped, heir = workers(2, max_concurrent=3)
    assert stopped.do("take(2)") == 2
    stopped.process.send_signal(signal.SIGSTOP)
    eventually(lambda: heir.do("take(3), bulkhead.in_flight")[1] == 3)
    stopped.process.send_signal(signal.SIGCONT)
    assert stopped.do("[bulkhead.release(), take(1)][1]") == 0
    assert stopped.do("[bulkhead.release(), time.sleep(0.2), take(3)][2]") == 0
    assert heir.do("[bulkhead.release() for _ in range(3)]") == [None] * 3
    eventually(lambda: stopped.do("take(3), bulkhead.in_flight")[1] == 3)


def test_a_forked_child_leases_slots_of_its_own(workers):
    (parent,) = workers(1, max_concurrent=3)
    assert parent.do("take(2)") == 2
    assert parent.do("forked(lambda: take(9))") == 1
    assert parent.do("[bulkhead.release(), bulkhead.release(), bulkhead.in_flight][2]") == 0


def test_a_process_that_ends_leaves_nothing_leased(workers):
    leaving, heir = workers(2, max_concurrent=4)
    assert leaving.do("take(1)") == 1
    assert leaving.do("bulkhead.release()") is None
    leaving.process.stdin.close()
    assert leaving.process.wait(PATIENCE) == 0
    began = time.monotonic()
    eventually(lambda: heir.do("take(4), bulkhead.in_flight")[1] == 4)
    assert time.monotonic() - began < LEASE - 1.0
