"""Retry: what is repeated, when, how often, and what comes out in the end."""

import gc
import threading
import weakref

import pytest

from resilience import (
    BulkheadFullError,
    CircuitBreaker,
    DeadlineExceeded,
    EventStream,
    OutcomeUnknown,
    Pipeline,
    Retry,
    RetryPolicy,
    history,
)
from resilience.strategies.retry import FailedResult
from resilience.testing import EventLog, Flaky, ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def plain(retries, **changes):
    return RetryPolicy(**{"max_retries": retries, "base_delay": 1.0, "max_delay": 60.0, "jitter": False, **changes})


# -- what is repeated ------------------------------------------------------------------------------------------


def test_transient_failures_are_repeated_until_one_call_succeeds(clock):
    work = Flaky(2, value=7)
    assert Retry(plain(3), clock=clock).call(work) == 7
    assert work.calls == 3
    assert clock.sleeps == [1.0, 2.0]


@pytest.mark.parametrize("error", [ValueError("bad"), TypeError("bug"), PermissionError(13, "no"), OutcomeUnknown()])
def test_what_is_final_is_exactly_one_call(clock, error):
    work = Flaky([error] * 9)
    with pytest.raises(type(error)) as caught:
        Retry(plain(5), clock=clock).call(work)
    assert work.calls == 1
    assert caught.value is error


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_is_never_repeated(clock, stop):
    work = Flaky([stop()] * 9)
    with pytest.raises(stop):
        Retry(plain(5), clock=clock).call(work)
    assert work.calls == 1


def test_types_and_predicates_say_what_to_retry_and_what_to_give_up_on(clock):
    assert Retry(plain(1, retry_on=ValueError), clock=clock).call(Flaky([ValueError()])) == "ok"
    again = plain(1, retry_on=lambda error: "again" in str(error))
    assert Retry(again, clock=clock).call(Flaky([KeyError("again")])) == "ok"
    with pytest.raises(ConnectionResetError):
        Retry(plain(3, give_up_on=(ConnectionResetError,)), clock=clock).call(Flaky([ConnectionResetError()] * 3))


def test_what_is_not_idempotent_is_repeated_only_when_nothing_was_sent(clock):
    careful = Retry(plain(3, idempotent=False), clock=clock)
    assert careful.call(Flaky([ConnectionRefusedError()])) == "ok"
    with pytest.raises(ConnectionResetError):
        careful.call(Flaky([ConnectionResetError()] * 3))


def test_an_attempt_that_may_still_run_is_not_repeated_unless_allowed(clock):
    lost = [DeadlineExceeded(name="x", reclaimed=False)]
    work = Flaky(lost)
    with pytest.raises(DeadlineExceeded):
        Retry(plain(3), clock=clock).call(work)
    assert work.calls == 1
    assert Retry(plain(3, overlap="allow", retry_on=DeadlineExceeded), clock=clock).call(Flaky(lost)) == "ok"


def test_an_attempt_that_may_still_run_is_repeated_where_that_alone_is_allowed(clock):
    lost = DeadlineExceeded(name="x", reclaimed=False)
    assert Retry(plain(1, overlap="allow"), clock=clock).call(Flaky([lost])) == "ok"


def test_an_outer_deadline_that_has_passed_is_not_an_attempt_to_repeat(clock):
    work = Flaky([DeadlineExceeded(name="x", reclaimed=False, ambient=True)] * 3)
    with pytest.raises(DeadlineExceeded):
        Retry(plain(2, overlap="allow"), clock=clock).call(work)
    assert work.calls == 1


def test_an_unknown_outcome_is_never_repeated_whatever_the_policy_says(clock):
    for wanted in (Exception, OutcomeUnknown, lambda error: True):
        work = Flaky([OutcomeUnknown()] * 3)
        with pytest.raises(OutcomeUnknown):
            Retry(plain(2, retry_on=wanted, overlap="allow"), clock=clock).call(work)
        assert work.calls == 1


def test_a_result_of_what_is_not_idempotent_is_final(clock):
    calls = []
    Retry(plain(3, retry_on_result=lambda value: True, idempotent=False), clock=clock).call(calls.append, 1)
    assert calls == [1]


def test_a_failing_result_is_repeated_and_the_last_one_returned_or_raised(clock):
    results = iter([None, None, 3])
    assert Retry(plain(3, retry_on_result=lambda value: value is None), clock=clock).call(lambda: next(results)) == 3
    never = plain(2, retry_on_result=lambda value: value is None)
    assert Retry(never, clock=clock).call(lambda: None) is None
    with pytest.raises(FailedResult):
        Retry(never.replace(raise_on_result=True), clock=clock).call(lambda: None)


def test_the_failed_result_of_an_inner_policy_is_an_error_like_any_other(clock):
    inner = Retry(plain(0, retry_on_result=lambda value: value is None, raise_on_result=True), clock=clock)
    for outer in (plain(1), plain(1, retry_on_result=lambda value: value is None)):
        with pytest.raises(FailedResult) as caught:
            Retry(outer, clock=clock).call(inner.call, lambda: None)
        assert caught.value.result is None


def test_the_failed_result_of_an_inner_policy_is_raised_also_after_failing_results_of_ones_own(clock):
    inner = FailedResult(result="inner")
    turns = Flaky([None, inner], value=lambda: None)
    with pytest.raises(FailedResult) as caught:
        Retry(plain(1, retry_on_result=lambda value: value is None), clock=clock).call(turns)
    assert caught.value is inner


def test_a_predicate_that_raises_is_not_taken_for_a_failed_call(clock):
    calls = []
    with pytest.raises(ZeroDivisionError):
        Retry(plain(3, retry_on_result=lambda value: 1 / 0), clock=clock).call(calls.append, 1)
    assert calls == [1]


def test_a_failing_result_reaches_the_breaker_as_a_failure(clock):
    breaker = CircuitBreaker("results", clock=clock)
    policy = plain(2, retry_on_result=lambda value: value == "bad")
    Pipeline(policy, breaker, clock=clock).call(lambda: "bad")
    assert breaker.stats.failures == 3


# -- how it ends -----------------------------------------------------------------------------------------------


def test_the_original_error_is_raised_with_its_history_and_notes(clock):
    errors = [ConnectionError("first"), ConnectionError("second"), ConnectionError("third")]
    with pytest.raises(ConnectionError) as caught:
        Retry(plain(2), name="quotes", clock=clock).call(Flaky(errors))
    assert caught.value is errors[2]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    record = history(caught.value)
    first = record.attempts[0]
    assert [attempt.start for attempt in record] == [first.start, first.start + 1.0, first.start + 3.0]
    assert [attempt.error for attempt in record] == [
        "ConnectionError: first", "ConnectionError: second", "ConnectionError: third",
    ]  # fmt: skip
    assert [attempt.delay for attempt in record] == [1.0, 2.0, None]
    assert record.stop_reason == "attempts exhausted"
    assert any("3 attempts" in note and "quotes" in note for note in caught.value.__notes__)


def test_the_last_error_of_an_attempt_that_ran_is_raised_rather_than_a_refusal(clock):
    for refusal in (BulkheadFullError(name="x"), DeadlineExceeded(name="x", phase="queued", reclaimed=True)):
        ran = ConnectionError("ran")
        with pytest.raises(ConnectionError) as caught:
            Retry(plain(2), clock=clock).call(Flaky([ran, refusal, refusal]))
        assert caught.value is ran
        assert any("was not started" in note for note in caught.value.__notes__)
        with pytest.raises(type(refusal)):
            Retry(plain(2), clock=clock).call(Flaky([refusal] * 3))


@pytest.mark.parametrize(
    "protect",
    [lambda policy: policy.call, lambda policy: Retry(policy, clock=ManualClock()).call,
     lambda policy: lambda fn: policy(fn)(), lambda policy: Pipeline(policy).call],
    ids=["policy", "retry", "decorator", "pipeline"],
)  # fmt: skip
def test_what_an_error_held_is_free_as_soon_as_the_error_is(protect):
    class Body:
        pass

    def fails(held):
        raise ConnectionError

    call, body = protect(plain(2, base_delay=0.0)), Body()
    seen = weakref.ref(body)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ConnectionError):
            call(lambda held=body: fails(held))
        del body
        assert seen() is None
    finally:
        gc.enable()


def test_every_attempt_is_told_with_its_duration(clock):
    def slow():
        clock.advance(5.0)
        raise ConnectionError

    with pytest.raises(ConnectionError) as caught:
        Retry(plain(1), clock=clock).call(slow)
    first, second = history(caught.value)
    assert (first.duration, second.duration) == (5.0, 5.0)
    assert second.started - first.started == 6.0


def test_the_context_an_error_was_raised_in_stays_its_own(clock):
    def fails():
        try:
            raise KeyError("inner")
        except KeyError:
            raise ConnectionError("outer")  # noqa: B904  # the implicit context is the subject

    try:
        raise RuntimeError("handled by the caller")
    except RuntimeError:
        with pytest.raises(ConnectionError) as caught:
            Retry(plain(1), clock=clock).call(fails)
    assert isinstance(caught.value.__context__, KeyError)


def test_events_tell_each_failure_the_waits_and_the_end(clock):
    events, log = EventStream(), EventLog()
    events.subscribe(log)
    Retry(plain(3), name="job", clock=clock, events=events).call(Flaky(1))
    with pytest.raises(ConnectionError):
        Retry(plain(1), name="job", clock=clock, events=events).call(Flaky(9))
    assert events.flush(5)
    assert log.kinds() == [
        "attempt_failed", "retry_scheduled", "recovered",
        "attempt_failed", "retry_scheduled", "attempt_failed", "retries_exhausted",
    ]  # fmt: skip
    assert log.of("retry_scheduled")[0].delay == 1.0


def test_each_retry_is_a_debug_line(clock, caplog):
    caplog.set_level("DEBUG", logger="resilience.retry")
    Retry(plain(1), name="job", clock=clock).call(Flaky(1))
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "job: attempt 1 failed (ConnectionError: failure 1), next in 1.000 s" in caplog.text


def test_threads_that_share_a_policy_never_mix_their_counts():
    policy, wrong = plain(3, base_delay=0.0), []

    def work():
        for _ in range(50):
            flaky = Flaky(3)
            if policy.call(flaky) != "ok" or flaky.calls != 4:
                wrong.append(flaky.calls)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
