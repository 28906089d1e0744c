"""Retry in real time and real processes: deadlines round nested layers, and signals in the middle of a backoff."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from resilience import DeadlineExceeded, OperationCancelled, Pipeline, RetryPolicy, Timeout, deadline, history
from resilience.core.context import OperationContext

PATIENCE = 20.0  # seconds for an interpreter to start on a busy machine


def always_down():
    raise ConnectionError("down")


def script(body):
    """A child that runs `body` and has said that it is about to sleep."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "failing\n"
    time.sleep(0.3)  # it is in its backoff by now
    return child


def ended(child, number):
    """How long the child lived after the signal, its exit code and what it said."""
    start = time.monotonic()
    child.send_signal(number)
    try:
        out, err = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    return time.monotonic() - start, child.returncode, out, err


LONG_BACKOFF = """
    import sys
    import resilience

    def fails():
        print("failing", flush=True)
        raise ConnectionError("down")

    {before}
    policy = resilience.RetryPolicy(max_retries=5, base_delay=30.0, max_delay=60.0, jitter=False)
    {call}
"""


def test_sigterm_in_a_backoff_of_30_s_ends_the_process_with_143():
    body = LONG_BACKOFF.format(before="resilience.install_signal_handlers()", call="policy.call(fails)")
    seconds, code, _, _ = ended(script(body), signal.SIGTERM)
    assert seconds < 2.0
    assert code == 143


def test_sigterm_wakes_the_backoff_of_another_thread_too():
    call = """
    import threading
    done = threading.Event()  # not join(): before Python 3.13 an interrupted one takes the thread for ended
    def job():
        try:
            policy.call(fails)
        except resilience.ShutdownInProgress as error:
            print(type(error.__cause__).__name__, resilience.history(error).stop_reason, flush=True)
        done.set()
    threading.Thread(target=job).start()
    try:
        done.wait(60.0)
    finally:
        done.wait(10.0)
    """
    body = LONG_BACKOFF.format(
        before="resilience.install_signal_handlers()", call=textwrap.dedent(call).replace("\n", "\n    ")
    )
    seconds, code, out, _ = ended(script(body), signal.SIGTERM)
    assert seconds < 2.0
    assert out == "ConnectionError shutdown\n"
    assert code == 143


@pytest.mark.parametrize("before", ["", "resilience.install_signal_handlers()"], ids=["plain", "with handlers"])
def test_ctrl_c_in_a_backoff_is_a_keyboard_interrupt_at_once(before):
    seconds, code, _, err = ended(script(LONG_BACKOFF.format(before=before, call="policy.call(fails)")), signal.SIGINT)
    assert seconds < 2.0
    assert code in (-signal.SIGINT, 130)
    assert "KeyboardInterrupt" in err


def test_ctrl_c_in_the_backoff_of_the_loop_form_ends_it_after_one_attempt():
    call = """
    for attempt in policy.attempts():
        with attempt:
            fails()
    """
    body = LONG_BACKOFF.format(before="", call=textwrap.dedent(call).replace("\n", "\n    "))
    seconds, code, out, _ = ended(script(body), signal.SIGINT)
    assert seconds < 2.0
    assert (out, code in (-signal.SIGINT, 130)) == ("", True)


@pytest.mark.parametrize("nested", ["owner", "multiply"])
def test_a_deadline_round_three_nested_retries_ends_them_and_no_attempt_begins_after_it(nested):
    policy = RetryPolicy(max_retries=None, base_delay=0.02, max_delay=0.1, nested=nested)
    begun = []

    def work():
        begun.append(time.monotonic())
        raise ConnectionError("down")

    start = time.monotonic()
    with deadline(0.5), pytest.raises(ConnectionError) as caught:
        policy.call(policy.call, policy.call, work)
    assert time.monotonic() - start < 0.55 + 0.45  # the promise is 0.55; the machine may be busy
    assert len(begun) > 3
    assert begun[-1] - start < 0.5
    assert history(caught.value).stop_reason == "deadline"


def test_three_layers_with_retries_and_timeouts_end_by_the_deadline():
    policy = RetryPolicy(max_retries=None, base_delay=0.02, max_delay=0.05)
    layer, begun = Pipeline(policy, Timeout(0.2)), []

    def work():
        begun.append(time.monotonic())
        raise ConnectionError("down")

    start = time.monotonic()
    with deadline(0.5), pytest.raises((ConnectionError, DeadlineExceeded)):  # the latter where an attempt was cut
        layer.call(layer.call, layer.call, work)
    assert time.monotonic() - start < 1.0
    assert begun[-1] - start < 0.5


def test_a_sleep_that_cannot_fit_is_not_begun():
    start = time.monotonic()
    with deadline(2.0), pytest.raises(ConnectionError):
        RetryPolicy(base_delay=5.0, max_delay=5.0, jitter=False).call(always_down)
    assert time.monotonic() - start < 0.5


def test_a_cancel_from_another_thread_wakes_the_backoff():
    context, start = OperationContext("job"), time.monotonic()
    timer = threading.Timer(0.1, context.cancel, args=("enough",))
    timer.start()
    with context, pytest.raises(OperationCancelled, match="enough"):
        RetryPolicy(base_delay=30.0, max_delay=30.0, jitter=False).call(always_down)
    timer.join()
    assert time.monotonic() - start < 2.0


def test_threads_in_their_backoff_do_not_hold_up_each_other():
    policy, start = RetryPolicy(max_retries=1, base_delay=0.3, jitter=False), time.monotonic()

    def job():
        with pytest.raises(ConnectionError):
            policy.call(always_down)

    threads = [threading.Thread(target=job) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.3 <= time.monotonic() - start < 1.5
