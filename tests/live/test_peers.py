"""What the README says of the peers is true of those that are installed; the tests of others are skipped."""

import subprocess
import sys
import threading
import time

import pytest

from resilience import RetryPolicy

pytestmark = pytest.mark.slow
THREADS = 16


def refuse():
    raise ConnectionError("down")


def probes(call, refusal):
    """Opens the breaker behind `call(fn)`, then sends 16 threads at once: (most at once, admitted at all)."""
    for _ in range(5):
        with pytest.raises((ConnectionError, refusal)):
            call(refuse)
    time.sleep(0.3)
    lock, start, seen = threading.Lock(), threading.Barrier(THREADS), {"now": 0, "peak": 0, "all": 0}

    def probe():
        with lock:
            seen["now"] += 1
            seen["all"] += 1
            seen["peak"] = max(seen["peak"], seen["now"])
        time.sleep(0.1)
        with lock:
            seen["now"] -= 1

    def one():
        start.wait()
        try:
            call(probe)
        except refusal:
            pass

    threads = [threading.Thread(target=one) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen["peak"], seen["all"]


def test_pybreaker_admits_all_one_after_the_other():
    pybreaker = pytest.importorskip("pybreaker")
    breaker = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=0.2)
    assert probes(breaker.call, pybreaker.CircuitBreakerError) == (1, THREADS)


def test_pyresilience_admits_all_at_once():
    pyresilience = pytest.importorskip("pyresilience")
    config = pyresilience.CircuitBreakerConfig(failure_threshold=3, recovery_timeout=0.2, success_threshold=1)
    call = pyresilience.resilient(circuit_breaker=config)(lambda fn: fn())
    peak, admitted = probes(call, pyresilience.CircuitOpenError)
    assert peak > 1
    assert admitted == THREADS


def nested(decorate):
    calls = []

    def work():
        calls.append(1)
        raise ConnectionError("down")

    for _ in range(3):
        work = decorate(work)
    with pytest.raises(Exception):  # noqa: B017 # each library has its own
        work()
    return len(calls)


def test_three_layers_of_three_attempts_here_make_three_calls():
    assert nested(RetryPolicy(max_retries=2, base_delay=0.0)) == 3


@pytest.mark.parametrize("library", ["tenacity", "pyresilience", "interlock"])
def test_three_layers_of_three_attempts_elsewhere_make_27(library):
    module = pytest.importorskip(library)
    if library == "tenacity":
        assert nested(module.retry(stop=module.stop_after_attempt(3))) == 27
    elif library == "pyresilience":
        assert nested(module.resilient(retry=module.RetryConfig(max_attempts=3, delay=0.001))) == 27
    else:
        assert nested(lambda work: module.Pipeline.builder().retry(attempts=3).build()(work)) == 27


TIMED = {
    "resilience": "from resilience import Pipeline, Timeout; Pipeline(Timeout(0.1)).call(hang)",
    "pyresilience": "from pyresilience import resilient, TimeoutConfig as T; resilient(timeout=T(seconds=0.1))(hang)()",
    "interlock": "import interlock; interlock.sync_timeout(0.1)(hang)()",
    "pebble": "from pebble import ThreadPool; ThreadPool(max_workers=1).schedule(hang).result(0.1)",
}


@pytest.mark.parametrize("library", TIMED)
def test_which_timed_out_calls_hold_up_the_exit(library):
    pytest.importorskip(library)
    code = f"import time\ndef hang(): time.sleep(60)\ntry:\n    {TIMED[library]}\nexcept Exception:\n    "
    code += "print('in time', flush=True)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as script:
        assert script.stdout.readline() == "in time\n"
        try:
            holds_up = False
            script.wait(timeout=5 if library == "pyresilience" else 50)
        except subprocess.TimeoutExpired:
            holds_up = True
            script.kill()
    assert holds_up == (library == "pyresilience")
