"""`resilience exec` as cron runs it: a breaker over runs on each store, and nothing left of a command's tree."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest
from fleet import PATIENCE
from resilience_cli import exits

from resilience.testing import eventually

pytestmark = pytest.mark.slow
RESILIENCE = [sys.executable, "-m", "resilience_cli"]
# a child in a session of its own, one that ignores SIGTERM, a daemon whose parents have ended, and the command itself
TREE = """
setsid sh -c 'sleep 300 & sleep 300' &
sh -c 'trap "" TERM; while :; do sleep 1; done' &
(setsid sh -c 'trap "" TERM HUP; sleep 300; sleep 300' &) &
trap "" TERM
touch grown
sleep 300; sleep 300
"""


@pytest.fixture
def env(tmp_path):
    """An environment by which all that descends from it is found."""
    places = {name: str(tmp_path) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME")}
    return {**os.environ, **places, "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "3", "FAMILY": uuid.uuid4().hex}


def family(env):
    """The processes that were started with this environment and still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAMILY") == env["FAMILY"] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def shell(env, tmp_path):
    """Runs a line of shell in which `resilience` is ours."""

    def run(line):
        ours = f'resilience() {{ {shlex.join(RESILIENCE)} "$@"; }}\n'
        return subprocess.run(
            ["sh", "-c", ours + line], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_two_lines_of_shell_stop_starting_what_fails_until_a_reset(url, name, shell, tmp_path):
    line = f"resilience exec --store {url} --breaker {name} -- sh -c 'echo ran >> runs; exit 1'"
    assert [shell(line).returncode for _ in range(3)] == [1, 1, 1]
    took = []
    for _ in range(5):
        began = time.monotonic()
        refused = shell(line)
        took.append(time.monotonic() - began)
        assert refused.returncode == exits.TRANSIENT
        assert f"'{name}' is OPEN for" in refused.stderr
    print(f"refused within {min(took):.3f} s")
    assert min(took) < 3.0  # ten times the goal
    assert (tmp_path / "runs").read_text() == "ran\n" * 3
    assert shell(f"resilience breakers reset {name} --store {url} && {line}").returncode == 1
    assert (tmp_path / "runs").read_text() == "ran\n" * 4


def test_eight_runs_at_once_are_counted_exactly(url, name, env, shell, tmp_path):
    env["CIRCUIT_BREAKER_FAILURE_THRESHOLD"] = "100"
    words = [*RESILIENCE, "exec", "--store", url, "--breaker", name, "--attempts", "3", "--delay", "1ms", "--", "false"]
    runs = [subprocess.Popen(words, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [1] * 8, said
    seen = json.loads(shell(f"resilience breakers show {name} --store {url} --json").stdout)
    assert (seen["state"], seen["failures"]) == ("closed", 24)


def test_at_its_time_limit_nothing_of_the_tree_is_left(env, tmp_path):
    words = [*RESILIENCE, "exec", "--timeout", "3s", "--", "sh", "-c", TREE]
    with subprocess.Popen(words, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        eventually(lambda: (tmp_path / "grown").exists() and len(family(env)) >= 8)
        said = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode == exits.TIMED_OUT, said
    assert family(env) == []


def test_a_terminated_exec_takes_its_tree_along(env, tmp_path):
    with subprocess.Popen([*RESILIENCE, "exec", "--", "sh", "-c", TREE], env=env, cwd=tmp_path) as run:
        eventually(lambda: (tmp_path / "grown").exists() and len(family(env)) >= 8)
        run.send_signal(signal.SIGTERM)
        assert run.wait(PATIENCE) == exits.TERMINATED
    assert family(env) == []
