"""Deadlines hold again as soon as a thread can be had that watches them."""

import socket
import threading

import pytest

from resilience.core.clock import SYSTEM
from resilience.workers import cut
from resilience.workers.cut import SocketCut
from resilience.workers.watchdog import Watchdog


@pytest.fixture
def watchdog(monkeypatch):
    """A watchdog of its own, whose first thread could not be started."""
    made = Watchdog()
    monkeypatch.setattr(cut, "WATCHDOG", made)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        yield made, patched.undo


def _no_thread(thread):
    raise RuntimeError("can't start new thread")


def test_a_watchdog_whose_thread_could_not_be_started_starts_one_for_the_next_deadline(watchdog):
    made, threads_again = watchdog
    too_early, called = threading.Event(), threading.Event()
    with pytest.raises(RuntimeError):
        made.arm(SYSTEM.monotonic(), too_early.set)
    assert made.armed == 0
    threads_again()
    made.arm(SYSTEM.monotonic(), called.set)
    assert called.wait(5)
    assert not too_early.is_set()


def test_a_socket_is_cut_after_a_call_that_no_thread_could_watch(watchdog):
    _, threads_again = watchdog
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        guard = SocketCut()
        with pytest.raises(RuntimeError):
            guard.begin(SYSTEM.monotonic(), ours)
        threads_again()
        guard.begin(SYSTEM.monotonic() + 0.01, ours)
        assert ours.recv(1) == b""
        assert not guard.end()
