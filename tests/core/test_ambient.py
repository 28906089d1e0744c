"""The ambient deadline: it shortens, never lengthens, and everything that waits obeys it."""

import contextvars
import threading

import pytest

from resilience.core import lifecycle
from resilience.core.ambient import checkpoint, current, deadline, remaining, sleep
from resilience.core.errors import ConfigError, DeadlineExceeded, ShutdownInProgress
from resilience.testing import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def test_without_a_deadline_nothing_remains_to_be_told():
    assert remaining() is None
    assert current() is None
    checkpoint()


def test_a_deadline_counts_down_on_its_clock(clock):
    with deadline(2.0, clock=clock) as ctx:
        assert remaining() == 2.0
        clock.advance(0.5)
        assert remaining() == 1.5
        assert current() is ctx
    assert remaining() is None


def test_a_nested_deadline_can_only_shorten(clock):
    with deadline(2.0, clock=clock):
        with deadline(10.0):
            assert remaining() == 2.0
        with deadline(0.5):
            assert remaining() == 0.5
        assert remaining() == 2.0


def test_a_nested_deadline_on_another_clock_shortens_too(clock):
    other = ManualClock(start=1000.0)
    with deadline(2.0, clock=clock), deadline(10.0, clock=other):
        assert remaining() == 2.0
        clock.advance(1.5)
        assert remaining() == 0.5


def test_a_checkpoint_raises_once_the_time_is_over(clock):
    with deadline(1.0, clock=clock):
        checkpoint()
        clock.advance(1.0)
        with pytest.raises(DeadlineExceeded) as caught:
            checkpoint()
    assert caught.value.ambient
    assert caught.value.timeout == 1.0
    assert not isinstance(caught.value, (TimeoutError, OSError))


def test_a_sleep_that_does_not_fit_ends_at_the_deadline(clock):
    with deadline(1.0, clock=clock):
        with pytest.raises(DeadlineExceeded, match="while waiting"):
            sleep(5.0)
        assert clock.monotonic() == 1.0
        assert clock.sleeps == [1.0]


def test_a_sleep_that_fits_ends_by_itself(clock):
    with deadline(1.0, clock=clock):
        sleep(0.25)
    assert clock.sleeps == [0.25]


def test_a_sleep_of_zero_does_not_wait(clock):
    with deadline(1.0, clock=clock):
        sleep(0)
    assert clock.sleeps == []


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "1", True])
def test_a_bad_number_of_seconds_is_refused_by_name(bad):
    with pytest.raises(ConfigError) as caught:
        deadline(bad)
    assert caught.value.key == "seconds"


def test_the_deadline_travels_with_a_copied_context(clock):
    seen = []
    with deadline(3.0, clock=clock):
        copied = contextvars.copy_context()
    thread = threading.Thread(target=lambda: seen.append(copied.run(remaining)))
    thread.start()
    thread.join()
    assert seen == [3.0]


def test_a_shutdown_wakes_every_sleep():
    started, ended = threading.Event(), []

    def work():
        started.set()
        try:
            sleep(30.0)
        except ShutdownInProgress as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(5)
    try:
        lifecycle.begin_shutdown()
        thread.join(5)
        assert len(ended) == 1
        with pytest.raises(ShutdownInProgress):
            checkpoint()
    finally:
        lifecycle.reset_after_shutdown()
    checkpoint()


def test_a_callback_registered_after_the_shutdown_runs_at_once():
    told = []
    try:
        lifecycle.begin_shutdown()
        lifecycle.on_shutdown(lambda: told.append(1))
        assert told == [1]
    finally:
        lifecycle.reset_after_shutdown()


def test_entering_leaves_no_trace_after_an_error(clock):
    with pytest.raises(RuntimeError), deadline(1.0, clock=clock):
        raise RuntimeError
    assert current() is None
