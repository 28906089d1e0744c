"""What processes count together is exact: outcomes, openings, transitions; whatever is killed meanwhile."""

import itertools
import time

import pytest
from fleet import undisturbed

from resilience import open_store
from resilience.testing import eventually

pytestmark = pytest.mark.slow
PROCESSES = 8
OUTCOMES = 5_000


def test_five_thousand_outcomes_of_each_of_eight_processes_are_all_counted(url, name, workers):
    numbers = itertools.count()

    def run():
        key = f"{name}-{next(numbers)}"
        crowd = workers(PROCESSES, "breaker", url, key, failure_threshold=1_000_000, reset_timeout=None)
        began = time.monotonic()
        assert crowd.do(f"fail({OUTCOMES})") == [OUTCOMES] * PROCESSES
        took = time.monotonic() - began
        assert all(crowd.do("store.link.flush(50.0)"))
        written = time.monotonic() - began
        print(f"{PROCESSES * OUTCOMES / took:,.0f} failures a second; all written after {written:.1f} s")
        assert crowd.do("breaker.stats.failures") == [OUTCOMES] * PROCESSES
        with open_store(url) as store:
            counted = store.read(f"breaker/{key}")["failures"]
        return (crowd, counted), crowd.lost()

    crowd, counted = undisturbed(run)
    assert counted == PROCESSES * OUTCOMES
    eventually(lambda: crowd.do("breaker.stats.failures_in_a_row") == [PROCESSES * OUTCOMES] * PROCESSES)


def test_all_threads_of_all_processes_that_fail_at_once_are_one_opening(url, name, workers):
    crowd = workers(PROCESSES, "breaker", url, name, failure_threshold=5, timeout=600.0)
    for opening in range(1, 4):
        crowd.do("start(8, lambda number: (time.sleep(0.01), call(failing)))")
        eventually(lambda: crowd.do("str(breaker.state)") == ["open"] * PROCESSES)
        time.sleep(0.2)  # whoever was let in before has begun
        ran = crowd.do("len(runs)")
        time.sleep(0.5)
        assert crowd.do("len(runs)") == ran
        crowd.do("stop()")
        told = [change for changes in crowd.do("told_changes()") for change in changes]
        assert told.count("closed open") == opening
        crowd[opening].do("breaker.reset()")
        eventually(lambda: crowd.do("str(breaker.state)") == ["closed"] * PROCESSES)
