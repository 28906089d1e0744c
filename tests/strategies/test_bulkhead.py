"""What a bulkhead does for those who call it, told with gates and a clock that moves by hand."""

import inspect
import threading

import pytest

import resilience
from resilience import ErrorRecoveryManager
from resilience.core import lifecycle
from resilience.core.context import OperationContext
from resilience.core.errors import (
    BulkheadFullError,
    ConfigError,
    DeadlineExceeded,
    OperationCancelled,
    ShutdownInProgress,
)
from resilience.core.events import EventStream
from resilience.core.pipeline import Pipeline
from resilience.strategies.bulkhead import Bulkhead
from resilience.strategies.fallback import Fallback
from resilience.strategies.timeout import Timeout
from resilience.testing import EventLog, Flaky, Gate, ManualClock, eventually
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


def queued(bulkhead, count):
    """Waits until `count` calls really wait: their thread has let go of the lock inside its wait."""
    eventually(lambda: bulkhead.waiting == count)
    with bulkhead._changed:
        pass


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def gate():
    gate = Gate("done")
    yield gate
    gate.open()


def test_at_most_max_concurrent_calls_run_and_the_next_is_refused_at_once(clock, gate):
    bulkhead = Bulkhead("db", 2, clock=clock)
    callers = [Caller(bulkhead.call, gate) for _ in range(2)]
    assert gate.arrived(2)
    with pytest.raises(BulkheadFullError) as caught:
        bulkhead.call(pytest.fail, "must not run")
    assert (caught.value.name, caught.value.limit, caught.value.abandoned) == ("db", 2, 0)
    gate.open()
    assert [caller.end() for caller in callers] == ["done", "done"]
    assert bulkhead.in_flight == 0
    assert bulkhead.call(lambda: "ok") == "ok"


def test_a_crowd_never_exceeds_the_limit():
    body = Flaky(0)
    bulkhead = Bulkhead("x", 3, max_queue=50, max_wait=60.0)
    callers = [Caller(lambda: [bulkhead.call(body) for _ in range(50)]) for _ in range(12)]
    assert all(caller.end() == ["ok"] * 50 for caller in callers)
    assert body.calls == 600
    assert body.peak <= 3
    assert (bulkhead.in_flight, bulkhead.waiting) == (0, 0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, DeadlineExceeded, OperationCancelled])
def test_a_body_that_raises_gives_its_slot_back(clock, error):
    bulkhead = Bulkhead("x", 1, clock=clock)

    def fail():
        raise error()

    for _ in range(3):
        with pytest.raises(error):
            bulkhead.call(fail)
    assert (bulkhead.in_flight, bulkhead.abandoned) == (0, 0)


def test_waiting_calls_are_served_first_come_first_served(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=5, max_wait=60.0, clock=clock)
    holder = Caller(bulkhead.call, gate)
    assert gate.arrived()
    order, callers = [], []
    for number in range(5):
        callers.append(Caller(bulkhead.call, order.append, number))
        queued(bulkhead, number + 1)
    gate.open()
    for caller in (holder, *callers):
        caller.end()
    assert order == [0, 1, 2, 3, 4]


def test_a_newcomer_does_not_overtake_those_who_wait(clock):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=60.0, clock=clock)
    bulkhead.acquire()
    waiting = Caller(bulkhead.acquire)
    queued(bulkhead, 1)
    with bulkhead._changed:  # the slot is free, the one who waits has not come to it yet
        bulkhead.in_flight -= 1
        with pytest.raises(BulkheadFullError):
            bulkhead.acquire()  # the lock is reentrant
        bulkhead._changed.notify_all()
    assert waiting.end() is None
    assert bulkhead.in_flight == 1


def test_a_full_queue_refuses(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=60.0, clock=clock)
    holder = Caller(bulkhead.call, gate)
    assert gate.arrived()
    waiting = Caller(bulkhead.call, lambda: "waited")
    queued(bulkhead, 1)
    with pytest.raises(BulkheadFullError):
        bulkhead.call(lambda: 1)
    gate.open()
    assert (holder.end(), waiting.end()) == ("done", "waited")


def test_a_call_that_has_waited_max_wait_is_refused_and_leaves_the_queue(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=5.0, clock=clock)
    Caller(bulkhead.call, gate)
    assert gate.arrived()
    waiting = Caller(bulkhead.call, lambda: 1)
    queued(bulkhead, 1)
    clock.advance(4.9)
    queued(bulkhead, 1)
    clock.advance(0.2)
    assert isinstance(waiting.end(), BulkheadFullError)
    assert (bulkhead.in_flight, bulkhead.waiting) == (1, 0)


def test_without_max_wait_nobody_queues(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=10, clock=clock)
    Caller(bulkhead.call, gate)
    assert gate.arrived()
    with pytest.raises(BulkheadFullError):
        bulkhead.call(lambda: 1)


def test_the_deadline_clips_the_wait_and_says_that_the_call_was_queued(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=60.0, clock=clock)
    Caller(bulkhead.call, gate)
    assert gate.arrived()

    def call():
        with resilience.deadline(2.0, clock=clock):
            bulkhead.call(pytest.fail, "must not run")

    waiting = Caller(call)
    queued(bulkhead, 1)
    clock.advance(2.0)
    error = waiting.end()
    assert isinstance(error, DeadlineExceeded)
    assert error.phase == "queued"
    assert (bulkhead.in_flight, bulkhead.waiting, bulkhead.abandoned) == (1, 0, 0)


def test_cancelling_the_operation_ends_the_wait(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=60.0, clock=clock)
    Caller(bulkhead.call, gate)
    assert gate.arrived()
    context = OperationContext("job", clock=clock)

    def call():
        with context:
            bulkhead.call(lambda: 1)

    waiting = Caller(call)
    queued(bulkhead, 1)
    context.cancel("enough")
    assert isinstance(waiting.end(), OperationCancelled)
    assert bulkhead.waiting == 0


def test_a_shutdown_ends_the_wait(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=60.0, clock=clock)
    Caller(bulkhead.call, gate)
    assert gate.arrived()
    waiting = Caller(bulkhead.call, lambda: 1)
    queued(bulkhead, 1)
    try:
        lifecycle.begin_shutdown()
        assert isinstance(waiting.end(), ShutdownInProgress)
    finally:
        lifecycle.reset_after_shutdown()


@pytest.mark.parametrize("form", ["call", "decorator", "pipeline"])
def test_an_abandoned_body_keeps_its_slot_until_it_ends(clock, gate, form):
    bulkhead = Bulkhead("x", 1, clock=clock)
    timeout = Timeout(1.0, clock=clock, workers=ThreadWorkers("x"))
    if form == "pipeline":
        guarded = lambda: Pipeline(bulkhead, timeout, name="x").call(gate)  # noqa: E731
    elif form == "decorator":
        guarded = bulkhead(lambda: timeout.call(gate))
    else:
        guarded = lambda: bulkhead.call(timeout.call, gate)  # noqa: E731
    caller = Caller(guarded)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    assert isinstance(caller.end(), DeadlineExceeded)
    assert (bulkhead.in_flight, bulkhead.abandoned) == (1, 1)
    with pytest.raises(BulkheadFullError) as caught:
        bulkhead.call(lambda: 1)
    assert caught.value.abandoned == 1
    gate.open()
    eventually(lambda: bulkhead.in_flight == 0)
    assert bulkhead.abandoned == 0
    assert bulkhead.call(lambda: "ok") == "ok"


def test_an_abandoned_body_keeps_the_slot_of_a_with_block_too(clock, gate):
    bulkhead = Bulkhead("x", 1, clock=clock)
    timeout = Timeout(1.0, clock=clock, workers=ThreadWorkers("x"))

    def block():
        with bulkhead:
            timeout.call(gate)

    caller = Caller(block)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    assert isinstance(caller.end(), DeadlineExceeded)
    assert (bulkhead.in_flight, bulkhead.abandoned) == (1, 1)
    gate.open()
    eventually(lambda: bulkhead.in_flight == 0)


@pytest.mark.parametrize("form", ["pipeline", "express lane"])
def test_an_abandoned_body_keeps_its_slot_though_a_fallback_has_answered_for_it(clock, gate, form):
    bulkhead = Bulkhead("saved", 1, clock=clock)
    timeout = Timeout(1.0, clock=clock, workers=ThreadWorkers("saved"))
    if form == "pipeline":
        guarded = lambda: Pipeline(bulkhead, Fallback("saved"), timeout, name="saved").call(gate)  # noqa: E731
    else:
        manager = ErrorRecoveryManager(clock=clock)
        manager.register_bulkhead("saved", bulkhead)
        manager.register_fallback("saved", Fallback("saved"))
        guarded = manager.protect("saved", isolation="caller")(lambda: timeout.call(gate))
    caller = Caller(guarded)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    assert caller.end() == "saved"
    assert (bulkhead.in_flight, bulkhead.abandoned) == (1, 1)
    gate.open()
    eventually(lambda: bulkhead.in_flight == 0)
    assert bulkhead.abandoned == 0
    if form == "express lane":
        manager.close()


def test_the_end_of_an_abandoned_body_lets_the_next_one_in(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=1, max_wait=600.0, clock=clock)
    timeout = Timeout(1.0, clock=clock, workers=ThreadWorkers("x"))
    caller = Caller(bulkhead.call, timeout.call, gate)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    waiting = Caller(bulkhead.call, lambda: "in")
    queued(bulkhead, 1)
    gate.open()
    assert waiting.end() == "in"


def test_a_call_withdrawn_from_the_workers_queue_gives_its_slot_back(clock, gate):
    workers = ThreadWorkers("x", max_workers=1)
    Caller(workers.call, gate)
    assert gate.arrived()
    bulkhead = Bulkhead("x", 1, clock=clock)
    caller = Caller(bulkhead.call, Timeout(1.0, clock=clock, workers=workers).call, lambda: 1)
    eventually(lambda: bulkhead.in_flight == 1)
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    error = caller.end()
    assert (error.phase, error.reclaimed) == ("queued", True)
    assert (bulkhead.in_flight, bulkhead.abandoned) == (0, 0)


def test_more_slots_let_those_who_wait_in(clock, gate):
    bulkhead = Bulkhead("x", 1, max_queue=2, max_wait=60.0, clock=clock)
    callers = [Caller(bulkhead.call, gate)]
    assert gate.arrived()
    callers += [Caller(bulkhead.call, gate) for _ in range(2)]
    queued(bulkhead, 2)
    bulkhead.resize(3)
    assert gate.arrived(3)
    gate.open()
    assert [caller.end() for caller in callers] == ["done"] * 3


def test_fewer_slots_never_block_and_running_calls_keep_theirs(clock, gate):
    bulkhead = Bulkhead("x", 3, clock=clock)
    callers = [Caller(bulkhead.call, gate) for _ in range(3)]
    assert gate.arrived(3)
    bulkhead.resize(1)
    assert bulkhead.in_flight == 3
    with pytest.raises(BulkheadFullError) as caught:
        bulkhead.call(lambda: 1)
    assert caught.value.limit == 1
    gate.open()
    assert [caller.end() for caller in callers] == ["done"] * 3
    assert bulkhead.call(lambda: 1) == 1
    bulkhead.acquire()
    with pytest.raises(BulkheadFullError):
        bulkhead.acquire()


def test_a_refusal_is_an_event(clock):
    stream, log = EventStream(clock=clock), EventLog()
    stream.subscribe(log, ["call_rejected"])
    bulkhead = Bulkhead("x", 1, clock=clock, events=stream)
    with bulkhead, pytest.raises(BulkheadFullError):
        bulkhead.acquire()
    assert stream.flush(30)
    assert [(event.name, event.reason, event.limit) for event in log.events] == [("x", "bulkhead full", 1)]


def test_a_with_block_holds_a_slot(clock):
    bulkhead = Bulkhead("x", 1, clock=clock)
    with pytest.raises(ZeroDivisionError), bulkhead as held:
        assert held is bulkhead
        assert bulkhead.in_flight == 1
        _ = 1 / 0
    assert bulkhead.in_flight == 0


def test_a_decorated_function_keeps_its_signature(clock):
    @Bulkhead("x", 1, clock=clock)
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
        Bulkhead("x", 1)(fn)


def test_a_coroutine_returned_through_call_is_closed_and_refused():
    made = []
    with pytest.raises(TypeError):
        Bulkhead("x", 1).call(lambda: made.append(coroutine()) or made[0])
    assert inspect.getcoroutinestate(made[0]) == "CORO_CLOSED"


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_concurrent", 0), ("max_concurrent", -1), ("max_concurrent", 1.5), ("max_concurrent", True),
     ("max_concurrent", None), ("max_queue", -1), ("max_queue", 0.5), ("max_wait", -1.0), ("max_wait", float("nan")),
     ("max_wait", None), ("max_wait", "1s")],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        Bulkhead("x", **{"max_concurrent": 1, key: value})
    assert caught.value.key == key


def test_a_bad_new_size_is_refused_and_changes_nothing():
    bulkhead = Bulkhead("x", 2)
    with pytest.raises(ConfigError) as caught:
        bulkhead.resize(0)
    assert caught.value.key == "max_concurrent"
    assert bulkhead.max_concurrent == 2


def test_its_repr_says_how_full_it_is():
    bulkhead = Bulkhead("x", 2)
    with bulkhead:
        assert repr(bulkhead) == "<Bulkhead 'x': 1 of 2, 0 waiting>"
