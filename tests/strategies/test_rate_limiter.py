"""What a rate limiter does for those who call it, told with a clock that moves by hand."""

import inspect
import threading

import pytest
import requests

import resilience
from resilience.core import lifecycle
from resilience.core.context import OperationContext
from resilience.core.errors import (
    ConfigError,
    DeadlineExceeded,
    OperationCancelled,
    RateLimitExceeded,
    ShutdownInProgress,
)
from resilience.core.events import EventStream
from resilience.core.pipeline import Pipeline
from resilience.strategies.rate_limiter import RateLimiter
from resilience.testing import EventLog, Gate, ManualClock


@pytest.fixture
def clock():
    return ManualClock(1000.0)


def passes(limiter, count):
    """How many of `count` calls at once pass."""
    passed = 0
    for _ in range(count):
        try:
            limiter.acquire()
        except RateLimitExceeded:
            continue
        passed += 1
    return passed


def test_as_many_calls_as_the_rate_pass_at_once_and_the_next_is_refused_with_the_time_to_wait(clock):
    limiter = RateLimiter("api", 10, clock=clock)
    assert passes(limiter, 10) == 10
    with pytest.raises(RateLimitExceeded) as caught:
        limiter.call(pytest.fail, "must not run")
    assert caught.value.name == "api"
    assert caught.value.retry_after == pytest.approx(0.1)
    assert clock.sleeps == []
    clock.advance(caught.value.retry_after + 1e-9)
    assert limiter.call(lambda: "ok") == "ok"


def test_a_refused_call_takes_no_place(clock):
    limiter = RateLimiter("api", 1, clock=clock)
    assert passes(limiter, 100) == 1
    assert limiter.retry_after() == pytest.approx(1.0)


@pytest.mark.parametrize(("rate", "per", "burst", "at_once"), [(10, 1.0, 3, 3), (0.5, 1.0, None, 1), (90, 60.0, 2, 2)])
def test_the_burst_is_what_passes_at_once(clock, rate, per, burst, at_once):
    limiter = RateLimiter("x", rate, per, burst, clock=clock)
    assert passes(limiter, 200) == at_once
    clock.advance(per / rate + 1e-9)
    assert passes(limiter, 200) == 1


def test_retry_after_asks_without_taking_a_place(clock):
    limiter = RateLimiter("x", 1, clock=clock)
    assert [limiter.retry_after() for _ in range(3)] == [0.0, 0.0, 0.0]
    limiter.acquire()
    assert limiter.retry_after() == pytest.approx(1.0)


def test_a_call_waits_for_its_place_up_to_max_wait(clock):
    limiter = RateLimiter("x", 4, burst=1, max_wait=0.5, clock=clock)
    waited = [limiter.acquire() for _ in range(3)]
    assert waited == pytest.approx([0.0, 0.25, 0.25])
    assert clock.sleeps == pytest.approx([0.25, 0.25])


def test_a_wait_longer_than_max_wait_is_refused_at_once(clock):
    limiter = RateLimiter("x", 1, burst=1, max_wait=0.5, clock=clock)
    limiter.acquire()
    with pytest.raises(RateLimitExceeded) as caught:
        limiter.acquire()
    assert caught.value.retry_after == pytest.approx(1.0)
    assert clock.sleeps == []


@pytest.mark.parametrize(("left", "passes_"), [(0.9, False), (1.0, False), (1.1, True)])
def test_a_wait_that_the_deadline_does_not_allow_is_refused_at_once(clock, left, passes_):
    limiter = RateLimiter("x", 1, burst=1, max_wait=60.0, clock=clock)
    limiter.acquire()
    with resilience.deadline(left, clock=clock):
        if passes_:
            assert limiter.acquire() == pytest.approx(1.0)
        else:
            with pytest.raises(RateLimitExceeded):
                limiter.acquire()
            assert clock.sleeps == []


def test_callers_get_places_one_after_another_and_none_twice():
    class Line(ManualClock):
        """A clock on which waits take no time: the waits are the places."""

        def sleep(self, seconds, wake=None):
            self.sleeps.append(seconds)
            return False

    clock = Line()
    limiter = RateLimiter("x", 100, burst=1, max_wait=60.0, clock=clock)
    threads = [threading.Thread(target=lambda: [limiter.acquire() for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(clock.sleeps) == pytest.approx([number / 100 for number in range(1, 400)])


@pytest.mark.parametrize(("rate", "burst"), [(5, 1), (50, 10), (1000, 50)])
def test_under_load_at_least_99_percent_of_the_limit_pass_and_never_limit_plus_burst_in_a_period(clock, rate, burst):
    limiter = RateLimiter("x", rate, burst=burst, clock=clock)
    times = []
    for _ in range(20 * rate * 10):
        times += [clock.monotonic()] * passes(limiter, 1)
        clock.advance(0.1 / rate)
    assert len(times) >= rate * 20 * 0.99
    for first, start in enumerate(times):
        inside = sum(1 for at in times[first : first + rate + burst + 1] if at - start < 1.0)
        assert inside <= rate + burst


def test_drain_lets_nothing_pass_until_it_is_over_and_no_burst_after_it(clock):
    limiter = RateLimiter("x", 10, clock=clock)
    limiter.drain(5.0)
    with pytest.raises(RateLimitExceeded) as caught:
        limiter.acquire()
    assert caught.value.retry_after == pytest.approx(5.0)
    clock.advance(4.99)
    assert passes(limiter, 10) == 0
    clock.advance(0.0101)
    assert passes(limiter, 10) == 1
    clock.advance(0.1001)
    assert passes(limiter, 10) == 1


def test_a_shorter_drain_does_not_shorten_a_longer_one(clock):
    limiter = RateLimiter("x", 10, clock=clock)
    limiter.drain(60.0)
    limiter.drain(1.0)
    assert limiter.retry_after() == pytest.approx(60.0)


def too_many(status, seconds):
    response = requests.Response()
    response.status_code = status
    response.headers["Retry-After"] = seconds
    raise requests.HTTPError(f"{status} from the server", response=response)


@pytest.mark.parametrize("way", ["call", "decorator", "pipeline", "manager"])
def test_an_answer_429_drains_the_limiter_the_call_went_through(clock, way):
    limiter = RateLimiter("x", 10, clock=clock)
    with resilience.ErrorRecoveryManager(clock=clock) as manager:
        manager.register_rate_limiter("x", limiter)
        manager.register_retry_policy("x", resilience.RetryPolicy(max_retries=0))
        ways = {
            "call": limiter.call,
            "decorator": lambda fn, *args: limiter(fn)(*args),
            "pipeline": Pipeline(limiter).call,
            "manager": manager.protect("x", isolation="caller")(lambda fn, *args: fn(*args)),
        }
        with pytest.raises(requests.HTTPError):
            ways[way](too_many, 429, "3")
        with pytest.raises(RateLimitExceeded) as caught:
            ways[way](too_many, 429, "3")
    assert caught.value.retry_after == pytest.approx(3.0)


def test_only_an_answer_429_drains_the_limiter(clock):
    limiter = RateLimiter("x", 10, clock=clock)
    with pytest.raises(requests.HTTPError):
        limiter.call(too_many, 503, "3")
    with pytest.raises(requests.HTTPError):
        limiter.call(too_many, 429, "soon")
    with pytest.raises(ZeroDivisionError):
        limiter.call(lambda: 1 / 0)
    assert passes(limiter, 7) == 7


def test_a_retry_that_waits_as_long_as_told_passes_the_drained_limiter(clock):
    limiter = RateLimiter("x", 3, clock=clock)
    answers = iter((lambda: too_many(429, "7"), lambda: "here"))
    retry = resilience.Retry(resilience.RetryPolicy(max_retries=1), clock=clock)
    assert Pipeline(retry, limiter).call(lambda: next(answers)()) == "here"
    assert clock.monotonic() >= 1007.0


def test_a_cancelled_operation_does_not_wait_for_its_place(clock):
    limiter = RateLimiter("x", 1, burst=1, max_wait=60.0, clock=clock)
    limiter.acquire()
    context = OperationContext("job", clock=clock)
    context.cancel("enough")
    with context, pytest.raises(OperationCancelled):
        limiter.acquire()


def test_a_passed_deadline_does_not_keep_a_call_from_a_free_place_but_from_waiting(clock):
    limiter = RateLimiter("x", 1, burst=1, max_wait=60.0, clock=clock)
    limiter.acquire()
    with resilience.deadline(0.0, clock=clock), pytest.raises((RateLimitExceeded, DeadlineExceeded)):
        limiter.acquire()


def test_a_shutdown_ends_the_wait(clock):
    limiter = RateLimiter("x", 1, burst=1, max_wait=60.0, clock=clock)
    limiter.acquire()
    try:
        lifecycle.begin_shutdown()
        with pytest.raises(ShutdownInProgress):
            limiter.acquire()
    finally:
        lifecycle.reset_after_shutdown()


def test_a_refusal_is_an_event(clock):
    stream, log = EventStream(clock=clock), EventLog()
    stream.subscribe(log, ["call_rejected"])
    limiter = RateLimiter("x", 1, clock=clock, events=stream)
    assert passes(limiter, 3) == 1
    assert stream.flush(30)
    assert [(event.name, event.reason) for event in log.events] == [("x", "rate limit")] * 2


def test_it_is_a_decorator_and_a_strategy(clock):
    limiter = RateLimiter("x", 2, clock=clock)

    @limiter
    def add(first: int, second: int = 1) -> int:
        """Adds."""
        return first + second

    assert add(1, second=2) == 3
    assert str(inspect.signature(add)) == "(first: int, second: int = 1) -> int"
    assert add.__doc__ == "Adds."
    pipeline = Pipeline(limiter, name="x")
    assert pipeline.call(add.__wrapped__, 1) == 2
    with pytest.raises(RateLimitExceeded):
        pipeline.call(add.__wrapped__, 1)


def test_a_failing_function_has_used_its_place(clock):
    limiter = RateLimiter("x", 1, clock=clock)
    with pytest.raises(ZeroDivisionError):
        limiter.call(lambda: 1 / 0)
    with pytest.raises(RateLimitExceeded):
        limiter.call(lambda: 1)


async def coroutine():
    pass


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize("fn", [coroutine, generator, async_generator])
def test_coroutine_and_generator_functions_are_refused(fn):
    with pytest.raises(TypeError):
        RateLimiter("x", 1)(fn)


def test_a_coroutine_returned_through_call_is_closed_and_refused():
    made = []
    with pytest.raises(TypeError):
        RateLimiter("x", 1).call(lambda: made.append(coroutine()) or made[0])
    assert inspect.getcoroutinestate(made[0]) == "CORO_CLOSED"


@pytest.mark.parametrize(
    ("key", "value"),
    [("rate", 0), ("rate", -1), ("rate", float("nan")), ("rate", float("inf")), ("rate", "10"), ("rate", True),
     ("rate", None), ("per", 0), ("per", -1.0), ("per", float("inf")), ("burst", 0), ("burst", 1.5), ("burst", True),
     ("max_wait", -1), ("max_wait", float("nan")), ("max_wait", None)],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        RateLimiter("x", **{"rate": 1, key: value})
    assert caught.value.key == key


@pytest.mark.parametrize("value", [-1.0, float("nan"), "5"])
def test_a_bad_drain_is_refused(value):
    with pytest.raises(ConfigError) as caught:
        RateLimiter("x", 1).drain(value)
    assert caught.value.key == "retry_after"


def test_its_repr_says_what_it_is():
    assert repr(RateLimiter("x", 5, 60.0)) == "<RateLimiter 'x': 5 per 60 s, burst 5>"


def test_no_lock_is_held_while_a_call_waits_or_runs(clock):
    limiter = RateLimiter("x", 2, burst=2, clock=clock)
    gate = Gate()
    thread = threading.Thread(target=limiter.call, args=(gate,))
    thread.start()
    assert gate.arrived()
    assert limiter.call(lambda: "meanwhile") == "meanwhile"
    gate.open()
    thread.join(30)
