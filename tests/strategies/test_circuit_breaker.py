"""What a breaker does for those who call it, told with a clock that moves by hand."""

import inspect
import logging

import pytest

from resilience.core.errors import (
    BulkheadFullError,
    CircuitOpenError,
    ConfigError,
    DeadlineExceeded,
    OperationCancelled,
    OutcomeUnknown,
)
from resilience.core.events import EventStream
from resilience.core.pipeline import Call, Pipeline
from resilience.strategies import breaker_admission
from resilience.strategies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
    CountWindow,
    TimeWindow,
)
from resilience.testing import ManualClock


def down():
    raise ConnectionError("down")


def fail(breaker, error=ConnectionError, times=1):
    for _ in range(times):
        with pytest.raises(error):
            breaker.call(raising, error("down"))


def raising(error):
    raise error


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(params=[True, False], ids=["gil", "free-threaded"])
def any_build(request, monkeypatch):
    """Both ways to count: by the token, and under the lock as builds without the GIL must."""
    monkeypatch.setattr(breaker_admission, "HAS_GIL", request.param)


def opened(clock, **config):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1, timeout=10.0, **config), clock=clock)
    breaker.acquire().failure()
    return breaker


# -- closed


@pytest.mark.usefixtures("any_build")
def test_failures_in_a_row_open_it_and_a_success_between_starts_the_row_anew(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=3), clock=clock)
    fail(breaker, times=2)
    assert breaker.stats.failures_in_a_row == 2
    assert breaker.call(lambda: 7) == 7
    assert breaker.stats.failures_in_a_row == 0
    fail(breaker, times=2)
    assert breaker.state is CircuitState.CLOSED
    fail(breaker)
    assert breaker.state is CircuitState.OPEN
    assert breaker.stats.opened_at == 0.0


@pytest.mark.parametrize(("pause", "state"), [(299.9, CircuitState.OPEN), (300.0, CircuitState.CLOSED)])
def test_a_row_is_forgotten_once_its_last_failure_is_reset_timeout_ago(clock, pause, state):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2), clock=clock)
    fail(breaker)
    clock.advance(pause)
    fail(breaker)
    assert breaker.state is state


def test_without_reset_timeout_a_row_is_never_forgotten(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2, reset_timeout=None), clock=clock)
    fail(breaker)
    clock.advance(1e9)
    fail(breaker)
    assert breaker.state is CircuitState.OPEN


@pytest.mark.usefixtures("any_build")
@pytest.mark.parametrize("window", [CountWindow(10), TimeWindow(60.0)])
def test_with_a_window_rates_decide_once_there_are_enough_calls(clock, window):
    config = CircuitBreakerConfig(failure_threshold=1, window=window, minimum_calls=4)
    breaker = CircuitBreaker("x", config, clock=clock)
    fail(breaker)
    breaker.call(int)
    fail(breaker)
    assert breaker.state is CircuitState.CLOSED  # three calls only
    breaker.call(int)
    assert breaker.state is CircuitState.CLOSED  # half of four failed, but a fast success never opens
    assert breaker.stats.failure_rate == 0.5
    fail(breaker)
    assert breaker.state is CircuitState.OPEN


def test_a_time_window_forgets_what_is_older_than_itself(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(window=TimeWindow(10.0), minimum_calls=2), clock=clock)
    fail(breaker)
    clock.advance(10.0)
    fail(breaker)
    assert breaker.state is CircuitState.CLOSED
    clock.advance(9.0)
    fail(breaker)
    assert breaker.state is CircuitState.OPEN


@pytest.mark.usefixtures("any_build")
def test_slow_calls_open_it_by_their_rate(clock):
    config = CircuitBreakerConfig(
        window=CountWindow(4), minimum_calls=4, slow_call_duration=2.0, slow_call_rate=0.5, failure_rate=None
    )
    breaker = CircuitBreaker("x", config, clock=clock)
    for seconds in (2.0, 1.9, 0.0):
        breaker.call(clock.advance, seconds)
    assert breaker.state is CircuitState.CLOSED
    breaker.call(clock.advance, 2.5)
    assert breaker.state is CircuitState.OPEN
    assert breaker.stats.slow == 2


def test_a_call_that_timed_out_is_a_failure_and_slow(clock):
    config = CircuitBreakerConfig(
        window=CountWindow(4), minimum_calls=2, slow_call_duration=60.0, slow_call_rate=1.0, failure_rate=None
    )
    breaker = CircuitBreaker("x", config, clock=clock)
    fail(breaker, DeadlineExceeded, times=2)
    assert (breaker.stats.failures, breaker.stats.slow, breaker.state.value) == (2, 2, "open")


def test_own_time_limits_are_counted_as_slow_also_without_a_limit_for_slow_calls(clock):
    breaker = CircuitBreaker("x", clock=clock)
    fail(breaker)
    for _ in range(2):
        fail(breaker, DeadlineExceeded)
    assert (breaker.stats.failures, breaker.stats.slow) == (3, 2)


# -- open and half-open


@pytest.mark.usefixtures("any_build")
def test_an_open_breaker_refuses_until_timeout_and_says_how_long(clock):
    breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=1, timeout=10.0), clock=clock)
    fail(breaker)
    clock.advance(4.0)
    for call in (breaker.acquire, lambda: breaker.call(int), breaker(lambda: 1), breaker.__enter__):
        with pytest.raises(CircuitOpenError) as caught:
            call()
        error = caught.value
        assert (error.name, error.state, error.retry_after) == ("api", "open", 6.0)
        assert error.last_error == "ConnectionError: down"
        assert "'api' is open, next probe in 6 s" in str(error)
    assert breaker.retry_after() == 6.0
    assert breaker.stats.rejected == 4


def test_reading_changes_nothing_only_the_next_call_moves_on(clock):
    breaker = opened(clock, success_threshold=1)
    clock.advance(10.0)
    assert [breaker.state, breaker.stats.state, breaker.retry_after()] == [CircuitState.OPEN, "open", 0.0]
    assert breaker.call(lambda: breaker.state) is CircuitState.HALF_OPEN
    assert breaker.state is CircuitState.CLOSED
    assert breaker.stats.state_changes == 3


def test_late_results_neither_close_an_open_breaker_nor_lengthen_it(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1, timeout=10.0), clock=clock)
    late = [breaker.acquire() for _ in range(3)]
    breaker.acquire().failure()
    clock.advance(5.0)
    late[0].success()
    late[1].failure()
    late[2].ignore()
    assert (breaker.state, breaker.retry_after()) == (CircuitState.OPEN, 5.0)
    assert breaker.stats.late_results == 3


def test_a_result_of_an_earlier_closed_time_changes_nothing_in_a_later_one(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1, success_threshold=1), clock=clock)

    def fails_late():
        breaker.acquire().failure()
        clock.advance(60.0)
        breaker.acquire().success()
        assert breaker.state is CircuitState.CLOSED
        raise ConnectionError

    with pytest.raises(ConnectionError):
        breaker.call(fails_late)
    assert breaker.state is CircuitState.CLOSED
    assert breaker.stats.late_results == 1


def test_half_open_admits_max_requests_at_once_and_no_more(clock):
    breaker = opened(clock, max_requests=2, success_threshold=3)
    clock.advance(10.0)
    probes = [breaker.acquire(), breaker.acquire()]
    with pytest.raises(CircuitOpenError) as caught:
        breaker.acquire()
    assert (caught.value.state, caught.value.retry_after) == ("half_open", 10.0)
    probes[0].success()
    third = breaker.acquire()
    with pytest.raises(CircuitOpenError):  # two in flight, and three in total are all this phase may have
        breaker.acquire()
    probes[1].success()
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    third.success()
    assert breaker.state is CircuitState.CLOSED


def test_a_success_threshold_above_max_requests_does_not_lock_it_for_ever(clock):
    breaker = opened(clock, max_requests=1, success_threshold=4)
    clock.advance(10.0)
    for _ in range(4):
        assert breaker.call(lambda: breaker.state) is CircuitState.HALF_OPEN
    assert breaker.state is CircuitState.CLOSED


def test_any_failing_probe_opens_it_again_for_the_whole_timeout(clock):
    breaker = opened(clock)
    clock.advance(10.0)
    breaker.acquire().success()
    fail(breaker)
    assert (breaker.state, breaker.retry_after()) == (CircuitState.OPEN, 10.0)


def test_a_slow_probe_is_a_failed_probe_where_slow_calls_count(clock):
    breaker = opened(clock, slow_call_duration=2.0, window=CountWindow(1), minimum_calls=1)
    clock.advance(10.0)
    breaker.acquire().success(duration=2.0)
    assert breaker.state is CircuitState.OPEN


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit, OperationCancelled, ValueError])
def test_a_probe_that_says_nothing_gives_its_permit_back(clock, end):
    breaker = opened(clock, max_requests=1, success_threshold=1)
    clock.advance(10.0)
    for _ in range(5):
        with pytest.raises(end):
            breaker.call(raising, end())
    assert breaker.state is CircuitState.HALF_OPEN
    breaker.call(int)
    assert breaker.state is CircuitState.CLOSED


def test_a_hung_probe_loses_its_place_after_the_lease_and_its_late_answer_changes_nothing(clock):
    breaker = opened(clock, max_requests=1, success_threshold=2, probe_lease=3.0)
    clock.advance(10.0)
    hung = breaker.acquire()
    clock.advance(2.9)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    clock.advance(0.1)
    second = breaker.acquire()  # at once
    hung.failure()
    assert (breaker.state, breaker.stats.late_results) == (CircuitState.HALF_OPEN, 1)
    with pytest.raises(CircuitOpenError):  # the late answer has not freed a second place
        breaker.acquire()
    second.success()
    breaker.call(int)
    assert breaker.state is CircuitState.CLOSED


def test_with_a_timeout_of_zero_probes_have_a_lease_all_the_same(clock):
    breaker = CircuitBreaker(
        "x", CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=0), clock=clock
    )
    fail(breaker)
    assert breaker.call(lambda: 1) == 1
    assert breaker.state is CircuitState.CLOSED


# -- by order


def test_force_open_holds_until_reset(clock):
    breaker = CircuitBreaker("x", clock=clock)
    breaker.force_open("maintenance")
    clock.advance(1e9)
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(int)
    assert (caught.value.state, caught.value.retry_after, breaker.retry_after()) == ("forced_open", None, None)
    assert breaker.stats.reason == "maintenance"
    breaker.reset()
    assert breaker.call(lambda: breaker.state) is CircuitState.CLOSED


def test_force_open_holds_until_the_time_given_and_then_probes(clock):
    clock.advance(100.0)
    breaker = CircuitBreaker("x", clock=clock)
    breaker.force_open(until=clock.monotonic() + 30.0)
    assert breaker.retry_after() == 30.0
    clock.advance(29.9)
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    clock.advance(0.1)
    assert breaker.call(lambda: breaker.state) is CircuitState.HALF_OPEN


@pytest.mark.parametrize("until", ["soon", float("nan"), float("inf"), True])
def test_force_open_refuses_an_end_that_is_no_time(clock, until):
    with pytest.raises(ConfigError) as caught:
        CircuitBreaker("x", clock=clock).force_open(until=until)
    assert caught.value.key == "until"


@pytest.mark.usefixtures("any_build")
def test_disabled_lets_all_through_uncounted(clock):
    breaker = opened(clock)
    before = breaker.stats
    breaker.disable()
    fail(breaker, times=20)
    assert breaker.call(lambda: 1) == 1
    with breaker, breaker.acquire():
        pass
    after = breaker.stats
    for count in ("permitted", "rejected", "successes", "failures", "ignored", "late_results"):
        assert after[count] == before[count]
    assert breaker.state is CircuitState.DISABLED


@pytest.mark.usefixtures("any_build")
def test_metrics_only_counts_and_tells_but_never_refuses(clock, caplog):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2), clock=clock)
    breaker.metrics_only()
    fail(breaker, times=5)
    breaker.call(int)
    stats = breaker.stats
    assert (stats.failures, stats.successes, stats.suppressed, stats.rejected) == (5, 1, 2, 0)
    assert breaker.state is CircuitState.METRICS_ONLY
    assert [record.getMessage().count("would have opened") for record in caplog.records] == [1, 1]


def test_reset_starts_a_generation_also_while_closed(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2), clock=clock)
    old = breaker.acquire()
    fail(breaker)
    breaker.reset()
    old.failure()
    fail(breaker)
    assert breaker.state is CircuitState.CLOSED
    assert (breaker.stats.late_results, breaker.stats.state_changes) == (1, 0)


# -- what counts


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionError("x"), "failures"),
        (RuntimeError("x"), "failures"),
        (DeadlineExceeded(timeout=1.0), "failures"),
        (OutcomeUnknown(), "failures"),
        (DeadlineExceeded(timeout=1.0, ambient=True), "ignored"),
        (OperationCancelled(), "ignored"),
        (BulkheadFullError(name="b"), "ignored"),
        (CircuitOpenError(name="inner"), "ignored"),
        (ValueError("x"), "ignored"),
        (KeyError("x"), "ignored"),
        (PermissionError("x"), "ignored"),
        (KeyboardInterrupt(), "ignored"),
    ],
)
def test_what_counts_without_is_failure(clock, error, outcome):
    breaker = CircuitBreaker("x", clock=clock)
    for _ in range(2):  # the second time its type is known
        with pytest.raises(type(error)):
            breaker.call(raising, error)
    stats = breaker.stats
    assert {name: stats[name] for name in ("failures", "ignored", "successes")} == {
        "failures": 0, "ignored": 0, "successes": 0, outcome: 2,
    }  # fmt: skip


def test_a_call_cut_by_the_ambient_deadline_is_neutral(clock):
    error = OutcomeUnknown()
    error.__cause__ = DeadlineExceeded(ambient=True)
    breaker = CircuitBreaker("x", clock=clock)
    with pytest.raises(OutcomeUnknown):
        breaker.call(raising, error)
    assert breaker.stats.ignored == 1


def test_what_the_caller_was_handling_already_does_not_excuse_the_dependency(clock):
    class Unheard(Exception):
        pass

    def stumbles():
        try:
            raise KeyError
        except KeyError:
            raise Unheard  # noqa: B904  # its context is the point

    breaker = CircuitBreaker("x", clock=clock)
    for _ in range(2):
        try:
            raise ValueError("the caller's own trouble")
        except ValueError:
            fail(breaker, Unheard)
    assert (breaker.stats.failures, breaker.stats.ignored) == (2, 0)
    for _ in range(2):
        with pytest.raises(Unheard):
            breaker.call(stumbles)  # here the context is the function's own
    assert (breaker.stats.failures, breaker.stats.ignored) == (2, 2)


def test_is_failure_decides_on_errors_and_results_alike(clock):
    verdicts = {"bad": True, "good": False, "whatever": None}
    config = CircuitBreakerConfig(failure_threshold=9, is_failure=lambda exc, result: verdicts[str(exc or result)])
    breaker = CircuitBreaker("x", config, clock=clock)
    for word in verdicts:
        assert breaker.call(str, word) == word
        with pytest.raises(RuntimeError):
            breaker.call(raising, RuntimeError(word))
    stats = breaker.stats
    assert (stats.failures, stats.successes, stats.ignored) == (2, 2, 2)


def test_is_failure_is_not_asked_about_what_blames_nobody(clock):
    config = CircuitBreakerConfig(failure_threshold=1, is_failure=lambda exc, result: exc is not None)
    breaker = CircuitBreaker("x", config, clock=clock)
    for error in (OperationCancelled(), BulkheadFullError(), DeadlineExceeded(ambient=True), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            breaker.call(raising, error)
    assert breaker.stats.ignored == 4


def test_an_is_failure_that_raises_gives_the_permit_back(clock):
    breaker = opened(clock, max_requests=1, success_threshold=1, is_failure=lambda exc, result: 1 / 0)
    clock.advance(10.0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            breaker.call(int)
        with pytest.raises(ZeroDivisionError):
            breaker.call(down)
    assert (breaker.state, breaker.stats.in_flight) == (CircuitState.HALF_OPEN, 0)


def test_a_kept_breaker_holds_no_frames_of_the_last_error(clock):
    import gc
    import weakref

    class Big:
        pass

    def fails():
        big = Big()
        watched.append(weakref.ref(big))
        raise ConnectionError("down")

    watched = []
    breaker = CircuitBreaker("x", clock=clock)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            breaker.call(fails)
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    assert breaker.stats.last_error == "ConnectionError: down"


def test_an_error_that_cannot_be_shown_is_counted_like_any_other(clock):
    class Mute(ConnectionError):
        def __str__(self):
            raise ZeroDivisionError

    breaker = CircuitBreaker("x", clock=clock)
    fail(breaker, Mute, times=2)
    breaker.acquire().failure(Mute())
    assert (breaker.stats.failures, breaker.stats.last_error) == (3, "Mute: (its message cannot be shown)")


# -- forms of calling


def test_the_decorator_keeps_the_signature(clock):
    @CircuitBreaker("x", clock=clock)
    def fetch(url: str, *, timeout: float = 1.0) -> bytes:
        """Fetches."""
        return url.encode()

    assert str(inspect.signature(fetch)) == "(url: str, *, timeout: float = 1.0) -> bytes"
    assert (fetch.__name__, fetch.__doc__, fetch("a")) == ("fetch", "Fetches.", b"a")


def test_what_runs_after_it_returns_is_refused_with_advice():
    async def coroutine():
        pass

    async def async_generator():
        yield

    def generator():
        yield

    breaker = CircuitBreaker("x")
    for fn, advice in ((coroutine, "asyncio.run"), (async_generator, "asyncio.run"), (generator, "list")):
        with pytest.raises(TypeError, match=advice):
            breaker(fn)


@pytest.mark.usefixtures("any_build")
def test_a_coroutine_returned_through_call_is_closed_and_refused():
    async def coroutine():
        pass

    made = []

    def make():
        made.append(coroutine())
        return made[0]

    breaker = CircuitBreaker("x")
    with pytest.raises(TypeError, match="blocking"):
        breaker.call(make)
    assert inspect.getcoroutinestate(made[0]) == "CORO_CLOSED"
    assert (breaker.stats.successes, breaker.stats.ignored) == (0, 1)


@pytest.mark.usefixtures("any_build")
def test_with_blocks_nest_and_count_how_they_end(clock):
    breaker, other = CircuitBreaker("x", clock=clock), CircuitBreaker("y", clock=clock)
    with pytest.raises(ConnectionError):
        with breaker:
            with other, breaker:
                pass
            raise ConnectionError
    assert (breaker.stats.successes, breaker.stats.failures) == (1, 1)
    assert (other.stats.successes, other.stats.permitted) == (1, 1)


def test_leaving_a_with_block_in_another_thread_says_what_to_do():
    with pytest.raises(RuntimeError, match="acquire"):
        CircuitBreaker("x").__exit__(None, None, None)


def test_a_permit_is_answered_once(clock):
    breaker = CircuitBreaker("x", clock=clock)
    permit = breaker.acquire()
    assert breaker.stats.permitted == 1
    permit.success()
    permit.failure()
    permit.ignore()
    with permit:
        pass
    stats = breaker.stats
    assert (stats.successes, stats.failures, stats.ignored, stats.permitted) == (1, 0, 0, 1)


def test_a_permit_counts_what_it_is_told_and_judges_as_a_context_manager(clock):
    breaker = CircuitBreaker("x", clock=clock)
    breaker.acquire().failure(ValueError("told"))
    with pytest.raises(ValueError), breaker.acquire():
        raise ValueError
    with pytest.raises(ConnectionError), breaker.acquire():
        raise ConnectionError
    with breaker.acquire() as permit:
        permit.failure()
    stats = breaker.stats
    assert (stats.failures, stats.ignored, stats.successes) == (3, 1, 0)


# -- in a pipeline


def test_a_pipeline_counts_in_its_express_lane_and_out_of_it(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2, success_threshold=1), clock=clock)
    pipeline = Pipeline(breaker, name="p")
    assert pipeline.call(lambda: 1) == 1
    for _ in range(2):
        with pytest.raises(ConnectionError):
            pipeline.call(down)
    with pytest.raises(CircuitOpenError):
        pipeline.call(down)
    clock.advance(60.0)
    assert pipeline.call(lambda: 2) == 2
    stats = breaker.stats
    assert (stats.permitted, stats.successes, stats.failures, stats.rejected) == (4, 2, 2, 1)
    assert breaker.state is CircuitState.CLOSED


def test_a_failing_result_and_a_fallback_are_no_successes(clock):
    breaker = CircuitBreaker("x", clock=clock)
    call = Call(int)
    call.failing_result = lambda result: result == 0
    assert breaker.run(lambda call: call.fn(), call) == 0
    saved = Call(int)

    def fall_back(call):
        call.fallback_used = True
        return "stale"

    assert breaker.run(fall_back, saved) == "stale"
    stats = breaker.stats
    assert (stats.failures, stats.ignored, stats.successes) == (1, 1, 0)
    assert stats.last_error == "a failing result"


# -- news


def test_each_change_of_state_is_one_event_and_each_opening_one_warning(clock, caplog):
    events, told = EventStream(), []
    events.subscribe(told.append, ["breaker_state_changed"])
    config = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=10.0)
    breaker = CircuitBreaker("api", config, clock=clock, events=events)
    fail(breaker, times=2)
    clock.advance(10.0)
    breaker.call(int)
    breaker.reset()  # closed already: no change
    breaker.force_open("maintenance")
    breaker.disable()
    breaker.metrics_only()
    breaker.reset()
    assert events.flush(5.0)
    assert [(event.name, event.old, event.new, event.generation) for event in told] == [
        ("api", "closed", "open", 2),
        ("api", "open", "half_open", 3),
        ("api", "half_open", "closed", 4),
        ("api", "closed", "forced_open", 6),
        ("api", "forced_open", "disabled", 7),
        ("api", "disabled", "metrics_only", 8),
        ("api", "metrics_only", "closed", 9),
    ]
    assert [event.reason for event in told][::3] == ["2 failures in a row", "maintenance", "reset"]
    assert [type(event.old) for event in told] == [str] * 7
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.name, record.getMessage()) for record in warnings] == [
        ("resilience.breaker", "breaker 'api' is open: 2 failures in a row (last error: ConnectionError: down)"),
        ("resilience.breaker", "breaker 'api' is forced_open: maintenance (last error: ConnectionError: down)"),
    ]


def test_a_raising_log_handler_or_listener_changes_nothing(clock):
    class Broken(logging.Handler):
        def handle(self, record):
            raise ZeroDivisionError

    def listener(event):
        raise ZeroDivisionError

    events, handler = EventStream(), Broken()
    events.subscribe(listener)
    logging.getLogger("resilience.breaker").addHandler(handler)
    try:
        breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=1), clock=clock, events=events)
        fail(breaker)
        assert breaker.state is CircuitState.OPEN
        assert events.flush(5.0)
    finally:
        logging.getLogger("resilience.breaker").removeHandler(handler)


def test_the_snapshot_is_ready_for_json(clock):
    import json

    breaker = opened(clock)
    data = json.loads(json.dumps(breaker.snapshot(), allow_nan=False))
    assert (data["state"], data["failures"], data["retry_after"]) == ("open", 1, 10.0)
    assert dict(breaker.stats) == breaker.snapshot() == CircuitBreaker.snapshot(breaker)


def test_100_000_ignored_errors_and_1_000_interrupts_change_no_count(clock):
    breaker = CircuitBreaker("x", CircuitBreakerConfig(failure_threshold=2), clock=clock)
    fail(breaker)
    error = ValueError("the caller's own")
    for _ in range(100_000):
        try:
            breaker.call(raising, error)
        except ValueError:
            error.__traceback__ = None
    for _ in range(1_000):
        with pytest.raises(KeyboardInterrupt):
            breaker.call(raising, KeyboardInterrupt())
    stats = breaker.stats
    assert (stats.failures, stats.successes, stats.failures_in_a_row, stats.state) == (1, 0, 1, "closed")
    fail(breaker)
    assert breaker.state is CircuitState.OPEN
