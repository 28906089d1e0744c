"""Named operations: every policy registered for a name applies, and all is counted exactly."""

import gc
import importlib
import json
import operator
import os
import threading
import warnings
import weakref

import pytest

import resilience
from resilience import (
    Bulkhead,
    BulkheadFullError,
    CircuitBreakerConfig,
    CircuitOpenError,
    ConfigError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    OperationCancelled,
    RateLimiter,
    RateLimitExceeded,
    ResourceType,
    RetryPolicy,
    ShutdownInProgress,
    SystemClock,
    current,
)
from resilience.core import lifecycle
from resilience.stores.memory import MemoryStore
from resilience.testing import EventLog, Flaky, Gate, ManualClock, eventually
from resilience.workers.ledger import LEDGER

NO_WAIT = RetryPolicy(max_retries=2, base_delay=0.0, jitter=False)


@pytest.fixture
def manager():
    with ErrorRecoveryManager(clock=ManualClock()) as made:
        yield made


def down():
    raise ConnectionError("down")


@pytest.mark.parametrize(
    ("name", "retries", "base", "most", "factor"),
    [("api_call", 3, 0.1, 5.0, 2.0), ("database_operation", 5, 0.05, 2.0, 1.5), ("redis_operation", 3, 0.025, 1.0, 2.0),
     ("concurrent_operation", 2, 0.2, 3.0, 2.5)],
)  # fmt: skip
def test_the_retry_presets_are_those_of_the_specification(manager, name, retries, base, most, factor):
    policy = manager.operation(name).parts.policy
    assert (policy.max_retries, policy.base_delay, policy.max_delay, policy.backoff_factor, policy.jitter) == (
        retries, base, most, factor, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("api_call", 10), ("database_query", 5), ("redis_operation", 2), ("concurrent_op", 15), ("health_check", 3),
     ("backfill", 60), ("symbol_fetch", 20), ("market_data", 8), ("anything else", 30), ("database_operation", 5)],
)  # fmt: skip
def test_the_timeouts_are_those_of_the_specification(manager, name, seconds):
    assert manager.operation(name).parts.timeout == seconds


def test_a_breaker_guards_only_where_it_was_asked_for(manager):
    assert manager.operation("api_call").parts.breaker is None
    breaker = manager.circuit_breaker("api_call")
    assert manager.operation("api_call").parts.breaker is breaker
    manager.register_circuit_breaker("other", CircuitBreakerConfig(failure_threshold=1))
    assert manager.operation("other").parts.breaker.config.failure_threshold == 1


def test_getting_a_breaker_again_gives_the_same_and_a_conflicting_config_is_refused(manager):
    first = manager.circuit_breaker("market_data")
    assert manager.circuit_breaker("market_data") is first
    assert manager.circuit_breaker("market_data", CircuitBreakerConfig()) is first
    with pytest.raises(ConfigError, match="market_data"):
        manager.circuit_breaker("market_data", CircuitBreakerConfig(failure_threshold=9))


def test_what_is_registered_later_applies_to_functions_protected_earlier(manager):
    @manager.protect("api_call")
    def fetch():
        raise ConnectionError("down")

    manager.register_retry_policy("api_call", RetryPolicy(max_retries=0))
    manager.register_circuit_breaker("api_call", CircuitBreakerConfig(failure_threshold=1))
    with pytest.raises(ConnectionError):
        fetch()
    with pytest.raises(CircuitOpenError):
        fetch()


def test_a_bulkhead_and_a_rate_limiter_guard_an_operation(manager):
    manager.register_retry_policy("job", RetryPolicy(max_retries=0))
    manager.register_rate_limiter("job", RateLimiter("job", 1.0, burst=1, clock=ManualClock()))
    assert manager.execute_with_retry("job", lambda: 1) == 1
    with pytest.raises(RateLimitExceeded):
        manager.execute_with_retry("job", lambda: 1)
    bulkhead = Bulkhead("one", 1)
    manager.register_bulkhead("narrow", bulkhead)
    with bulkhead, pytest.raises(BulkheadFullError):
        manager.execute_with_retry("narrow", lambda: 1)
    assert manager.execute_with_retry("narrow", lambda: 1) == 1


def test_a_registered_fallback_answers_and_is_never_a_success_of_the_dependency(manager):
    manager.register_retry_policy("job", NO_WAIT)
    manager.register_circuit_breaker("job", CircuitBreakerConfig(failure_threshold=10))
    manager.register_fallback("job", "stale")
    result = manager.execute_with_recovery("job", down)
    assert (result.success, result.value, result.fallback_used, result.recovered) == (True, "stale", True, False)
    counts = manager.monitor.operations()["job"]
    assert (counts["calls"], counts["failures"], counts["fallbacks"], counts["successes"]) == (1, 1, 1, 0)
    assert manager.circuit_breaker("job").stats.failures == 3
    assert len(manager.errors) == 1


def test_a_fallback_of_one_call_receives_the_error(manager):
    manager.register_retry_policy("job", NO_WAIT)
    result = manager.execute_with_recovery("job", down, fallback=lambda error: f"instead of {error}")
    assert result.value == "instead of down"


def test_arguments_reach_the_function(manager):
    assert manager.execute_with_retry("job", lambda *args, **kwargs: (args, kwargs), 1, fn=2, name=3) == (
        (1,), {"fn": 2, "name": 3},
    )  # fmt: skip


def test_the_context_names_the_operation_and_has_its_deadline(manager):
    manager.register_timeout("job", 5.0, total=9.0)
    seen = manager.execute_with_retry("job", lambda: (current().operation, current().remaining()))
    assert seen == ("job", 5.0)


def test_submit_gives_a_future_and_the_call_is_active_meanwhile(manager):
    started, release = threading.Event(), threading.Event()

    def work():
        started.set()
        release.wait(10)
        return "done"

    future = manager.submit("job", work)
    assert started.wait(5)
    assert [active["kind"] for active in manager.status()["active"]] == ["job"]
    release.set()
    assert future.result(5) == "done"


def test_many_calls_are_counted_exactly():
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("job", RetryPolicy(max_retries=1, base_delay=0.0))
        outcomes = ["ok"] * 5 + ["retry"] * 3 + ["fail"] * 2

        def work(outcome, state):
            state.append(1)
            if outcome == "fail" or (outcome == "retry" and len(state) == 1):
                raise ConnectionError(outcome)

        def calls():
            for outcome in outcomes * 5:
                manager.execute_with_recovery("job", work, outcome, [])

        threads = [threading.Thread(target=calls) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = manager.monitor.operations()["job"]
        assert (counts["calls"], counts["successes"], counts["failures"]) == (400, 320, 80)
        assert counts["retries"] == 200
        assert counts["success_rate"] == 0.8
        assert len(manager.errors) == 80
        assert "80 errors out of 400" in manager.errors.summary()


def test_the_status_is_plain_json_with_its_keys(manager):
    manager.register_circuit_breaker("job")
    manager.execute_with_recovery("job", down)
    status = json.loads(json.dumps(manager.status()))
    assert {"breakers", "operations", "active", "resources", "errors", "alerts", "abandoned"} <= set(status)
    assert status["breakers"]["job"]["state"] in {"closed", "open"}
    assert status["operations"]["job"]["calls"] == 1
    assert status["active"] == []


def test_a_rejected_call_is_counted_apart(manager):
    manager.circuit_breaker("job").force_open()
    with pytest.raises(CircuitOpenError):
        manager.execute_with_retry("job", lambda: 1)
    counts = manager.monitor.operations()["job"]
    assert (counts["calls"], counts["rejections"], counts["failures"]) == (1, 1, 0)


def test_a_timeout_is_also_a_failure():
    release = threading.Event()
    with ErrorRecoveryManager() as manager:
        manager.register_timeout("slow", 0.05)
        with pytest.raises(DeadlineExceeded):
            manager.execute_with_retry("slow", release.wait, 10)
        counts = manager.monitor.operations()["slow"]
        assert (counts["timeouts"], counts["failures"]) == (1, 1)
        assert manager.status()["abandoned"] == {"slow": 1}
        release.set()


def test_a_closed_manager_refuses_and_a_breaker_handed_out_works_on():
    manager = ErrorRecoveryManager()
    breaker = manager.circuit_breaker("job")
    manager.close()
    manager.close()
    with pytest.raises(ShutdownInProgress):
        manager.execute_with_retry("job", lambda: 1)
    del manager
    gc.collect()
    assert breaker.call(lambda: 2) == 2


def test_an_unclosed_manager_is_freed_with_a_warning():
    manager = ErrorRecoveryManager()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del manager
        gc.collect()
    assert any(issubclass(entry.category, ResourceWarning) and "unclosed" in str(entry.message) for entry in caught)


def test_closing_cancels_what_does_not_end_within_the_grace():
    manager = ErrorRecoveryManager()
    started, cancelled = threading.Event(), threading.Event()

    def work():
        started.set()
        try:
            resilience.sleep(60.0)
        except resilience.OperationCancelled:
            cancelled.set()
            raise

    future = manager.submit("job", work)
    assert started.wait(5)
    manager.close(grace=0.05)
    with pytest.raises((resilience.OperationCancelled, ShutdownInProgress)):
        future.result(5)
    assert cancelled.wait(5)


def test_protecting_asynchronous_code_is_refused(manager):
    async def fetch():
        return 1

    with pytest.raises(TypeError, match="blocking"):
        manager.protect("api_call")(fetch)
    with pytest.raises(TypeError, match="coroutine"):
        manager.execute_with_retry("api_call", fetch)


def test_an_isolation_of_one_function_overrides_that_of_the_operation(manager):
    here = threading.get_ident()
    assert manager.protect("job", isolation="caller")(threading.get_ident)() == here
    assert manager.protect("job")(threading.get_ident)() != here
    with pytest.raises(ConfigError):
        manager.protect("job", isolation="asyncio")


def test_one_line_protects_a_function():
    @resilience.protect("api_call")
    def double(value):
        return 2 * value

    assert double(4) == 8
    assert resilience.default_manager().monitor.operations()["api_call"]["calls"] >= 1


def test_threads_that_ask_for_the_default_manager_at_once_get_the_same(monkeypatch):
    from resilience import manager as module

    made, known = [], threading.Event()

    class Slow(ErrorRecoveryManager):
        def __init__(self):
            super().__init__()
            made.append(self)
            known.wait(30)

    monkeypatch.setattr(module, "_default", {})
    monkeypatch.setattr(module, "ErrorRecoveryManager", Slow)
    ask, got = module.default_manager.__wrapped__, []  # no cache: all of them ask first
    threads = [threading.Thread(target=lambda: got.append(ask())) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(made) == 3)
    known.set()
    for thread in threads:
        thread.join(30)
    assert len(got) == 3
    assert len(set(got)) == 1
    assert [manager.status()["closed"] for manager in made].count(False) == 1
    got[0].close()


@pytest.mark.parametrize(
    ("isolation", "module"), [("thread", "resilience.workers.threads"), ("process", "resilience.workers.processes")]
)
def test_first_calls_at_once_share_one_set_of_workers(manager, monkeypatch, isolation, module):
    kind = {"thread": "ThreadWorkers", "process": "ProcessWorkers"}[isolation]
    real, made, others = getattr(importlib.import_module(module), kind), [], []

    def slow(*args, **kwargs):
        made.append(real(*args, **kwargs))
        if len(made) == 1:  # the second one asks while the first set is made
            others.append(threading.Thread(target=operation.pipeline, args=(isolation,)))
            others[0].start()
            others[0].join(0.2)
        return made[-1]

    operation = manager.operation("job")
    monkeypatch.setattr(f"{module}.{kind}", slow)
    operation.pipeline(isolation)
    others[0].join(30)
    assert len(made) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_shutdown_that_begins_in_a_forked_child_reaches_the_functions_protected_before():
    with ErrorRecoveryManager() as manager:
        protected = manager.protect("job", isolation="caller")(int)
        protected()  # from now on in the express lane
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lifecycle.begin_shutdown()  # as a SIGTERM does
                protected()
            except ShutdownInProgress:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert protected() == 0


def test_a_ctrl_c_during_close_cuts_the_wait_for_calls_short_and_nothing_else(monkeypatch):
    class Interrupting(SystemClock):
        def wait(self, condition, timeout):
            raise KeyboardInterrupt

    cleaned, store, outcome = [], MemoryStore(), []
    manager = ErrorRecoveryManager(store=store)
    store.users = weakref.WeakSet([manager])  # as of one that was opened for a URL
    manager.resources.register_resource("file", ResourceType.FILE, lambda: cleaned.append("file"))
    gate = Gate()
    caller = threading.Thread(target=lambda: outcome.append(manager.execute_with_recovery("job", gate).error))
    caller.start()
    assert gate.arrived()
    monkeypatch.setattr("resilience.timeouts.SYSTEM", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        manager.close()
    caller.join(30)
    gate.open()
    assert [type(error) for error in outcome] == [OperationCancelled]
    assert cleaned == ["file"]
    assert store.closed


@pytest.mark.parametrize("name", ["known", "new"])
def test_what_is_submitted_after_close_is_refused_and_starts_no_thread(name, new_threads):
    manager = ErrorRecoveryManager()
    assert manager.submit("known", int).result(30) == 0
    manager.close()
    begun = new_threads()
    with pytest.raises(ShutdownInProgress):
        manager.submit(name, int)
    assert begun() == []


def test_what_is_submitted_in_the_moment_of_close_is_refused(manager, monkeypatch):
    manager.submit("job", int).result(30)
    workers = manager._submitters["job"]
    real = workers.submit
    monkeypatch.setattr(workers, "submit", lambda *args: manager.close() or real(*args))
    with pytest.raises(ShutdownInProgress):
        manager.submit("job", int)


def test_the_thread_that_tells_events_ends_with_its_manager(new_threads):
    begun, log = new_threads(), EventLog()
    manager = ErrorRecoveryManager()
    manager.events.subscribe(log, ("degraded", "restored"))
    manager.enable_degradation_mode()
    eventually(lambda: "resilience-events" in begun())
    manager.close()
    manager.disable_degradation_mode()  # late news are told all the same
    eventually(lambda: log.kinds() == ["degraded", "restored"] and begun() == [], within=30)


@pytest.mark.parametrize("notes", [[1, None], None, "text"])
def test_notes_that_are_none_take_no_error_away(manager, notes):
    error = ZeroDivisionError("wrong")
    error.__notes__ = notes
    with pytest.raises(ZeroDivisionError):
        manager.execute_with_retry("job", Flaky([error]))


def test_critical_marks_an_operation_also_without_decorating(manager):
    manager.protect("payments", critical=True)
    assert manager.operation("payments").critical


def test_update_config_reaches_operations_that_live(manager):
    assert manager.operation("api_call").parts.timeout == 10
    manager.timeouts.update_config(api_call=4.0)
    assert manager.operation("api_call").parts.timeout == 4.0


def test_a_submitted_call_is_no_attempt_of_the_fan_out_it_is_submitted_in():
    from resilience import fan_out
    from resilience.core.ambient import attempt_gate

    with ErrorRecoveryManager() as manager:
        result = fan_out(lambda item: manager.submit("other", attempt_gate.get).result(30), [1])
        inside = fan_out(lambda item: attempt_gate.get() is not None, [1])
    assert result.values == [None]
    assert inside.values == [True]


def test_degradation_mode_is_told_once_each_way():
    with ErrorRecoveryManager() as manager:
        log = EventLog()
        manager.events.subscribe(log)
        for switch in (manager.enable_degradation_mode, manager.disable_degradation_mode):
            switch()
            switch()
        assert manager.events.flush(5.0)
    assert log.kinds() == ["degraded", "restored"]
    assert not manager.in_degradation_mode


def test_a_recovered_call_has_exactly_one_of_value_and_error(manager):
    def value(error):
        return f"instead of {error}"

    good = manager.execute_with_recovery("job", lambda: None)
    assert (good.success, good.value, good.error, good.attempts, good.fallback_used) == (True, None, None, 1, False)
    saved = manager.execute_with_recovery("job", down, fallback=value)
    assert (saved.success, saved.value, saved.error) == (True, "instead of down", None)
    assert saved.fallback_used
    assert not saved.recovered
    bad = manager.execute_with_recovery("job", down)
    assert (bad.success, bad.value) == (False, None)
    assert isinstance(bad.error, ConnectionError)
    assert bad.attempts == len(bad.history) >= 1
    assert bad.history.operation == "job"
    with pytest.raises(KeyboardInterrupt):
        manager.execute_with_recovery("job", raise_interrupt)


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("retries", [0, 2])
def test_the_final_error_names_its_operation_in_one_note(manager, retries):
    manager.register_retry_policy("x", RetryPolicy(max_retries=retries, base_delay=0.001))
    with pytest.raises(ConnectionError) as caught:
        manager.execute_with_retry("x", Flaky(9))
    assert ["'x'" in note for note in caught.value.__notes__].count(True) == 1


@pytest.mark.parametrize("inside", ["timeouts._lock", "monitor._lock", "monitor._counting", "monitor.reader._lock",
                                    "errors._lock", "ledger"])  # fmt: skip
def test_a_signal_handler_may_ask_for_the_status_and_call_in_the_middle_of_a_call(inside):
    with ErrorRecoveryManager() as manager:
        lock = LEDGER._lock if inside == "ledger" else operator.attrgetter(inside)(manager)
        asked = []

        def interrupted():
            with lock:  # as if the handler, or a finalizer, ran while its thread was inside
                asked.append(manager.execute_with_recovery("job", down).error)
                asked.append(manager.status()["operations"].keys())
                asked.append(manager.monitor.report()["health"])

        caller = threading.Thread(target=interrupted, daemon=True)
        caller.start()
        caller.join(10)
        assert not caller.is_alive()
        assert len(asked) == 3
