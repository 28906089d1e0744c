"""A periodic worker is slowed, stopped and restarted as its table says."""

from resilience.rules.supervision import (
    GIVEN_UP,
    RUNNING,
    STOPPED,
    Supervision,
    begin,
    failed,
    lost,
    restarted,
    succeeded,
)

RULES = Supervision(interval=10.0, max_interval=80.0, max_errors=8, restart_after=60.0, max_restarts=2)


def fail(state, times, now=0.0):
    for _ in range(times):
        state = failed(state, RULES, now, now)
    return state


def test_it_runs_at_once_and_then_by_its_interval_from_start_to_start():
    state = begin(RULES, 5.0)
    assert (state.mode, state.next_run) == (RUNNING, 5.0)
    assert succeeded(state, RULES, 5.0, 7.0).next_run == 15.0
    assert succeeded(state, RULES, 5.0, 99.0).next_run == 99.0  # a run longer than the interval: no run is made up for


def test_the_interval_doubles_after_each_three_failures_in_a_row_up_to_its_limit():
    rules = Supervision(interval=10.0, max_interval=40.0, max_errors=100)
    state, seen = begin(rules, 0.0), []
    for _ in range(12):
        state = failed(state, rules, 0.0, 0.0)
        seen.append(state.interval)
    assert seen == [10, 10, 20, 20, 20, 40, 40, 40, 40, 40, 40, 40]
    assert state.next_run == 40.0


def test_a_success_restores_the_interval_and_forgets_the_errors():
    state = succeeded(fail(begin(RULES, 0.0), 5), RULES, 100.0, 100.0)
    assert (state.errors, state.interval, state.next_run) == (0, 10.0, 110.0)
    assert fail(state, 2).interval == 10.0


def test_max_errors_in_a_row_stop_it_until_its_restart():
    assert fail(begin(RULES, 0.0), 7).mode == RUNNING
    state = fail(begin(RULES, 0.0), 8, now=100.0)
    assert (state.mode, state.errors, state.next_run) == (STOPPED, 8, 160.0)
    again = restarted(state, RULES, 160.0)
    assert (again.mode, again.errors, again.interval, again.next_run) == (RUNNING, 0, 10.0, 160.0)


def test_more_restarts_than_allowed_within_the_window_give_it_up():
    state = begin(RULES, 0.0)
    for now in (100.0, 200.0):
        state = restarted(lost(state, RULES, now), RULES, now + 60)
    assert lost(state, RULES, 300.0).mode == GIVEN_UP
    assert lost(state, RULES, 300.0).next_run is None
    later = lost(state, RULES, 160.0 + 3600.0)  # the first restart is out of the window
    assert (later.mode, len(later.restarts)) == (STOPPED, 1)


def test_without_restarts_it_is_given_up_at_once():
    rules = Supervision(interval=1.0, max_interval=8.0, restart_after=None)
    assert lost(begin(rules, 0.0), rules, 0.0).mode == GIVEN_UP
    rules = Supervision(interval=1.0, max_interval=8.0, max_restarts=0)
    assert lost(begin(rules, 0.0), rules, 0.0).mode == GIVEN_UP
