"""A wait of the system clock that Ctrl-C ends in its most awkward moment is still a plain KeyboardInterrupt."""

import threading

import pytest

from resilience.core.clock import SYSTEM


def interrupted_once_released(condition, monkeypatch):
    """Lets Ctrl-C come when `condition` has given its lock away and does not take it back yet."""
    release = condition._release_save

    def release_and_interrupt():
        release()
        raise KeyboardInterrupt

    monkeypatch.setattr(condition, "_release_save", release_and_interrupt)


def test_ctrl_c_in_a_sleep_is_never_hidden_by_the_lock_of_its_event(monkeypatch):
    wake = threading.Event()
    interrupted_once_released(wake._cond, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as caught:
        SYSTEM.sleep(60.0, wake)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("lock", [threading.RLock, threading.Lock])
def test_ctrl_c_in_a_wait_leaves_the_lock_to_who_waited(monkeypatch, lock):
    condition = threading.Condition(lock())
    interrupted_once_released(condition, monkeypatch)
    tidied = []
    with pytest.raises(KeyboardInterrupt), condition:
        try:
            SYSTEM.wait(condition, 60.0)
        finally:
            condition.notify_all()
            tidied.append(True)
    assert tidied == [True]
    assert condition.acquire(blocking=False)
    condition.release()


def test_another_error_of_a_wait_stays_what_it_is():
    with pytest.raises(RuntimeError, match="un-acquired"):
        SYSTEM.wait(threading.Condition(), 1.0)
