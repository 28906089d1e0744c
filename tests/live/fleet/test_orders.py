"""What one process decides reaches the others in time: orders of a shell, and openings whatever wall clocks say."""

import subprocess
import sys
import time

import pytest

from resilience.testing import eventually

pytestmark = pytest.mark.slow
HOUR = 3600.0


def test_orders_from_a_shell_are_obeyed_by_a_running_process_within_a_second(url, name, workers):
    (worker,) = workers(1, "breaker", url, name)
    worker.do("start(1, watch, lambda: call(lambda: 'fine'))")
    delays = []
    for _ in range(10):
        for verb, answer in (("trip", "refused"), ("reset", "fine")):
            words = [sys.executable, "-m", "resilience_cli", "breakers", "--store", url, verb, name]
            began = time.monotonic()
            subprocess.run(words, check=True, timeout=60, capture_output=True)
            given = time.monotonic()
            eventually(lambda answer=answer: worker.do("turns[-1][1]") == answer)
            turned, _ = worker.do("turns[-1]")
            assert turned > began
            delays.append(turned - given)
    print(f"obeyed at most {max(delays) * 1000:.0f} ms after the command had ended")
    assert max(delays) < 1.0
    assert [answer for _, answer in worker.do("turns")] == ["fine", *["refused", "fine"] * 10]


def test_processes_with_skewed_wall_clocks_open_together_and_probe_together(url, name, workers):
    settings = {"failure_threshold": 3, "timeout": 2.0, "max_requests": 3, "probe_lease": 60.0}
    crowd = [workers(1, "breaker", url, name, skew=skew, **settings)[0] for skew in (HOUR, -HOUR, 0.0)]
    assert [round((worker.do("time.time()") - time.time()) / HOUR) for worker in crowd] == [1, -1, 0]
    for worker in crowd:
        worker.do("start(1, watch, lambda: str(breaker.state))")
    for worker in crowd:
        assert worker.do("call(failing)") == "failed"
    for worker in crowd:
        eventually(lambda worker=worker: worker.do("[state for _, state in turns]") == ["closed", "open"])
    opened = [worker.do("turns[-1][0]") for worker in crowd]
    for worker in crowd:
        worker.tell("when(lambda: take(1))")
    probed = [worker.answer() for worker in crowd]
    apart = [max(moments) - min(moments) for moments in (opened, probed)]
    print(f"open within {apart[0] * 1000:.0f} ms of each other, probing within {apart[1] * 1000:.0f} ms")
    assert max(apart) < 1.0
    assert all(1.5 < probe - min(opened) < 4.0 for probe in probed)
