"""A bulkhead over eight processes, on every store: never more than its limit, and what the dead held comes back."""

import os
import signal
import time

import pytest
from fleet import undisturbed

from resilience.strategies.bulkhead_shared import LEASE
from resilience.testing import eventually

pytestmark = pytest.mark.slow
PATIENCE = 30.0


def most_at_once(bodies):
    """How many bodies ran at the same time, at most; the clock is the machine's."""
    now = most = 0
    for _, change in sorted([(began, 1) for began, _ in bodies] + [(ended, -1) for _, ended in bodies]):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("waiting", [{}, {"max_queue": 8, "max_wait": 5.0}], ids=["refused", "queued"])
def test_never_more_than_five_of_sixty_four_threads_are_inside(url, name, workers, waiting):
    crowd = workers(8, "bulkhead", url, name, max_concurrent=5, **waiting)

    def run():
        eventually(lambda: all(crowd.do("is_joined()")))
        return crowd.do("crowd(3.0)"), crowd.lost()

    logs = undisturbed(run)
    bodies = [[body for body in log if body] for log in logs]
    together = most_at_once([body for log in bodies for body in log])
    print(f"seen: {together} at once, {sum(map(len, bodies))} bodies, {sorted(map(len, bodies))} by process")
    assert 2 <= together <= 5
    if waiting:
        assert all(bodies)  # each process has its turns
        assert not any(body is None for log in logs for body in log)


def test_the_slots_of_a_killed_process_come_back(url, name, workers):
    dying, heir = workers(2, "bulkhead", url, name, max_concurrent=5)
    assert dying.do("fill(5)") == 5
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


def test_a_call_that_waits_gets_the_slot_of_a_killed_process(url, name, workers):
    dying, heir = workers(2, "bulkhead", url, name, max_concurrent=1, max_queue=1, max_wait=PATIENCE)
    assert dying.do("fill(1)") == 1
    heir.tell("take(1)")
    os.kill(dying.process.pid, signal.SIGKILL)
    began = time.monotonic()
    assert heir.answer() == 1
    took = time.monotonic() - began
    print(f"seen: the call that waited was in after {took:.2f} s")
    assert took < LEASE + 1.0 + 5.0


def test_a_stopped_process_has_lost_its_slots_and_starts_nothing_on_them(url, name, workers):
    stopped, heir = workers(2, "bulkhead", url, name, max_concurrent=3)
    assert stopped.do("fill(2)") == 2
    stopped.process.send_signal(signal.SIGSTOP)
    assert heir.do("fill(3)") == 3
    stopped.process.send_signal(signal.SIGCONT)
    assert stopped.do("[bulkhead.release(), take(1)][1]") == 0
    assert stopped.do("[bulkhead.release(), time.sleep(0.2), take(3)][2]") == 0
    assert heir.do("[bulkhead.release() for _ in range(3)]") == [None] * 3
    assert stopped.do("fill(3)") == 3


def test_a_forked_child_leases_slots_of_its_own(url, name, workers):
    (parent,) = workers(1, "bulkhead", url, name, max_concurrent=3)
    assert parent.do("fill(2)") == 2
    assert parent.do("forked(lambda: fill(1) + take(9))") == 1
    assert parent.do("[bulkhead.release(), bulkhead.release(), bulkhead.in_flight][2]") == 0


def test_a_process_that_ends_leaves_nothing_leased(url, name, workers):
    leaving, heir = workers(2, "bulkhead", url, name, max_concurrent=4)
    assert leaving.do("fill(1)") == 1
    assert leaving.do("bulkhead.release()") is None
    leaving.process.stdin.close()
    assert leaving.process.wait(PATIENCE) == 0
    began = time.monotonic()
    assert heir.do("fill(4)") == 4
    assert time.monotonic() - began < LEASE - 1.0
