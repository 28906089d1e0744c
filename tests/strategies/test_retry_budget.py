"""Budgets bound the retries of many callers, the gate of a fan-out their attempts; a fork shares neither."""

import copy
import os
import pickle
import signal
import threading

import pytest

from resilience import (
    ConfigError,
    Retry,
    RetryBudget,
    RetryPolicy,
    deadline,
    history,
)
from resilience.core.ambient import attempt_gate
from resilience.testing import Flaky, ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def plain(retries, **changes):
    return RetryPolicy(**{"max_retries": retries, "base_delay": 1.0, "max_delay": 60.0, "jitter": False, **changes})


def test_the_budget_is_asked_before_the_sleep_and_counts_those_who_sleep(clock):
    budget = RetryBudget(ratio=0.0, min_per_second=0.1, ttl=10.0, clock=clock)
    asked = []

    class Watching(ManualClock):
        def sleep(self, seconds, wake=None):
            asked.append(budget.take_retry())  # another caller, while this one sleeps
            return super().sleep(seconds, wake)

    Retry(plain(1, budget=budget), clock=Watching()).call(Flaky(1))
    assert asked == [False]


def test_a_wait_that_does_not_fit_takes_nothing_from_the_budget(clock):
    budget = RetryBudget(ratio=0.0, min_per_second=0.1, ttl=10.0, clock=clock)
    with deadline(0.5, clock=clock), pytest.raises(ConnectionError):
        Retry(plain(1, budget=budget), clock=clock).call(Flaky(9))
    assert budget.take_retry()


def test_an_empty_budget_raises_the_original_error_with_a_note(clock):
    budget = RetryBudget(ratio=0.0, min_per_second=0.1, ttl=10.0, clock=clock)
    retry = Retry(plain(5, base_delay=0.0, budget=budget), clock=clock)
    assert retry.call(Flaky(1)) == "ok"
    with pytest.raises(ConnectionError) as caught:
        retry.call(Flaky(9))
    assert history(caught.value).stop_reason == "budget empty"


def test_the_same_name_is_the_same_budget_and_other_numbers_are_refused():
    budget = RetryBudget(name="shared")
    assert RetryBudget(name="shared") is budget
    with pytest.raises(ConfigError) as caught:
        RetryBudget(ratio=0.5, name="shared")
    assert caught.value.key == "name"


def test_another_clock_under_a_living_name_is_refused(clock):
    budget = RetryBudget(name="clocked", clock=clock)
    assert RetryBudget(name="clocked", clock=clock) is budget
    with pytest.raises(ConfigError) as caught:
        RetryBudget(name="clocked", clock=ManualClock())
    assert caught.value.key == "clock"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("ratio", -0.1), ("ratio", float("nan")), ("ratio", True), ("min_per_second", float("inf")),
     ("min_per_second", -1), ("ttl", 0), ("ttl", 1e-307), ("ttl", float("inf")), ("name", 7)],
)  # fmt: skip
def test_a_bad_parameter_of_a_budget_is_refused_by_name(parameter, value):
    with pytest.raises(ConfigError) as caught:
        RetryBudget(**{parameter: value})
    assert caught.value.key == parameter


def test_a_budget_survives_copies_and_a_policy_with_one_survives_the_way_to_a_process():
    budget = RetryBudget(name="travels")
    policy = RetryPolicy(budget=budget)
    assert copy.deepcopy(budget) is budget
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)).budget is budget


def test_threads_that_share_a_budget_never_get_more_than_it_holds(clock):
    budget, granted = RetryBudget(ratio=0.2, clock=clock), []

    def work():
        for _ in range(100):
            budget.first_attempt()
        granted.append(sum(budget.take_retry() for _ in range(400)))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 320


# -- the gate of a fan-out -----------------------------------------------------------------------------------------


class Recorded:
    """A gate that writes down who passes; `opened` says whether it lets anybody in again."""

    def __init__(self, log, opened=True):
        self.log, self.opened = log, opened

    def enter(self):
        self.log.append("enter")
        return self.opened

    def leave(self, failed):
        self.log.append(f"leave failed={failed}")


def through(gate, retry, work):
    token = attempt_gate.set(gate)
    try:
        return retry.call(work)
    finally:
        attempt_gate.reset(token)


def test_a_retry_sleeps_outside_the_gate():
    log = []

    class Logged(ManualClock):
        def sleep(self, seconds, wake=None):
            log.append(f"sleep {seconds}")
            return super().sleep(seconds, wake)

    through(Recorded(log), Retry(plain(2), clock=Logged()), Flaky(1))
    assert log == ["leave failed=True", "sleep 1.0", "enter"]


def test_a_fan_out_that_is_over_admits_no_further_attempt(clock):
    log, work = [], Flaky(9)
    with pytest.raises(ConnectionError) as caught:
        through(Recorded(log, opened=False), Retry(plain(5), clock=clock), work)
    assert work.calls == 1
    assert history(caught.value).stop_reason == "fan-out is over"


# -- a forked child ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_draws_its_own_delays_and_has_free_locks(clock):
    from resilience.strategies.randomness import draw

    budget = RetryBudget(name="forked", clock=clock)
    draw()
    reader, writer = os.pipe()
    with budget._lock:  # as if another thread were inside at that moment
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(10)  # a lock that is still held ends the child, not the tests
                budget.first_attempt()
                os.write(writer, repr(draw()).encode())
            finally:
                os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert theirs not in ("", repr(draw()))
