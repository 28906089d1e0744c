"""What a timeout does for those who call it, told with gates and a clock that moves by hand."""

import inspect
import sys
import threading

import pytest

import resilience
from resilience.core.errors import ConfigError, DeadlineExceeded, WorkersExhausted
from resilience.core.events import EventStream
from resilience.core.pipeline import Pipeline
from resilience.strategies.retry_policy import RetryPolicy
from resilience.strategies.timeout import Timeout
from resilience.testing import EventLog, Gate, ManualClock, eventually
from resilience.workers.threads import ThreadWorkers


class Caller(threading.Thread):
    """A thread that makes one call; `end()` gives its value or its error."""

    def __init__(self, fn, *args):
        super().__init__(daemon=True)
        self.fn, self.args, self.outcome = fn, args, None
        self.start()

    def run(self):
        try:
            self.outcome = self.fn(*self.args)
        except BaseException as error:
            self.outcome = error

    def end(self):
        self.join(30)
        assert not self.is_alive()
        return self.outcome


def hanging(gate, clock, call, *args, step=1.0):
    """What a call that hangs in the gate ends with, once the clock moves."""
    inside = gate.inside
    caller = Caller(call, *args)
    assert gate.arrived(inside + 1)
    eventually(lambda: clock.advance(step) or not caller.is_alive())
    return caller.end()


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def gate():
    gate = Gate("late")
    yield gate
    gate.open()


def test_on_a_thread_a_call_that_hangs_ends_for_its_caller_and_may_still_run(clock, gate):
    error = hanging(gate, clock, Timeout(2.0, name="slow", clock=clock).call, gate)
    assert isinstance(error, DeadlineExceeded)
    assert (error.name, error.timeout, error.phase, error.reclaimed) == ("slow", 2.0, "running", False)
    assert "doubles.py" in error.stack
    assert gate.inside == 1


def test_it_is_not_the_builtin_timeout_error(clock, gate):
    error = hanging(gate, clock, Timeout(2.0, clock=clock).call, gate)
    assert not isinstance(error, (TimeoutError, OSError))


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_a_call_in_time_gives_its_value_or_its_own_error(clock, isolation):
    timeout = Timeout(2.0, isolation, clock=clock)
    assert timeout.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        timeout.call(divmod, 7, 0)


def test_where_a_call_runs_is_up_to_the_isolation(clock):
    here = threading.get_ident()
    assert Timeout(2.0, "caller", clock=clock).call(threading.get_ident) == here
    assert Timeout(2.0, "thread", clock=clock).call(threading.get_ident) != here


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_the_function_sees_its_deadline(clock, isolation):
    timeout = Timeout(2.0, isolation, clock=clock, name="op")
    assert timeout.call(resilience.remaining) == 2.0
    assert timeout.call(lambda: resilience.current().operation) == "op"
    with resilience.deadline(0.5, clock=clock):
        assert timeout.call(resilience.remaining) == 0.5
        assert resilience.remaining() == 0.5


def test_in_the_callers_thread_the_deadline_ends_our_sleeps(clock):
    with pytest.raises(DeadlineExceeded) as caught:
        Timeout(2.0, "caller", clock=clock, name="nap").call(resilience.sleep, 60.0)
    assert clock.sleeps == [2.0]
    assert (caught.value.name, caught.value.timeout, caught.value.phase) == ("nap", 2.0, "waiting")


def test_in_the_callers_thread_a_late_value_is_still_a_value(clock):
    assert Timeout(2.0, "caller", clock=clock).call(lambda: clock.advance(60.0) or "late") == "late"


def test_an_expired_timeout_of_its_own_is_no_ambient_deadline_but_one_around_it_is(clock, gate):
    timeout = Timeout(2.0, clock=clock)
    assert hanging(gate, clock, timeout.call, gate).ambient is False

    def under_a_deadline():
        with resilience.deadline(0.5, clock=clock):
            timeout.call(gate)

    error = hanging(gate, clock, under_a_deadline, step=0.5)
    assert isinstance(error, DeadlineExceeded)
    assert error.ambient is True


def test_an_abandoned_call_is_counted_and_too_many_refuse_the_next(clock, gate):
    timeout = Timeout(1.0, max_abandoned=2, name="leaky", clock=clock)
    assert timeout.call(lambda: "in time") == "in time"
    for _ in range(2):
        assert isinstance(hanging(gate, clock, timeout.call, gate), DeadlineExceeded)
    with pytest.raises(WorkersExhausted) as caught:
        timeout.call(pytest.fail, "must not run")
    assert (caught.value.name, caught.value.abandoned) == ("leaky", 2)
    gate.open()
    eventually(lambda: timeout._workers_of("leaky").abandoned == 0)
    assert timeout.call(lambda: "again") == "again"


def test_a_timeout_on_a_thread_is_never_retried(clock, gate):
    policy = RetryPolicy(max_retries=5, base_delay=0.1, jitter=False)
    pipeline = Pipeline(policy, Timeout(1.0, clock=clock), name="x", clock=clock)
    assert isinstance(hanging(gate, clock, pipeline.call, gate), DeadlineExceeded)
    assert gate.inside == 1


def test_a_call_that_never_left_the_queue_is_reclaimed(clock, gate):
    workers = ThreadWorkers("narrow", max_workers=1)
    Caller(workers.call, gate)
    assert gate.arrived()
    ran = []
    caller = Caller(Timeout(1.0, clock=clock, workers=workers).call, ran.append, 1)
    eventually(lambda: len(workers._queue) == 1)
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    error = caller.end()
    assert (error.phase, error.reclaimed, error.ambient) == ("queued", True, False)
    gate.open()
    assert workers.call(lambda: 1) == 1
    assert ran == []


def test_events_tell_what_timed_out_and_what_became_of_it(clock, gate):
    stream, log = EventStream(clock=clock), EventLog()
    stream.subscribe(log)
    hanging(gate, clock, Timeout(1.0, name="x", clock=clock, events=stream).call, gate)
    assert stream.flush(30)
    assert log.kinds() == ["timed_out", "abandoned"]
    assert (log.events[0].name, log.events[0].timeout, log.events[0].phase) == ("x", 1.0, "running")
    assert "doubles.py" in log.events[1].stack


def test_in_the_callers_thread_nothing_is_left_behind(clock):
    stream, log = EventStream(clock=clock), EventLog()
    stream.subscribe(log)
    with pytest.raises(DeadlineExceeded):
        Timeout(1.0, "caller", name="x", clock=clock, events=stream).call(resilience.sleep, 60.0)
    assert stream.flush(30)
    assert log.kinds() == ["timed_out", "reclaimed"]


def test_the_first_calls_at_once_share_their_workers():
    for _ in range(20):
        timeout, together, seen = Timeout(30.0, name="x"), threading.Barrier(8), []

        def call(timeout=timeout, together=together, seen=seen):
            together.wait(30)
            seen.append(timeout._workers_of("x"))

        for caller in [Caller(call) for _ in range(8)]:
            assert caller.end() is None
        assert len(set(map(id, seen))) == 1


def test_a_lone_timeout_in_a_pipeline_works_without_a_manager(clock, gate):
    pipeline = Pipeline(Timeout(1.0, clock=clock), name="alone")
    assert pipeline.call(lambda: 1) == 1
    error = hanging(gate, clock, pipeline.call, gate)
    assert (error.name, error.reclaimed) == ("alone", False)


def test_one_timeout_in_two_pipelines_names_each_of_them(clock, gate):
    shared = Timeout(1.0, clock=clock)
    names = [hanging(gate, clock, Pipeline(shared, name=name).call, gate).name for name in ("first", "second")]
    assert names == ["first", "second"]


def test_a_decorated_function_keeps_its_signature():
    @Timeout(30.0)
    def add(first: int, second: int = 1) -> int:
        """Adds."""
        return first + second

    assert add(1, second=2) == 3
    assert str(inspect.signature(add)) == "(first: int, second: int = 1) -> int"
    assert add.__doc__ == "Adds."


async def coroutine():
    pass


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize("fn", [coroutine, generator, async_generator])
def test_coroutine_and_generator_functions_are_refused(fn):
    with pytest.raises(TypeError):
        Timeout(1.0)(fn)


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_a_coroutine_returned_through_call_is_closed_and_refused(isolation):
    made = []
    with pytest.raises(TypeError):
        Timeout(30.0, isolation).call(lambda: made.append(coroutine()) or made[0])
    assert inspect.getcoroutinestate(made[0]) == "CORO_CLOSED"


@pytest.mark.parametrize(
    ("key", "value"),
    [("seconds", 0), ("seconds", -1.0), ("seconds", float("nan")), ("seconds", float("inf")), ("seconds", "5s"),
     ("seconds", None), ("seconds", True), ("isolation", "fiber"), ("isolation", None), ("max_abandoned", -1),
     ("max_abandoned", 0.5), ("memory_limit", 0), ("memory_limit", 1 << 20)],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        Timeout(**{"seconds": 1.0, key: value})
    assert caught.value.key == key


def test_its_repr_says_what_it_is():
    assert repr(Timeout(2.5)) == "Timeout(2.5, isolation='thread')"


@pytest.mark.parametrize("form", ["decorated", "called", "in a pipeline"])
def test_in_the_callers_thread_whoever_looks_sees_the_same_context_inside_and_the_old_one_afterwards(clock, form):
    limit = Timeout(5.0, isolation="caller", name="lookup", clock=clock)
    seen = []

    def look():
        clock.advance(2.0)
        seen.append((resilience.current(), resilience.current(), resilience.remaining()))

    protected = {
        "decorated": limit(look),
        "called": lambda: limit.call(look),
        "in a pipeline": lambda: Pipeline(limit).call(look),
    }[form]
    with resilience.deadline(60.0, clock=clock) as outer:
        protected()
        assert resilience.current() is outer
    assert resilience.current() is None
    ((context, again, left),) = seen
    assert context is again
    assert (context.operation, context.timeout, context.attempt) == ("lookup", 5.0, 1)
    assert context.parent is outer
    assert left == 3.0


def test_in_the_callers_thread_each_attempt_has_its_number_and_its_own_time(clock):
    seen = []

    def fail():
        seen.append((resilience.current().attempt, resilience.remaining()))
        clock.advance(2.0)
        raise ConnectionError

    limit = Timeout(5.0, isolation="caller", clock=clock)
    policy = RetryPolicy(max_retries=2, base_delay=0.0, jitter=False)
    with pytest.raises(ConnectionError):
        Pipeline(policy, limit).call(fail)
    assert seen == [(1, 5.0), (2, 5.0), (3, 5.0)]


def test_in_the_callers_thread_a_cancelled_operation_outside_is_seen_inside(clock):
    def look():
        outer.cancel("enough")
        resilience.checkpoint()

    with resilience.deadline(60.0, clock=clock) as outer, pytest.raises(resilience.OperationCancelled, match="enough"):
        Timeout(5.0, isolation="caller", clock=clock)(look)()


def test_a_limit_inside_a_limit_keeps_the_context_of_the_outer_one(clock):
    """What the inner one's function does to the outer one is still true after the inner one has ended."""
    outer, inner = (Timeout(seconds, isolation="caller", clock=clock) for seconds in (9.0, 5.0))

    @inner
    def cancel_outside():
        resilience.current().parent.cancel("from inside")

    @outer
    def work():
        cancel_outside()
        resilience.checkpoint()

    with pytest.raises(resilience.OperationCancelled, match="from inside"):
        work()


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda workers: workers.call(resilience.current),
        lambda workers: workers.submit(resilience.current).result(30.0),
        lambda workers: resilience.fan_out(lambda _: resilience.current(), [1, 2], max_workers=2).values[0],
    ],
    ids=["called", "submitted", "fanned out"],
)
def test_a_function_on_a_worker_thread_is_inside_of_the_very_context_of_its_caller(elsewhere):
    workers = ThreadWorkers("inside")

    @Timeout(30.0, isolation="caller")
    def work():
        there = elsewhere(workers)
        while there.parent is not None:  # an item of a fan-out is an operation inside of it
            there = there.parent
        return there is resilience.current()

    try:
        assert work()
    finally:
        workers.shutdown()


def test_many_threads_through_one_limit_each_see_their_own_deadline():
    clocks = [ManualClock(float(number)) for number in range(8)]
    wrong, interval = [], sys.getswitchinterval()
    limit = Timeout(5.0, isolation="caller")

    @limit
    def look(expected, number):
        context = resilience.current()
        if context is not resilience.current() or context.parent is not expected or context.timeout != 5.0:
            wrong.append(number)

    def many(number):
        with resilience.deadline(60.0, clock=clocks[number]) as own:
            for _ in range(200):
                look(own, number)
                if resilience.current() is not own:
                    wrong.append(number)

    sys.setswitchinterval(1e-6)
    try:
        for caller in [Caller(many, number) for number in range(8)]:
            assert caller.end() is None
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


class LateThere(ManualClock):
    """A clock that has gone on to the end in every thread but the one that made it."""

    def __init__(self):
        super().__init__()
        self.here = threading.get_ident()

    def monotonic(self):
        return super().monotonic() if threading.get_ident() == self.here else 1e6


@pytest.mark.parametrize("around", [None, 5.0], ids=["own limit", "ambient deadline"])
def test_a_worker_that_is_woken_after_the_deadline_begins_nothing(around):
    clock, ran = LateThere(), []
    with resilience.deadline(around, clock=clock), pytest.raises(DeadlineExceeded) as raised:
        Timeout(10.0, name="late", clock=clock).call(ran.append, 1)
    assert ran == []
    assert (raised.value.phase, raised.value.reclaimed) == ("queued", True)
    assert raised.value.ambient is (around is not None)
