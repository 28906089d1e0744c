"""The timeout manager: how long each kind may take, what runs now, and ending it."""

import inspect
import json
import os
import threading
import time

import pytest

import resilience
from resilience import ErrorRecoveryManager
from resilience.core.errors import ConfigError, DeadlineExceeded, OperationCancelled, ShutdownInProgress
from resilience.testing import Gate, ManualClock, eventually
from resilience.timeouts import TimeoutManager

DEFAULTS = {"api_call": 10.0, "database_query": 5.0, "redis_operation": 2.0, "concurrent_op": 15.0,
            "health_check": 3.0, "backfill": 60.0, "symbol_fetch": 20.0, "market_data": 8.0}  # fmt: skip


class Caller(threading.Thread):
    """A thread that makes one call; `end()` gives its value or its error."""

    def __init__(self, fn, *args, **kwargs):
        super().__init__(daemon=True)
        self.fn, self.args, self.kwargs, self.outcome = fn, args, kwargs, None
        self.start()

    def run(self):
        try:
            self.outcome = self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            self.outcome = error

    def end(self):
        self.join(30)
        assert not self.is_alive()
        return self.outcome


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def timeouts(clock):
    return TimeoutManager(clock=clock)


@pytest.fixture
def gate():
    gate = Gate("late")
    yield gate
    gate.open()


# -- how long ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "seconds"), DEFAULTS.items())
def test_the_defaults_are_those_of_the_specification(timeouts, kind, seconds):
    assert timeouts.timeout_of(kind) == seconds
    with timeouts.operation(kind) as context:
        assert context.remaining() == seconds


def test_database_operation_uses_database_query_and_other_names_have_30_seconds(timeouts):
    assert timeouts.timeout_of("database_operation") == 5.0
    assert timeouts.timeout_of("whatever") == 30.0
    timeouts.update_config(database_query=7.0)
    assert timeouts.timeout_of("database_operation") == 7.0


def test_kinds_are_changed_for_later_operations_and_new_ones_are_welcome(timeouts):
    with timeouts.operation("api_call") as context:
        timeouts.update_config(api_call=1.0, report=90.0)
        assert context.remaining() == 10.0
    assert (timeouts.timeout_of("api_call"), timeouts.timeout_of("report")) == (1.0, 90.0)
    assert timeouts.config()["report"] == 90.0
    assert TimeoutManager(api_call=2.5).timeout_of("api_call") == 2.5


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "5s", None, True])
def test_a_bad_timeout_is_refused_by_kind_and_nothing_changes(timeouts, value):
    told = []
    timeouts.on_change(lambda: told.append(1))
    with pytest.raises(ConfigError) as caught:
        timeouts.update_config(api_call=1.0, backfill=value)
    assert caught.value.key == "backfill"
    assert timeouts.timeout_of("api_call") == 10.0
    assert told == []


def test_listeners_hear_of_changes(timeouts):
    told = []
    timeouts.on_change(lambda: told.append(timeouts.timeout_of("api_call")))
    timeouts.update_config(api_call=1.0)
    assert told == [1.0]


def test_a_copy_of_the_configuration_is_given_away(timeouts):
    timeouts.config()["api_call"] = 0.0
    assert timeouts.timeout_of("api_call") == 10.0


# -- operations as blocks ------------------------------------------------------------------------------------------


def test_a_block_is_current_bounded_and_active_until_it_ends(timeouts, clock):
    with timeouts.operation("backfill", "job-1") as context:
        assert resilience.current() is context
        assert (context.operation, context.operation_id) == ("backfill", "job-1")
        assert resilience.remaining() == 60.0
        clock.advance(2.5)
        (active,) = timeouts.active_operations()
        assert (active.id, active.kind, active.age, active.timeout) == ("job-1", "backfill", 2.5, 60.0)
        assert active.thread == threading.get_ident()
    assert resilience.current() is None
    assert timeouts.active_operations() == []


def test_a_timeout_given_with_the_block_wins(timeouts):
    with timeouts.operation("backfill", timeout=0.5) as context:
        assert context.remaining() == 0.5


def test_a_nested_block_can_only_shorten(timeouts):
    with timeouts.operation("redis_operation"), timeouts.operation("backfill") as inner:
        assert inner.remaining() == 2.0


def test_each_operation_has_an_id_of_its_own(timeouts):
    with timeouts.operation("api_call") as first, timeouts.operation("api_call") as second:
        assert first.operation_id != second.operation_id
        assert {active.id for active in timeouts.active_operations()} == {first.operation_id, second.operation_id}


def test_a_sleep_in_a_block_ends_at_its_deadline(timeouts, clock):
    with pytest.raises(DeadlineExceeded) as caught, timeouts.operation("health_check"):
        resilience.sleep(60.0)
    assert (caught.value.name, caught.value.timeout) == ("health_check", 3.0)
    assert clock.sleeps == [3.0]


def test_a_block_that_raises_is_active_no_longer(timeouts):
    with pytest.raises(ZeroDivisionError), timeouts.operation("api_call"):
        _ = 1 / 0
    assert timeouts.active_operations() == []


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), "1s"])
def test_a_bad_timeout_of_a_block_is_refused(timeouts, timeout):
    with pytest.raises(ConfigError) as caught:
        timeouts.operation("api_call", timeout=timeout)
    assert caught.value.key == "timeout"


def test_an_id_in_use_is_refused_in_every_form(timeouts):
    with timeouts.operation("api_call", "one"):
        with pytest.raises(ConfigError) as caught:
            timeouts.create_operation_context("backfill", "one")
        assert caught.value.key == "operation_id"
        with pytest.raises(ConfigError), timeouts.operation("backfill", "one"):
            pass
    with timeouts.operation("backfill", "one"):
        pass


# -- contexts that are completed by hand ---------------------------------------------------------------------------


def test_a_context_is_active_until_it_is_completed_and_is_not_current(timeouts, clock):
    context = timeouts.create_operation_context("symbol_fetch", "BTC")
    assert resilience.current() is None
    assert context.remaining() == 20.0
    assert [active.id for active in timeouts.active_operations()] == ["BTC"]
    assert timeouts.complete_operation("BTC") is True
    assert timeouts.complete_operation("BTC") is False
    assert timeouts.active_operations() == []
    assert timeouts.operation_stats()["symbol_fetch"]["completed"] == 1


def test_a_context_without_an_id_gets_one(timeouts):
    context = timeouts.create_operation_context("symbol_fetch")
    assert timeouts.complete_operation(context.operation_id)


def test_a_context_can_be_made_current_by_a_with_block(timeouts):
    with timeouts.create_operation_context("market_data", "x") as context:
        assert resilience.current() is context
    assert timeouts.complete_operation("x")


# -- calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_a_function_is_called_with_its_context(timeouts, isolation):
    def work(context):
        return context.operation, context.operation_id, context.remaining(), resilience.remaining()

    seen = timeouts.execute_with_timeout("market_data", "x", work, isolation=isolation)
    assert seen == ("market_data", "x", 8.0, 8.0)
    assert timeouts.active_operations() == []


def test_where_it_runs_is_up_to_the_isolation(timeouts):
    here = threading.get_ident()
    assert timeouts.execute_with_timeout("api_call", None, lambda _: threading.get_ident()) != here
    assert timeouts.execute_with_timeout("api_call", None, lambda _: threading.get_ident(), "caller") == here


def test_a_call_that_hangs_ends_for_its_caller(timeouts, clock, gate):
    caller = Caller(timeouts.execute_with_timeout, "health_check", "x", gate)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    error = caller.end()
    assert isinstance(error, DeadlineExceeded)
    assert (error.name, error.timeout, error.phase, error.reclaimed) == ("health_check", 3.0, "running", False)
    assert timeouts.active_operations() == []
    assert timeouts.operation_stats()["health_check"]["timed_out"] == 1


def test_hung_calls_of_one_kind_are_bounded(timeouts, clock, gate):
    for _ in range(8):
        inside = gate.inside
        caller = Caller(timeouts.execute_with_timeout, "health_check", None, gate)
        assert gate.arrived(inside + 1)
        eventually(lambda caller=caller: clock.advance(1.0) or not caller.is_alive())
    with pytest.raises(resilience.WorkersExhausted) as caught:
        timeouts.execute_with_timeout("health_check", None, gate)
    assert (caught.value.name, caught.value.abandoned) == ("health_check", 8)
    assert timeouts.execute_with_timeout("api_call", None, lambda _: "others go on") == "others go on"


def test_errors_of_the_function_arrive_and_are_counted(timeouts):
    with pytest.raises(ZeroDivisionError):
        timeouts.execute_with_timeout("api_call", None, lambda _: 1 / 0)
    assert timeouts.operation_stats()["api_call"]["failed"] == 1


@pytest.mark.parametrize(("isolation", "key"), [("fiber", "isolation"), (None, "isolation")])
def test_a_bad_isolation_is_refused(timeouts, isolation, key):
    with pytest.raises(ConfigError) as caught:
        timeouts.execute_with_timeout("api_call", None, lambda _: 1, isolation=isolation)
    assert caught.value.key == key


def test_a_coroutine_function_is_refused(timeouts):
    made = []

    async def coroutine():
        pass

    with pytest.raises(TypeError):
        timeouts.execute_with_timeout("api_call", None, lambda _: made.append(coroutine()) or made[0])
    assert inspect.getcoroutinestate(made[0]) == "CORO_CLOSED"


# -- cancelling ----------------------------------------------------------------------------------------------------


def test_cancelling_ends_one_operation_by_id_with_the_reason(timeouts, gate):
    caller = Caller(timeouts.execute_with_timeout, "backfill", "job", gate)
    other = Caller(timeouts.execute_with_timeout, "backfill", "other", gate)
    assert gate.arrived(2)
    assert timeouts.cancel_operation("job", "no longer needed") is True
    error = caller.end()
    assert isinstance(error, OperationCancelled)
    assert error.reason == "no longer needed"
    assert [active.id for active in timeouts.active_operations()] == ["other"]
    gate.open()
    assert other.end() == "late"
    assert timeouts.cancel_operation("job") is False


def test_cancelling_ends_what_was_not_given_an_id_too(timeouts):
    with timeouts.operation("backfill") as context:
        assert timeouts.cancel_operation(context.operation_id)
        with pytest.raises(OperationCancelled):
            resilience.checkpoint()


def test_cancelling_all_says_how_many(timeouts, gate):
    callers = [Caller(timeouts.execute_with_timeout, "backfill", str(number), gate) for number in range(3)]
    assert gate.arrived(3)
    assert timeouts.cancel_all_operations("stop") == 3
    assert all(isinstance(caller.end(), OperationCancelled) for caller in callers)
    assert timeouts.cancel_all_operations() == 0
    stats = timeouts.operation_stats()["backfill"]
    assert (stats["started"], stats["cancelled"], stats["active"]) == (3, 3, 0)


# -- looking -------------------------------------------------------------------------------------------------------


def test_active_operations_come_oldest_first_with_stacks_on_request(timeouts, clock, gate):
    first = Caller(timeouts.execute_with_timeout, "backfill", "old", gate, isolation="caller")
    assert gate.arrived(1)
    clock.advance(1.0)
    second = Caller(timeouts.execute_with_timeout, "backfill", "new", gate, isolation="caller")
    assert gate.arrived(2)
    assert [(active.id, active.age, active.stack) for active in timeouts.active_operations()] == [
        ("old", 1.0, None), ("new", 0.0, None),
    ]  # fmt: skip
    shown = timeouts.active_operations(stacks=True)
    assert [active.thread for active in shown] == [first.ident, second.ident]
    assert all("doubles.py" in active.stack for active in shown)
    json.dumps([active.as_dict() for active in shown])


def test_the_stack_of_a_call_on_a_worker_shows_where_it_hangs(timeouts, gate):
    Caller(timeouts.execute_with_timeout, "backfill", "x", gate)
    assert gate.arrived()
    (shown,) = timeouts.active_operations(stacks=True)
    assert "doubles.py" in shown.stack
    assert shown.thread in {thread.ident for thread in threading.enumerate() if thread.name.startswith("backfill")}


def test_the_stack_of_a_managers_operation_shows_where_it_hangs(clock, gate):
    with ErrorRecoveryManager(clock=clock) as manager:
        caller = Caller(manager.execute_with_retry, "backfill", gate)
        assert gate.arrived()
        (shown,) = manager.timeouts.active_operations(stacks=True)
        assert "doubles.py" in shown.stack
        gate.open()
        assert caller.end() == "late"


def test_stats_count_what_became_of_each_kind(timeouts, clock):
    with timeouts.operation("api_call"):
        pass
    for error in (ValueError(), DeadlineExceeded(), OperationCancelled(), KeyboardInterrupt()):
        with pytest.raises(type(error)), timeouts.operation("api_call"):
            raise error
    with timeouts.operation("api_call"):
        assert timeouts.operation_stats() == {
            "api_call": {"started": 6, "completed": 1, "failed": 1, "timed_out": 1, "cancelled": 2, "active": 1}
        }


def test_counts_are_exact_under_many_threads():
    timeouts = TimeoutManager()

    def work():
        for _ in range(200):
            with timeouts.operation("api_call"):
                pass

    callers = [Caller(work) for _ in range(8)]
    for caller in callers:
        caller.end()
    stats = timeouts.operation_stats()["api_call"]
    assert (stats["started"], stats["completed"], stats["active"]) == (1600, 1600, 0)


# -- the end -------------------------------------------------------------------------------------------------------


def test_after_shutdown_new_operations_are_refused_and_running_ones_cancelled(timeouts, gate):
    caller = Caller(timeouts.execute_with_timeout, "backfill", "x", gate)
    assert gate.arrived()
    timeouts.shutdown()
    assert isinstance(caller.end(), OperationCancelled)
    with pytest.raises(ShutdownInProgress):
        timeouts.operation("api_call")
    with pytest.raises(ShutdownInProgress):
        timeouts.create_operation_context("api_call")
    with pytest.raises(ShutdownInProgress):
        timeouts.execute_with_timeout("api_call", None, pytest.fail)
    assert timeouts.operation_stats()["backfill"]["active"] == 0
    timeouts.shutdown()


def test_shutdown_with_grace_lets_running_operations_end(timeouts, gate):
    caller = Caller(timeouts.execute_with_timeout, "backfill", "x", gate)
    assert gate.arrived()
    closing = Caller(timeouts.shutdown, 30.0)
    eventually(lambda: timeouts.closed)
    assert closing.is_alive()
    gate.open()
    assert caller.end() == "late"
    assert closing.end() is None


@pytest.mark.parametrize("grace", [-1.0, float("nan"), "5s", None])
def test_a_bad_grace_is_refused_and_nothing_is_shut_down(timeouts, grace):
    with pytest.raises(ConfigError) as caught:
        timeouts.shutdown(grace)
    assert caught.value.key == "grace"
    with timeouts.operation("api_call"):
        pass


# -- with a manager ------------------------------------------------------------------------------------------------


def test_a_managers_operations_are_active_and_can_be_cancelled(clock, gate):
    with ErrorRecoveryManager(clock=clock) as manager:
        future = manager.submit("api_call", gate)
        caller = Caller(manager.execute_with_retry, "backfill", gate)
        assert gate.arrived(2)
        assert {active.kind for active in manager.timeouts.active_operations()} == {"api_call", "backfill"}
        assert manager.timeouts.cancel_all_operations() == 2
        assert isinstance(caller.end(), OperationCancelled)
        assert isinstance(future.exception(30), OperationCancelled)
        gate.open()


def test_a_change_of_the_configuration_reaches_the_managers_operations(clock, gate):
    with ErrorRecoveryManager(clock=clock) as manager:
        assert manager.execute_with_retry("api_call", resilience.remaining) == 10.0
        manager.timeouts.update_config(api_call=1.5)
        assert manager.execute_with_retry("api_call", resilience.remaining) == 1.5


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_waits_for_none_of_its_parents_calls():
    timeouts = TimeoutManager()
    gate = Gate()

    def elsewhere():
        with timeouts.operation("backfill", "night"):
            gate()

    caller = Caller(elsewhere)
    assert gate.arrived()
    with timeouts.operation("api_call", "mine"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                begun = [active.id for active in timeouts.active_operations()]
                with timeouts.operation("backfill", "night"):  # its id is free here
                    pass
                timeouts.complete_operation("mine")
                started = time.monotonic()
                timeouts.shutdown(grace=20.0)
                code = 0 if begun == ["mine"] and time.monotonic() - started < 10.0 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert {active.id for active in timeouts.active_operations()} == {"mine", "night"}
    gate.open()
    caller.end()
