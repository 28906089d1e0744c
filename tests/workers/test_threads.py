"""What worker threads promise to those who call them; gates and a clock moved by hand stand in for time."""

import contextvars
import gc
import pickle
import threading
import weakref

import pytest

import resilience
from resilience.core import lifecycle
from resilience.core.context import OperationContext
from resilience.core.errors import (
    CallRejected,
    ConfigError,
    DeadlineExceeded,
    OperationCancelled,
    ShutdownInProgress,
    WorkersExhausted,
)
from resilience.testing import Gate, ManualClock, eventually
from resilience.workers import threads
from resilience.workers.ledger import LEDGER
from resilience.workers.thread_task import when_ended
from resilience.workers.threads import ThreadWorkers

COLOUR = contextvars.ContextVar("colour", default="none")


def boom():
    raise LookupError("boom")


class Caller(threading.Thread):
    """A thread that makes one call; `end()` gives its value or its error."""

    def __init__(self, fn, *args, **kwargs):
        super().__init__(daemon=True)
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.outcome = None
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


def abandon(workers, gate, clock=None):
    """Gives up one call that is inside the gate; returns its error."""
    clock = clock or ManualClock()
    inside = gate.inside
    caller = Caller(workers.call, gate, timeout=1.0, clock=clock)
    assert gate.arrived(inside + 1)
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    error = caller.end()
    assert isinstance(error, DeadlineExceeded)
    return error


class Interrupted:
    """How a thread is registered, where a Ctrl-C comes while its call is given up."""

    def __init__(self, kind, label):
        self.ended = threading.Event()

    def __call__(self):
        self.ended.set()

    def abandon(self):
        raise KeyboardInterrupt


@pytest.fixture
def gate():
    gate = Gate("late")
    yield gate
    gate.open()


def test_a_call_gives_its_value_and_runs_on_a_daemon_thread_named_after_the_operation():
    thread = ThreadWorkers("fetch").call(threading.current_thread, timeout=30.0)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name.startswith("fetch")


def test_arguments_arrive():
    assert ThreadWorkers("x").call(lambda *args, **kwargs: (args, kwargs), (1, 2), {"a": 3}) == ((1, 2), {"a": 3})


def test_an_error_arrives_unchanged_and_the_traceback_shows_where_it_came_from():
    with pytest.raises(LookupError, match="boom") as caught:
        ThreadWorkers("x").call(boom, timeout=30.0)
    assert [entry.name for entry in caught.traceback][-1] == "boom"


def test_even_a_system_exit_arrives_in_the_caller_and_costs_no_worker():
    workers = ThreadWorkers("x", max_workers=1)

    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        workers.call(leave, timeout=30.0)
    assert workers.call(lambda: 1, timeout=30.0) == 1


def test_a_worker_is_used_again():
    workers = ThreadWorkers("x")
    idents = {workers.call(threading.get_ident, timeout=30.0) for _ in range(20)}
    assert len(idents) == 1


def test_the_callers_context_variables_are_copied_to_the_worker_and_not_back():
    workers = ThreadWorkers("x")
    token = COLOUR.set("blue")

    def look_and_change():
        seen = COLOUR.get()
        COLOUR.set("red")
        return seen

    try:
        assert workers.call(look_and_change, timeout=30.0) == "blue"
        assert COLOUR.get() == "blue"
    finally:
        COLOUR.reset(token)
    assert workers.call(COLOUR.get, timeout=30.0) == "none"


def test_the_ambient_deadline_travels_to_the_worker():
    clock = ManualClock()
    with resilience.deadline(5.0, clock=clock) as context:
        assert ThreadWorkers("x").call(resilience.remaining, clock=clock) == 5.0
        assert ThreadWorkers("x").call(resilience.current) is context


def test_a_running_call_that_is_given_up_is_not_reclaimed_and_its_stack_is_told(gate):
    error = abandon(ThreadWorkers("slow"), gate)
    assert (error.name, error.timeout, error.phase, error.reclaimed) == ("slow", 1.0, "running", False)
    assert "doubles.py" in error.stack


def test_a_queued_call_that_is_given_up_never_runs_and_is_reclaimed(gate):
    clock = ManualClock()
    workers = ThreadWorkers("narrow", max_workers=1)
    first = Caller(workers.call, gate)
    assert gate.arrived()
    ran = []
    second = Caller(workers.call, ran.append, (1,), timeout=2.0, clock=clock)
    eventually(lambda: len(workers._queue) == 1)
    eventually(lambda: clock.advance(2.0) or not second.is_alive())
    error = second.end()
    assert (error.phase, error.reclaimed, error.stack) == ("queued", True, "")
    assert workers.abandoned == 0
    gate.open()
    assert first.end() == "late"
    assert workers.call(lambda: "next") == "next"
    assert ran == []


def test_calls_queue_in_order_when_every_worker_is_busy(gate):
    workers = ThreadWorkers("narrow", max_workers=1)
    order = []
    callers = [Caller(workers.call, gate)]
    assert gate.arrived()
    for number in range(5):
        callers.append(Caller(workers.call, order.append, (number,)))
        eventually(lambda number=number: len(workers._queue) == number + 1)
    gate.open()
    for caller in callers:
        caller.end()
    assert order == [0, 1, 2, 3, 4]


def test_at_most_max_workers_calls_run_at_once(gate):
    workers = ThreadWorkers("three", max_workers=3)
    callers = [Caller(workers.call, gate) for _ in range(10)]
    assert gate.arrived(3)
    eventually(lambda: len(workers._queue) == 7)
    assert gate.inside == 3
    gate.open()
    assert [caller.end() for caller in callers] == ["late"] * 10


def test_an_abandoned_thread_is_replaced_and_its_queue_goes_on(gate):
    clock = ManualClock()
    workers = ThreadWorkers("one", max_workers=1)
    stuck = Caller(workers.call, gate, timeout=1.0, clock=clock)
    assert gate.arrived()
    waiting = Caller(workers.call, lambda: "served")
    eventually(lambda: len(workers._queue) == 1)
    eventually(lambda: clock.advance(1.0) or not stuck.is_alive())
    assert isinstance(stuck.end(), DeadlineExceeded)
    assert waiting.end() == "served"


def test_a_late_result_is_dropped_and_counted_and_its_thread_is_not_used_again(gate):
    workers = ThreadWorkers("slow")
    stuck = []
    held = Gate()

    def body():
        stuck.append(threading.get_ident())
        return held()

    clock = ManualClock()
    caller = Caller(workers.call, body, timeout=1.0, clock=clock)
    assert held.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    assert workers.late_results == 0
    assert workers.abandoned == 1
    fresh = workers.call(threading.get_ident)
    assert fresh not in stuck
    held.open()
    eventually(lambda: workers.abandoned == 0)
    assert workers.late_results == 1
    assert workers.call(threading.get_ident) == fresh


def test_a_late_error_is_dropped_too(gate):
    workers = ThreadWorkers("slow")

    def body():
        gate()
        boom()

    clock = ManualClock()
    caller = Caller(workers.call, body, timeout=1.0, clock=clock)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not caller.is_alive())
    gate.open()
    eventually(lambda: workers.late_results == 1)
    assert isinstance(caller.end(), DeadlineExceeded)
    assert workers.call(lambda: 1) == 1


def test_a_call_that_a_ctrl_c_met_while_it_was_given_up_ends_with_its_thread(gate):
    registered = []
    clock = ManualClock()
    workers = ThreadWorkers("met", register=lambda *what: registered.append(Interrupted(*what)) or registered[-1])
    stuck = Caller(workers.call, gate, timeout=1.0, clock=clock)
    assert gate.arrived()
    eventually(lambda: clock.advance(1.0) or not stuck.is_alive())
    assert isinstance(stuck.end(), KeyboardInterrupt)
    assert LEDGER.abandoned_by_operation()["met"] == workers.abandoned == 1
    gate.open()
    assert registered[0].ended.wait(10)
    assert workers.abandoned == 0
    assert "met" not in LEDGER.abandoned_by_operation()


def test_a_call_that_a_ctrl_c_met_while_it_was_given_up_leaves_its_place_to_the_queue(gate):
    clock = ManualClock()
    workers = ThreadWorkers("one", max_workers=1, register=Interrupted)
    stuck = Caller(workers.call, gate, timeout=1.0, clock=clock)
    assert gate.arrived()
    queued = Caller(workers.call, lambda: "served", timeout=10.0)
    eventually(lambda: workers._queue)
    eventually(lambda: clock.advance(1.0) or not stuck.is_alive())
    assert isinstance(stuck.end(), KeyboardInterrupt)
    assert queued.end() == "served"


def test_the_ledger_lists_abandoned_calls_while_they_run(gate):
    workers = ThreadWorkers("ledger-test")
    abandon(workers, gate)
    assert LEDGER.abandoned_by_operation()["ledger-test"] == 1
    (entry,) = [entry for entry in LEDGER.abandoned() if entry.operation == "ledger-test"]
    told = entry.as_dict()
    assert set(told) == {"operation", "thread", "age", "stack"}
    assert told["thread"].startswith("ledger-test")
    gate.open()
    eventually(lambda: "ledger-test" not in LEDGER.abandoned_by_operation())


def test_too_many_abandoned_calls_refuse_the_next_one_until_one_ends(gate):
    workers = ThreadWorkers("leaky", max_abandoned=2)
    abandon(workers, gate)
    abandon(workers, gate)
    ran = []
    with pytest.raises(WorkersExhausted) as caught:
        workers.call(ran.append, (1,))
    assert (caught.value.name, caught.value.abandoned) == ("leaky", 2)
    assert ran == []
    gate.open()
    eventually(lambda: workers.abandoned == 0)
    assert workers.call(lambda: "again") == "again"


def test_max_abandoned_0_still_serves_and_refuses_only_while_one_hangs(gate):
    workers = ThreadWorkers("strict", max_abandoned=0)
    assert workers.call(lambda: 1) == 1
    abandon(workers, gate)
    with pytest.raises(WorkersExhausted):
        workers.call(lambda: 1)


def test_when_ended_tells_at_the_end_of_the_abandoned_body_and_at_once_otherwise(gate):
    told = []
    error = abandon(ThreadWorkers("x"), gate)
    when_ended(error, lambda: told.append("ended"))
    assert told == []
    gate.open()
    eventually(lambda: told == ["ended"])
    when_ended(error, lambda: told.append("late"))
    assert told == ["ended", "late"]
    when_ended(ValueError(), lambda: told.append("nothing abandoned"))
    assert told[-1] == "nothing abandoned"


def test_the_error_of_an_abandoned_call_can_be_pickled(gate):
    error = pickle.loads(pickle.dumps(abandon(ThreadWorkers("x"), gate)))
    assert (error.name, error.phase, error.reclaimed) == ("x", "running", False)


@pytest.mark.parametrize("on_a_clock", [False, True])
def test_cancelling_the_operation_releases_its_caller_and_abandons_the_call(gate, on_a_clock):
    workers = ThreadWorkers("x")
    clock = ManualClock() if on_a_clock else resilience.SystemClock()
    context = OperationContext("job", clock=clock)

    def call():
        with context:
            return workers.call(gate, clock=clock)

    caller = Caller(call)
    assert gate.arrived()
    context.cancel("enough")
    error = caller.end()
    assert isinstance(error, OperationCancelled)
    assert error.reason == "enough"
    assert workers.abandoned == 1
    told = []
    when_ended(error, lambda: told.append(1))
    assert told == []
    gate.open()
    eventually(lambda: told == [1])


def test_a_call_inside_a_cancelled_operation_ends_at_once(gate):
    context = OperationContext("job")
    context.cancel("before")
    with context, pytest.raises(OperationCancelled, match="before"):
        ThreadWorkers("x").call(gate)


@pytest.mark.parametrize("inside", [False, True], ids=["no operation", "in an operation"])
def test_a_shutdown_releases_callers(gate, inside):
    workers = ThreadWorkers("x")

    def call():
        if not inside:
            return workers.call(gate, clock=ManualClock())
        with resilience.deadline(60.0):
            return workers.call(gate)

    caller = Caller(call)
    assert gate.arrived()
    try:
        lifecycle.begin_shutdown()
        assert isinstance(caller.end(), ShutdownInProgress)
    finally:
        lifecycle.reset_after_shutdown()
    assert workers.abandoned == 1


def test_a_shutdown_releases_a_caller_without_an_operation_on_the_system_clock(gate):
    workers = ThreadWorkers("x")
    caller = Caller(workers.call, gate, timeout=60.0)
    assert gate.arrived()
    try:
        lifecycle.begin_shutdown()
        assert isinstance(caller.end(), ShutdownInProgress)
    finally:
        lifecycle.reset_after_shutdown()


def test_submit_gives_a_future_and_its_error():
    workers = ThreadWorkers("x")
    assert workers.submit(pow, 2, 10).result(30) == 1024
    assert isinstance(workers.submit(boom).exception(30), LookupError)
    assert list(workers.map(str, range(5))) == ["0", "1", "2", "3", "4"]


def test_submit_copies_the_context():
    token = COLOUR.set("green")
    try:
        assert ThreadWorkers("x").submit(COLOUR.get).result(30) == "green"
    finally:
        COLOUR.reset(token)


def test_a_future_cancelled_while_queued_never_runs(gate):
    workers = ThreadWorkers("one", max_workers=1)
    first = workers.submit(gate)
    assert gate.arrived()
    ran = []
    second = workers.submit(ran.append, 1)
    assert second.cancel()
    gate.open()
    assert first.result(30) == "late"
    assert workers.submit(lambda: "next").result(30) == "next"
    assert ran == []


def test_shutdown_waits_for_what_runs_and_refuses_what_comes(gate):
    workers = ThreadWorkers("x", max_workers=1)
    running = workers.submit(gate)
    queued = workers.submit(lambda: "queued")
    assert gate.arrived()
    closing = Caller(workers.shutdown)
    eventually(lambda: workers._closed)
    with pytest.raises(RuntimeError, match="shut down"):
        workers.submit(lambda: 1)
    assert closing.is_alive()
    gate.open()
    assert closing.end() is None
    assert (running.result(0), queued.result(30)) == ("late", "queued")


def test_shutdown_can_drop_what_is_queued(gate):
    workers = ThreadWorkers("x", max_workers=1)
    workers.submit(gate)
    assert gate.arrived()
    queued = workers.submit(lambda: 1)
    workers.shutdown(wait=False, cancel_futures=True)
    assert queued.cancelled()
    gate.open()


def test_shutdown_that_drops_what_is_queued_releases_blocked_callers_too(gate):
    workers = ThreadWorkers("x", max_workers=1)
    workers.submit(gate)
    assert gate.arrived()
    blocked = Caller(workers.call, lambda: 1)
    eventually(lambda: len(workers._queue) == 1)
    workers.shutdown(wait=False, cancel_futures=True)
    assert isinstance(blocked.end(), OperationCancelled)


def test_shutdown_does_not_wait_for_abandoned_calls(gate):
    workers = ThreadWorkers("x")
    abandon(workers, gate)
    assert Caller(workers.shutdown).end() is None
    assert workers.abandoned == 1


def test_queued_calls_for_which_no_thread_can_be_made_are_told_so(gate):
    clock = ManualClock()
    workers = ThreadWorkers("one", max_workers=1)
    stuck = Caller(workers.call, gate, timeout=1.0, clock=clock)
    assert gate.arrived()
    blocked = Caller(workers.call, lambda: 1)
    eventually(lambda: len(workers._queue) == 1)
    future = workers.submit(lambda: 2)
    size = threading.stack_size(1 << 46)  # more than the machine can give
    try:
        eventually(lambda: clock.advance(1.0) or not stuck.is_alive())
    finally:
        threading.stack_size(size)
    assert isinstance(stuck.end(), DeadlineExceeded)
    refused = blocked.end()
    assert isinstance(refused, RuntimeError)
    assert "start new thread" in str(refused)
    assert workers.submit(lambda: 3).result(30) == 3
    assert "start new thread" in str(future.exception(30))


def test_a_call_that_queued_behind_one_whose_thread_could_not_be_started_is_served():
    starting = Gate()
    refusals = [CallRejected("no room")]

    def register(kind, label):
        starting()
        if refusals:
            raise refusals.pop()
        return lambda: None

    workers = ThreadWorkers("one", max_workers=1, register=register)
    refused = Caller(workers.call, lambda: "refused")
    assert starting.arrived()
    queued = Caller(workers.call, lambda: "served", timeout=10.0)
    eventually(lambda: workers._queue)
    starting.open()
    assert isinstance(refused.end(), CallRejected)
    assert queued.end() == "served"


def test_calls_that_queued_behind_one_whose_thread_could_not_be_started_are_told_when_theirs_cannot_either():
    starting = Gate()

    def register(kind, label):
        starting()
        raise CallRejected("no room")

    workers = ThreadWorkers("one", max_workers=1, register=register)
    callers = [Caller(workers.call, lambda: 1, timeout=10.0)]
    assert starting.arrived()
    for number in range(3):
        callers.append(Caller(workers.call, lambda: 1, timeout=10.0))
        eventually(lambda number=number: len(workers._queue or ()) == number + 1)
    starting.open()
    assert [type(caller.end()) for caller in callers] == [CallRejected] * 4


class Registered:
    """How threads are registered (called with what) and end (called with nothing); the second one meets an error."""

    def __init__(self, error):
        self.errors = [error, None]

    def __call__(self, *what):
        error = self.errors.pop() if what and self.errors else None
        if error is not None:
            raise error
        return self

    def abandon(self):
        pass


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [(MemoryError(), DeadlineExceeded, MemoryError), (KeyboardInterrupt(), KeyboardInterrupt, str)],
)
def test_a_queued_call_whose_thread_cannot_be_started_is_told_why_and_after_a_ctrl_c_gets_another(
    gate, error, first, second
):
    clock = ManualClock()
    workers = ThreadWorkers("one", max_workers=1, register=Registered(error))
    stuck = Caller(workers.call, gate, timeout=1.0, clock=clock)
    assert gate.arrived()
    queued = Caller(workers.call, lambda: "served", timeout=10.0)
    eventually(lambda: workers._queue)
    eventually(lambda: clock.advance(1.0) or not stuck.is_alive())
    given_up = stuck.end()
    assert isinstance(given_up, first)
    assert isinstance(queued.end(), second)
    told = []
    when_ended(given_up, lambda: told.append("ended"))
    assert told == []  # it holds a slot of a bulkhead until it has ended
    assert workers.call(lambda: 1, timeout=10.0) == 1


def test_idle_threads_end():
    workers = ThreadWorkers("shortlived", idle=0.01)
    thread = workers.call(threading.current_thread)
    thread.join(30)
    assert not thread.is_alive()
    assert workers.call(lambda: 1) == 1


def test_many_sets_keep_few_idle_threads_between_them(monkeypatch):
    monkeypatch.setattr(threads, "MAX_IDLE", 4)
    sets = [ThreadWorkers(f"many-{number}") for number in range(40)]

    def living():
        return [thread for thread in threading.enumerate() if thread.name.startswith("many-")]

    for _ in range(2):
        assert [workers.call(lambda number=number: number) for number, workers in enumerate(sets)] == list(range(40))
        eventually(lambda: len(living()) <= 4)
    for workers in sets:
        workers.shutdown()
    eventually(lambda: living() == [])


def test_a_forgotten_set_is_freed_and_keeps_no_result_alive():
    class Value:
        pass

    workers = ThreadWorkers("x", idle=0.01)
    held = weakref.ref(workers.call(Value))
    thread = workers.call(threading.current_thread)
    gone = weakref.ref(workers)
    del workers
    thread.join(30)
    gc.collect()
    assert held() is None
    assert gone() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_workers", 0), ("max_workers", -1), ("max_workers", 1.5), ("max_workers", True), ("max_workers", None),
     ("max_abandoned", -1), ("max_abandoned", "8")],
)  # fmt: skip
def test_bad_counts_are_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        ThreadWorkers("x", **{key: value})
    assert caught.value.key == key
    assert caught.value.value == value
