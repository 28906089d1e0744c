"""Promise 19: Ctrl-C at random moments. It ends at once, the permits are back, the journal can be read and resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from resilience_cli.collect.journal import read_past, read_records

from resilience.testing.fault_server import FaultServer

SCRIPT = """
import os, random, signal, sys, threading, time
from resilience import Bulkhead, CircuitBreaker, CircuitBreakerConfig, Pipeline, RetryPolicy
from resilience_cli.collect.journal import Journal

scene, seed = sys.argv[1], int(sys.argv[2])
bulkhead = Bulkhead("one", 1, max_queue=4, max_wait=60.0)
breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=10**6))
pipeline = Pipeline(bulkhead, RetryPolicy(max_retries=None, base_delay=0.01, max_delay=60.0), breaker)
journal = Journal(sys.argv[3])
busy, free = threading.Event(), threading.Event()

def fail():
    raise ConnectionError("down")

def hold():
    busy.set()
    free.wait()

def body():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(50))

def work():
    if scene == "sleep":
        pipeline.call(fail)
    elif scene == "wait":
        bulkhead.call(lambda: None)
    elif scene == "body":
        pipeline.call(body)
    else:
        for number in range(10**9):
            journal.write({"url": "http://a.test/", "ok": True, "key": f"{seed}.{number}"})

if scene == "wait":
    holder = threading.Thread(target=bulkhead.call, args=(hold,), daemon=True)
    holder.start()
    busy.wait()
try:
    print("begun", flush=True)
    work()
except KeyboardInterrupt:
    if scene == "wait":
        free.set()
        holder.join(5)
    # one permit and an empty queue: two calls one after the other find room at once
    bulkhead.max_wait = 0.0
    for _ in range(2):
        bulkhead.call(lambda: None)
    assert bulkhead.waiting == 0
    assert breaker.call(lambda: 1) == 1
    print("permits are back", flush=True)
    raise
"""
SCENES = ("sleep", "wait", "body", "write")


def interrupt(scene, seed, path, rng):
    command = [sys.executable, "-c", SCRIPT, scene, str(seed), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout.readline() == "begun\n"
        time.sleep(rng.random() * 0.05)
        begun = time.monotonic()
        script.send_signal(signal.SIGINT)
        said, talk = script.communicate(timeout=30)
        took = time.monotonic() - begun
    assert script.returncode == -signal.SIGINT, (scene, seed, talk)  # what a shell reports as 130
    assert said == "permits are back\n", (scene, seed, talk)
    assert took < 10, (scene, seed)


def interrupt_scenes(moments, path, rng):
    for number in range(moments):
        interrupt(SCENES[number % len(SCENES)], number, path, rng)
        if path.exists():
            assert read_past(path).skipped == 0
    keys = [record["key"] for record in read_records(path)]
    assert len(keys) == len(set(keys)) > 0


def test_ctrl_c_in_a_sleep_a_wait_user_code_or_a_write_gives_everything_back(tmp_path):
    interrupt_scenes(8, tmp_path / "j.jsonl", random.Random(19))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_ctrl_c_at_five_hundred_moments_gives_everything_back(tmp_path, part):
    interrupt_scenes(25, tmp_path / "j.jsonl", random.Random(100 + part))


def interrupt_collect(moments, path, rng):
    """Each round: SIGINT or SIGTERM at a random moment of a run, from its first instruction to its last."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RESILIENCE_", "RETRY_"))}
    command = [sys.executable, "-m", "resilience_cli", "collect", "urls.txt"]
    settings = {"cwd": path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    journal = path / "urls.txt.journal.jsonl"
    with FaultServer() as server:
        urls = [f"{server.url}/ok?{n}" for n in range(100)]
        urls += [f"{server.url}/slow?seconds=0.1&n={n}" for n in range(10)] + [f"{server.url}/limited?after=1"]
        (path / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
        for turn in range(moments):
            journal.unlink(missing_ok=True)
            number = rng.choice([signal.SIGINT, signal.SIGTERM])
            with subprocess.Popen(command, **settings) as run:
                if turn % 4:  # in the run itself; else anywhere, its start included
                    end = time.monotonic() + 20
                    while not journal.exists() and run.poll() is None and time.monotonic() < end:
                        time.sleep(0.005)
                time.sleep(rng.random() * 0.5)
                begun = time.monotonic()
                run.send_signal(number)
                _, talk = run.communicate(timeout=30)
                took = time.monotonic() - begun
            before_us = turn % 4 == 0 and "Fatal Python error: init" in talk  # the interpreter was just starting
            assert run.returncode in (0, 128 + number, -number) or before_us, (turn, run.returncode, talk)
            assert took < 10, turn
            assert turn % 4 == 0 or "Traceback" not in talk, talk
            if journal.exists():
                assert read_past(journal).skipped == 0
    with FaultServer(port=server.port):
        again = subprocess.run([*command, "--resume"], timeout=60, check=False, **settings)
    assert again.returncode == 0, again.stderr
    assert Counter(record["url"] for record in read_records(journal) if "ok" in record) == Counter(urls)


def test_a_signal_at_any_moment_of_collect_leaves_a_journal_that_resumes(tmp_path):
    interrupt_collect(4, tmp_path, random.Random(21))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_signal_at_a_hundred_moments_of_collect_leaves_a_journal_that_resumes(tmp_path, part):
    interrupt_collect(10, tmp_path, random.Random(200 + part))
