"""How a process ends: nothing that hangs holds it up, signals end waits, and what was printed and promised is kept."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

PATIENCE = 60.0  # real seconds for a script to start on a busy machine

HUNG = """
import atexit, sys, threading, time
import resilience
from resilience.strategies.timeout import Timeout
from resilience.errors import DeadlineExceeded

count = int(sys.argv[1])
atexit.register(lambda: print("atexit ran", flush=True))
timeout = Timeout(0.2, max_abandoned=count, name="stuck")

def abandon():
    try:
        timeout.call(threading.Event().wait)
    except DeadlineExceeded as error:
        assert not error.reclaimed

callers = [threading.Thread(target=abandon) for _ in range(count)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
print("result 42")
print("main ends", time.monotonic(), flush=True)
sys.exit(7)
"""

BLOCKED = """
import atexit, threading, time
from resilience.strategies.timeout import Timeout

atexit.register(lambda: print("atexit ran", flush=True))
inside = threading.Event()

def hang():
    inside.set()
    threading.Event().wait()

threading.Thread(target=lambda: (inside.wait(), print("ready", flush=True)), daemon=True).start()
HANDLER
Timeout(600.0, name="stuck").call(hang)
"""

BACKOFF = """
import atexit, sys
import resilience
from resilience import RetryPolicy
from resilience.errors import ShutdownInProgress

atexit.register(lambda: print("atexit ran", flush=True))
INSTALL

def fail():
    print("ready", flush=True)
    raise ConnectionError("down")

policy = RetryPolicy(max_retries=3, base_delay=30.0, max_delay=30.0, jitter=False)
BODY
"""


def started(script, *args):
    """A process of `script` that has said "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n", process.communicate(timeout=PATIENCE)
    return process


def signalled(process, *numbers, pause=0.3):
    """Sends signals; gives the seconds from the last one to the end, and what was printed on stdout and stderr."""
    for number in numbers:
        time.sleep(pause)
        process.send_signal(number)
        sent = time.monotonic()
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return time.monotonic() - sent, out, err


def backoff(body="policy.call(fail)", install=True):
    return BACKOFF.replace("INSTALL", "resilience.install_signal_handlers()" if install else "").replace("BODY", body)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_hung_calls_do_not_hold_up_the_exit_and_lose_nothing(count):
    done = subprocess.run(
        [sys.executable, "-c", HUNG, str(count)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    gone = time.monotonic()
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("result 42\n")
    assert done.stdout.endswith("atexit ran\n")
    ended = float(re.search(r"main ends ([\d.]+)", done.stdout)[1])
    assert gone - ended < 3.0
    told = [line for line in done.stderr.splitlines() if "leftover" in line]
    assert len(told) == count
    assert "'stuck'" in told[0]
    assert "Traceback" not in done.stderr


def test_executor_threads_that_hang_do_not_hold_up_the_exit():
    script = """
import threading
from resilience.workers.threads import ThreadWorkers
workers = ThreadWorkers("pool")
for _ in range(10):
    workers.submit(threading.Event().wait)
print("main ends", flush=True)
"""
    started_at = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "main ends\n")
    assert time.monotonic() - started_at < 15


@pytest.mark.parametrize("handler", ["", "import resilience; resilience.install_signal_handlers()"])
def test_ctrl_c_in_a_blocked_timed_call_leaves_at_once_and_dies_of_sigint(handler):
    took, out, err = signalled(process := started(BLOCKED.replace("HANDLER", handler)), signal.SIGINT)
    assert took < 3.0
    assert process.returncode == -signal.SIGINT
    assert out == "atexit ran\n"
    assert "KeyboardInterrupt" in err


def test_a_shell_reports_130_for_an_uncaught_ctrl_c():
    took, _, err = signalled(process := started(backoff()), signal.SIGINT)
    assert took < 3.0
    assert process.returncode == -signal.SIGINT  # 128 + 2 to a shell
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_ctrl_c_in_a_backoff_needs_no_handlers():
    took, out, _ = signalled(process := started(backoff(install=False)), signal.SIGINT)
    assert took < 3.0
    assert process.returncode == -signal.SIGINT
    assert out == "atexit ran\n"


def test_a_caught_ctrl_c_is_an_ordinary_exception():
    body = "try:\n    policy.call(fail)\nexcept KeyboardInterrupt:\n    print('caught')"
    took, out, _ = signalled(process := started(backoff(body)), signal.SIGINT)
    assert took < 3.0
    assert (process.returncode, out) == (0, "caught\natexit ran\n")


def test_sigterm_in_a_backoff_ends_with_143():
    took, out, _ = signalled(process := started(backoff()), signal.SIGTERM)
    assert took < 3.0
    assert process.returncode == 143
    assert out == "atexit ran\n"


def test_sigterm_in_a_blocked_timed_call_ends_with_143():
    script = BLOCKED.replace("HANDLER", "import resilience; resilience.install_signal_handlers()")
    took, out, _ = signalled(process := started(script), signal.SIGTERM)
    assert took < 3.0
    assert process.returncode == 143
    assert out == "atexit ran\n"


def test_sigterm_ends_a_backoff_of_another_thread_with_shutdown_in_progress():
    body = """
import threading
def work():
    try:
        policy.call(fail)
    except ShutdownInProgress as error:
        print("told", type(error).__name__, flush=True)
    done.set()
done = threading.Event()  # not join(): before Python 3.13 an interrupted one takes the thread for ended
threading.Thread(target=work).start()
try:
    done.wait(60.0)
finally:
    done.wait(30.0)
"""
    took, out, _ = signalled(process := started(backoff(body)), signal.SIGTERM)
    assert took < 3.0
    assert process.returncode == 143
    assert out == "told ShutdownInProgress\natexit ran\n"


def test_a_handler_that_was_there_before_is_called_and_the_program_decides():
    body = """
try:
    policy.call(fail)
except ShutdownInProgress:
    print("refused", flush=True)
sys.exit(5)
"""
    install = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))"
    script = backoff(body, install=False).replace("atexit.register", f"{install}\nresilience.install_signal_handlers()"
                                                  "\natexit.register", 1)  # fmt: skip
    took, out, _ = signalled(process := started(script), signal.SIGTERM)
    assert took < 3.0
    assert process.returncode == 5
    assert out == "mine\nrefused\natexit ran\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_hard(number):
    body = """
import time
while True:
    try:
        policy.call(fail)
    except BaseException:
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
"""
    took, out, _ = signalled(process := started(backoff(body)), number, number)
    assert took < 3.0
    assert process.returncode == 128 + number
    assert out == ""


def test_without_handlers_sigterm_is_pythons_own():
    took, out, _ = signalled(process := started(backoff(install=False)), signal.SIGTERM)
    assert took < 3.0
    assert (process.returncode, out) == (-signal.SIGTERM, "")


def test_an_ignored_ctrl_c_stays_ignored():
    script = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + backoff()
    process = started(script)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    took, _, _ = signalled(process, signal.SIGTERM)
    assert took < 3.0
    assert process.returncode == 143


def test_the_exit_code_a_shell_sees_after_ctrl_c_is_130():
    script = f"import os, signal\n{backoff(body='')}\nos.kill(os.getpid(), signal.SIGINT)\npolicy.call(fail)"
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "$SCRIPT"; exit $?'],
        capture_output=True, env={**os.environ, "SCRIPT": script}, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
