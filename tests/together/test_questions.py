"""Section 8 of the contract, question by question."""

import threading

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    DeadlineExceeded,
    ErrorCategory,
    ErrorRecoveryManager,
    OperationCancelled,
    OutcomeUnknown,
    Pipeline,
    RateLimitExceeded,
    RetryAfterTooLong,
    RetryPolicy,
    ShutdownInProgress,
    Timeout,
    WorkersExhausted,
    classify,
    deadline,
    fan_out,
    history,
    sleep,
)
from resilience.testing import ManualClock

NO_WAIT = RetryPolicy(max_retries=2, base_delay=0.0, jitter=False)


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        yield made


def raising(error):
    def fn():
        raise error

    return fn


# -- Where does a call run? ------------------------------------------------------------------------------------


def test_a_named_operation_runs_on_a_worker_thread_since_it_has_a_timeout(manager):
    here = threading.get_ident()
    assert manager.execute_with_retry("api_call", threading.get_ident) != here
    assert manager.execute_with_retry("a name of my own", threading.get_ident) != here


def test_without_a_timeout_a_call_runs_in_the_callers_thread(manager):
    here = threading.get_ident()
    assert RetryPolicy().call(threading.get_ident) == here
    assert CircuitBreaker("b").call(threading.get_ident) == here
    assert Pipeline(RetryPolicy(), CircuitBreaker("b")).call(threading.get_ident) == here
    assert Pipeline(Timeout(5.0)).call(threading.get_ident) != here
    assert Pipeline(Timeout(5.0, isolation="caller")).call(threading.get_ident) == here
    manager.register_timeout("untimed", None)
    assert manager.execute_with_retry("untimed", threading.get_ident) == here


# -- Which timeout? --------------------------------------------------------------------------------------------


def test_an_operations_own_timeout_is_a_failure_for_its_breaker():
    breaker = CircuitBreaker("own", CircuitBreakerConfig(failure_threshold=1))
    release = threading.Event()
    with pytest.raises(DeadlineExceeded):
        Pipeline(breaker, Timeout(0.05)).call(release.wait, 10)
    release.set()
    assert str(breaker.state) == "open"


def test_an_ambient_deadline_is_neutral_for_the_breaker():
    clock = ManualClock()
    breaker = CircuitBreaker("ambient", CircuitBreakerConfig(failure_threshold=1), clock=clock)
    with deadline(1.0, clock=clock), pytest.raises(DeadlineExceeded):
        breaker.call(sleep, 5.0)
    assert str(breaker.state) == "closed"
    assert breaker.stats.failures == 0


def test_a_registered_timeout_bounds_one_attempt_and_total_the_whole_call(manager):
    clock = ManualClock()
    with ErrorRecoveryManager(clock=clock) as timed:
        timed.register_timeout("job", 50.0, total=3.0)
        every_second = RetryPolicy(max_retries=None, base_delay=1.0, backoff_factor=1.0, jitter=False)
        timed.register_retry_policy("job", every_second)
        calls = []

        def fails():
            calls.append(clock.monotonic())
            raise ConnectionError("down")

        with pytest.raises(ConnectionError):
            timed.execute_with_retry("job", fails)
    assert calls == [0.0, 1.0, 2.0]


# -- Is a timed-out attempt retried? ---------------------------------------------------------------------------


def test_a_timed_out_attempt_on_a_thread_is_never_retried():
    calls, release = [], threading.Event()

    def hangs():
        calls.append(1)
        release.wait(10)

    with pytest.raises(DeadlineExceeded) as caught:
        Pipeline(NO_WAIT, Timeout(0.05)).call(hangs)
    release.set()
    assert calls == [1]
    assert not caught.value.reclaimed


# -- Unknown exceptions ----------------------------------------------------------------------------------------


class Unheard(Exception):
    pass


@pytest.mark.parametrize("error", [RuntimeError("x"), Exception("x"), Unheard("x")], ids=lambda e: type(e).__name__)
def test_unknown_exceptions_are_transient_and_retried(error):
    assert classify(error).category == ErrorCategory.TRANSIENT
    assert classify(error).retryable


@pytest.mark.parametrize(
    "kind",
    [TypeError, NameError, AttributeError, AssertionError, LookupError, KeyError, NotImplementedError, ValueError],
)
def test_programming_errors_are_logic_and_exactly_one_call(kind):
    calls = []

    def fails():
        calls.append(1)
        raise kind("bug")

    with pytest.raises(kind):
        NO_WAIT.call(fails)
    assert calls == [1]
    assert classify(kind("bug")).category == ErrorCategory.LOGIC


@pytest.mark.parametrize(
    "error",
    [CircuitOpenError(name="b"), RateLimitExceeded(name="r"), WorkersExhausted(name="w"), ShutdownInProgress(),
     DeadlineExceeded(), OperationCancelled(), OutcomeUnknown(), RetryAfterTooLong(retry_after=5.0)],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_each_of_our_own_errors_has_a_row(error):
    verdict = classify(error)
    assert type(error).__name__ in verdict.reason
    if isinstance(error, (OutcomeUnknown, ShutdownInProgress, OperationCancelled)):
        assert not verdict.retryable


# -- What does a breaker count? --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "counted"),
    [(ConnectionError("down"), 1), (RuntimeError("x"), 1), (MemoryError(), 1), (ValueError("bad"), 0),
     (OperationCancelled(), 0), (CircuitOpenError(name="inner"), 0)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_breaker_counts_every_exception_but_permanent_logic_rejections_and_cancel(error, counted):
    breaker = CircuitBreaker("counts")
    with pytest.raises(type(error)):
        breaker.call(raising(error))
    assert breaker.stats.failures == counted


def test_permits_used_directly_count_what_they_are_told():
    breaker = CircuitBreaker("told")
    breaker.acquire().failure(ValueError("the users decision"))
    assert breaker.stats.failures == 1


# -- Attempt 1 fails and opens the breaker, attempt 2 is refused ------------------------------------------------


def test_the_error_of_the_attempt_that_ran_is_raised_with_a_note():
    breaker = CircuitBreaker("opens", CircuitBreakerConfig(failure_threshold=1))
    with pytest.raises(ConnectionError, match="down") as caught:
        Pipeline(NO_WAIT, breaker).call(raising(ConnectionError("down")))
    assert any("opens" in note or "open" in note for note in caught.value.__notes__)
    with pytest.raises(CircuitOpenError):
        Pipeline(NO_WAIT, breaker).call(raising(ConnectionError("down")))


# -- Who owns retries? -----------------------------------------------------------------------------------------


def test_the_outermost_policy_owns_the_retries_of_a_call_tree():
    calls = []

    def fails():
        calls.append(1)
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        NO_WAIT.call(NO_WAIT.call, NO_WAIT.call, fails)
    assert len(calls) == 3


def test_an_inner_policy_keeps_what_the_outer_one_would_not_retry():
    calls = []
    outer = RetryPolicy(max_retries=2, base_delay=0.0, retry_on=(TimeoutError,))

    def fails():
        calls.append(1)
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        outer.call(NO_WAIT.call, fails)
    assert len(calls) == 3


def test_each_item_of_a_fan_out_starts_a_new_tree():
    calls = []

    def fails_once(item):
        calls.append(item)
        if calls.count(item) == 1:
            raise ConnectionError("down")
        return item

    def batch():
        return fan_out(lambda item: NO_WAIT.call(fails_once, item), [1, 2], max_workers=1, min_calls=100).values

    assert NO_WAIT.call(batch) == [1, 2]
    assert sorted(calls) == [1, 1, 2, 2]


# -- Degradation mode, recovered, histories ---------------------------------------------------------------------


def test_degradation_mode_runs_fan_outs_one_at_a_time_and_status_says_so(manager):
    manager.enable_degradation_mode()
    running, most = [], []

    def work(item):
        running.append(item)
        most.append(len(running))
        running.remove(item)

    result = fan_out(work, range(20), max_workers=8, manager=manager)
    assert max(most) == 1
    assert {item.mode for item in result.items} == {"sequential"}
    assert manager.in_degradation_mode
    assert manager.status()["degradation_mode"] is True
    manager.disable_degradation_mode()
    assert manager.status()["degradation_mode"] is False


def test_recovered_means_succeeded_after_at_least_one_retry(manager):
    manager.register_retry_policy("job", NO_WAIT)
    outcomes = iter([ConnectionError("down"), None])

    def work():
        error = next(outcomes)
        if error:
            raise error
        return "fine"

    result = manager.execute_with_recovery("job", work)
    assert (result.success, result.value, result.error) == (True, "fine", None)
    assert result.recovered
    assert result.attempts == 2
    first_time = manager.execute_with_recovery("job", lambda: 1)
    assert not first_time.recovered
    failed = manager.execute_with_recovery("job", raising(ValueError("bug")))
    assert (failed.success, failed.value, failed.recovered) == (False, None, False)
    assert isinstance(failed.error, ValueError)


def test_histories_hold_text_and_no_frames(manager):
    manager.register_retry_policy("job", NO_WAIT)
    with pytest.raises(ConnectionError) as caught:
        manager.execute_with_retry("job", raising(ConnectionError("down")))
    record = history(caught.value)
    assert record.operation == "job"
    assert [attempt.error for attempt in record.attempts] == ["ConnectionError: down"] * 3
    assert record.attempts[0].delay is not None
    assert any("job" in note for note in caught.value.__notes__)


# -- fan_out with an executor -----------------------------------------------------------------------------------


def test_a_given_executor_runs_the_items():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2, thread_name_prefix="given") as pool:
        result = fan_out(lambda item: threading.current_thread().name, range(4), executor=pool)
    assert all(name.startswith("given") for name in result.values)


def test_the_rate_of_a_fan_out_counts_finished_attempts_retries_included():
    policy = RetryPolicy(max_retries=1, base_delay=0.0)
    calls = []

    def second_time_lucky(item):
        calls.append(item)
        if calls.count(item) % 2:
            raise ConnectionError("down")
        return item

    result = fan_out(lambda item: policy.call(second_time_lucky, item), range(40), max_workers=2)
    assert len(result.values) == 40
    assert result.degraded  # half of the attempts failed, though every item succeeded
