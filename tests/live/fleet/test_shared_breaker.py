"""Breakers shared by a few processes, on every store: what they agree on, and what outlives them."""

import signal

import pytest

from resilience import open_store
from resilience.testing import eventually

pytestmark = pytest.mark.slow


def test_failures_in_a_row_are_counted_over_all_processes(url, name, workers):
    first, second = workers(2, "breaker", url, name, failure_threshold=4)
    assert [worker.do("call(failing)") for worker in (first, second, first)] == ["failed"] * 3
    eventually(lambda: second.do("breaker.stats.failures_in_a_row") == 3)
    assert second.do("call(lambda: 'fine')") == "fine"
    eventually(lambda: first.do("breaker.stats.failures_in_a_row") == 0)
    assert [worker.do("call(failing)") for worker in (first, second, first, second)] == ["failed"] * 4
    eventually(lambda: first.do("str(breaker.state)") == "open")
    assert first.do("call(failing)") == second.do("call(failing)") == "refused"


def test_a_new_process_finds_an_open_breaker_open_and_resets_nothing(url, name, workers):
    (first,) = workers(1, "breaker", url, name, failure_threshold=1)
    assert first.do("call(failing)") == "failed"
    (late,) = workers(1, "breaker", url, name, failure_threshold=1)
    assert late.do("call(lambda: 1)") == "refused"
    assert first.do("call(lambda: 1)") == "refused"


def test_what_a_call_has_counted_survives_the_kill_of_its_process(url, name, workers):
    for round_number in range(1, 5):
        (worker,) = workers(1, "breaker", url, name, failure_threshold=5)
        assert worker.do("call(failing)") == "failed"
        worker.process.send_signal(signal.SIGKILL)
        with open_store(url) as store:
            assert store.read(f"breaker/{name}")["failures"] == round_number


def test_only_the_process_that_opened_it_warns(url, name, workers, capfd):
    crowd = workers(3, "breaker", url, name, failure_threshold=3, timeout=600.0)
    for worker in crowd:
        assert worker.do("call(failing)") == "failed"
    for worker in crowd:
        eventually(lambda worker=worker: worker.do("str(breaker.state)") == "open")
    assert capfd.readouterr().err.count("is open") == 1
    assert all(worker.do("breaker.stats.state_changes") == 1 for worker in crowd)
