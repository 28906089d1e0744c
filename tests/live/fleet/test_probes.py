"""Half-open over processes: probes within the limit at every moment, and no place lost with its process.

Who counts the probes is no part of the toolkit: each writes down when it began and when it ended.
"""

import itertools
import os
import signal
import time

import pytest
from fleet import Referee, undisturbed

from resilience.testing import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def down(tmp_path):
    """A file; while it is there the dependency is down."""
    path = tmp_path / "down"
    path.touch()
    return path


@pytest.fixture
def referee(tmp_path):
    return Referee(tmp_path / "log")


@pytest.mark.parametrize("limit", [1, 3])
def test_probes_of_eight_processes_of_eight_threads_stay_within_the_limit(url, name, workers, tmp_path, down, limit):
    settings = {"failure_threshold": 1, "timeout": 1.0, "max_requests": limit, "success_threshold": 3}
    numbers = itertools.count()

    def run():
        key = f"{name}-{next(numbers)}"
        referee = Referee(tmp_path / key)
        down.touch()
        crowd = workers(8, "breaker", url, key, probe_lease=60.0, **settings)
        assert crowd[0].do("call(failing)") == "failed"
        for worker in crowd:
            eventually(lambda worker=worker: worker.state == "open")
        crowd.do(f"start(8, Visits({str(referee.path)!r}, {str(down)!r}, 0.02))")
        eventually(lambda: len(referee.phases(0.5)) > 5)
        down.unlink()
        eventually(lambda: [what for _, _, what in referee.lines()].count("done") > 100)
        crowd.do("stop()")
        return referee, crowd.lost()

    referee = undisturbed(run)
    lines = referee.lines()
    third_success = [number for number, (_, _, what) in enumerate(lines) if what == "done"][2]
    probes = lines[: third_success + 1]  # it closes the breaker: what comes later are calls like any other
    phases = referee.phases(0.5, probes)
    print(f"probes by phase: {phases}, at most {referee.most_at_once(probes)} at once")
    assert referee.most_at_once(probes) <= limit
    assert max(phases) <= 3


def test_the_probe_of_a_killed_process_is_taken_over(url, name, workers, referee, down):
    crowd = workers(3, "breaker", url, name, failure_threshold=1, timeout=2.0, max_requests=1, success_threshold=1)
    assert crowd[0].do("call(failing)") == "failed"
    for worker in crowd:
        eventually(lambda worker=worker: worker.state == "open")
    crowd.do(f"start(8, Visits({str(referee.path)!r}, {str(down)!r}, 60.0))")
    eventually(referee.lines)
    [[begun, pid, _]] = referee.lines()
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: len(referee.lines()) == 2)
    taken_over = referee.lines()[1][0]
    print(f"a new probe {taken_over - killed:.2f} s after the kill")
    assert taken_over - begun > 1.5  # the lease is 2 s, from just before it began
    assert taken_over - killed < 3.0
    time.sleep(0.5)
    assert len(referee.lines()) == 2


def test_a_process_stopped_for_half_a_minute_loses_its_probe_and_brings_no_burst(
    valkey_url, postgres_dsn, name, workers, tmp_path, down
):
    """On all stores at once: thirty seconds are long."""
    teams = {}
    for kind, url in (("file", f"file://{tmp_path}/state"), ("redis", valkey_url), ("postgres", postgres_dsn)):
        crowd = workers(2, "breaker", url, name, failure_threshold=1, timeout=1.0, max_requests=1, success_threshold=1)
        referee = Referee(tmp_path / kind)
        assert crowd[0].do("call(failing)") == "failed"
        crowd.do(f"start(8, Visits({str(referee.path)!r}, {str(down)!r}, 0.4))")
        teams[kind] = crowd, referee
    stopped = {kind: stop_in_its_probe(crowd, referee) for kind, (crowd, referee) in teams.items()}
    time.sleep(30.0)
    woken = time.monotonic()
    for victim, _, _ in stopped.values():
        victim.process.send_signal(signal.SIGCONT)
    time.sleep(5.0)
    for kind, (crowd, referee) in teams.items():
        victim, other, at = stopped[kind]
        lines = [line for line in referee.lines() if line[0] > at]
        late = next(line for line in lines if line[1] == victim.process.pid)
        others = [line for line in lines if line is not late]
        phases = referee.phases(0.5, others)
        print(f"{kind}: late by {late[0] - at:.1f} s; probes by phase, of both: {phases}")
        assert late[2] == "done" and late[0] > woken  # a success, which would have closed the breaker
        assert referee.most_at_once(others) == 1
        assert set(phases) == {1} and len(phases) > 15
        assert "done" not in {what for _, _, what in others}
        assert victim.do("breaker.stats.late_results") >= 1
        assert other.do("breaker.stats.state_changes") > 30
        assert "closed" not in " ".join(change for told in crowd.do("told_changes()") for change in told[1:])


def stop_in_its_probe(crowd, referee):
    """Stops a process while it is inside of a visit: it, the other one, and the moment."""
    by_pid = {worker.process.pid: (worker, other) for worker, other in itertools.permutations(crowd)}
    while True:
        seen = len(referee.lines())
        eventually(lambda seen=seen: [what for _, _, what in referee.lines()[seen:]][-1:] == ["begun"])
        pid = referee.lines()[-1][1]
        victim, other = by_pid[pid]
        victim.process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        at = time.monotonic()
        if [what for _, who, what in referee.lines() if who == pid][-1] == "begun":
            return victim, other, at
        victim.process.send_signal(signal.SIGCONT)
