"""A Ctrl-C at each single point of a call at which Python looks for signals: nothing stays taken.

CPython looks when a function begins and when one written in C has returned; a profiler is called at the same points.
"""

import contextlib
import functools
import gc
import itertools
import pickle
import sys
import threading
from contextvars import copy_context

import pytest

from resilience import (
    Bulkhead,
    CircuitBreakerConfig,
    DeadlineExceeded,
    ErrorRecoveryManager,
    Pipeline,
    RateLimiter,
    RetryPolicy,
    Timeout,
    TimeoutManager,
    WorkerGroup,
    current,
    deadline,
)
from resilience.core.clock import SYSTEM
from resilience.testing import Gate, eventually
from resilience.workers import process_pool, threads
from resilience.workers.ledger import LEDGER
from resilience.workers.processes import ProcessWorkers
from resilience.workers.thread_task import when_ended
from resilience.workers.threads import ThreadWorkers
from resilience.workers.watchdog import Watchdog
from resilience.workers.wire import VALUE


def interrupted_at(number, call):
    """Whether `call()` was interrupted at its point of that number; False when it has fewer."""
    points = itertools.count(1)

    def look(frame, event, argument):
        if event in ("call", "c_return") and argument is not sys.setprofile and next(points) == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(look)
        call()
        sys.setprofile(None)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def alone(bulkhead, manager):
    return lambda: bulkhead.call(int)


def decorated(bulkhead, manager):
    return bulkhead(lambda: 1)


def composed(bulkhead, manager):
    return Pipeline(bulkhead, Timeout(60.0, isolation="caller"))(lambda: 1)


def timed(bulkhead, manager):
    return Timeout(60.0, isolation="caller")(lambda: 1)


def named(bulkhead, manager):
    manager.circuit_breaker("x", CircuitBreakerConfig(failure_threshold=10**6))
    manager.register_bulkhead("x", bulkhead)
    manager.register_rate_limiter("x", RateLimiter("x", 10**9))
    return manager.protect("x", isolation="caller")(lambda: 1)


@pytest.mark.parametrize("make", [alone, decorated, composed, timed, named])
def test_a_ctrl_c_at_any_point_of_a_call_leaves_nothing_taken(make):
    bulkhead = Bulkhead("narrow", 2)
    with ErrorRecoveryManager() as manager:
        call = make(bulkhead, manager)
        call()
        for number in itertools.count(1):
            was_interrupted = interrupted_at(number, call)
            assert bulkhead.in_flight == 0, number
            assert current() is None, number
            assert call() is not None
            if not was_interrupted:
                break
    assert number > 3
    print(f"{make.__name__}: {number - 1} points")


def untimed(manager):
    manager.register_timeout("x", None)
    return lambda: manager.execute_with_retry("x", int)


def failing(manager):
    manager.register_timeout("x", None)
    manager.register_retry_policy("x", RetryPolicy(max_retries=0))
    return lambda: manager.execute_with_recovery("x", int, "no number")


@pytest.mark.parametrize("make", [untimed, failing])
def test_a_ctrl_c_at_any_point_of_a_call_leaves_no_operation_active_and_none_in_force(make):
    with ErrorRecoveryManager() as manager:
        call = make(manager)
        call()

        def scene(number):
            was_interrupted = interrupted_at(number, call)
            assert manager.timeouts.active_operations() == [], number
            assert current() is None, number
            return was_interrupted

        points(scene)


def test_a_ctrl_c_within_an_operation_block_leaves_it():
    timeouts = TimeoutManager()

    def block():
        with timeouts.operation("x"):
            pass

    left_behind = []
    for number in itertools.count(1):
        was_interrupted = copy_context().run(interrupted_at, number, block)
        left_behind += timeouts.active_operations()
        timeouts.cancel_all_operations()
        for active in timeouts.active_operations():
            timeouts.complete_operation(active.id)
        if not was_interrupted:
            break
    assert number > 20
    assert len(left_behind) <= 1  # where its `__exit__` begins, nothing of it has run


def test_a_ctrl_c_on_the_way_into_a_deadline_leaves_none_in_force():
    for number in itertools.count(1):
        block = deadline(60.0)
        was_interrupted = interrupted_at(number, block.__enter__)
        if not was_interrupted:
            break
        assert current() is None, number
    block.__exit__(None, None, None)
    assert number > 2


@contextlib.contextmanager
def one_worker():
    """A set of one worker thread, whose place is free again afterwards."""
    workers = ThreadWorkers("interrupted", max_workers=1)
    yield workers
    workers.shutdown(wait=False)
    eventually(lambda: workers._workers == workers.abandoned == 0, within=10)
    assert "interrupted" not in LEDGER.abandoned_by_operation()


def points(scene):
    """Runs `scene(number)` for each point, until it was not interrupted any more."""
    gc.disable()  # finalizers would swallow the interrupt
    try:
        number = next(number for number in itertools.count(1) if not scene(number))
    finally:
        gc.enable()
    assert number > 3
    print(f"{number - 1} points")


def test_a_ctrl_c_at_any_point_of_a_start_of_a_worker_thread_leaves_no_place_taken():
    def scene(number):
        with one_worker() as workers:
            try:
                was_interrupted = interrupted_at(number, lambda: workers.call(int))
            except RuntimeError as error:  # what `threading` makes of it here and there
                assert "release unlocked lock" in str(error)
                was_interrupted = True
            assert workers.call(int, timeout=10) == 0, number
        return was_interrupted

    points(scene)


def test_a_ctrl_c_at_any_point_of_a_call_on_an_idle_worker_thread_leaves_it_to_the_next_one():
    with one_worker() as workers:

        def scene(number):
            workers.call(int)
            eventually(lambda: workers._idle)
            was_interrupted = interrupted_at(number, lambda: workers.call(int))
            assert workers.call(int, timeout=10) == 0, number
            return was_interrupted

        points(scene)


def test_a_ctrl_c_at_any_point_of_a_queued_call_leaves_nothing_in_the_queue():
    gate, ran = Gate(), []
    with one_worker() as workers:
        busy = workers.submit(gate)
        assert gate.arrived()

        def queued():
            with contextlib.suppress(DeadlineExceeded):
                workers.call(ran.append, (1,), timeout=0.001)

        points(lambda number: interrupted_at(number, queued))
        gate.open()
        busy.result(10)
        assert workers.call(int, timeout=10) == 0
    assert ran == []


def test_a_ctrl_c_at_any_point_of_giving_up_a_call_leaves_its_place_to_the_queue_and_knows_of_the_call(monkeypatch):
    monkeypatch.setattr(threads, "_stack_of", lambda thread: "")  # a few hundred points

    def scene(number):
        gate, raised, told = Gate(), [], []
        with one_worker() as workers:
            workers.call(int)
            eventually(lambda: workers._idle)

            def late():
                try:
                    workers.call(gate, timeout=0.02)
                except BaseException as error:
                    raised.append(error)
                    if not isinstance(error, DeadlineExceeded):
                        raise

            was_interrupted = interrupted_at(number, late)
            assert workers.call(int, timeout=10) == 0, number
            for error in raised:
                when_ended(error, lambda: told.append(number))
            assert len(told) == len(raised) - workers.abandoned, number
            gate.open()
        return was_interrupted

    points(scene)


living = []


class Process:
    """In place of a `WorkerProcess`: calls are answered here and now, or not at all."""

    def __init__(self, method, settings):
        living.append(self)
        self.entry = LEDGER.enter("process", settings.name)
        self.pid = self.tasks = 0
        self.is_ended = self.wants_to_leave = False

    def interrupt(self):
        pass

    def wait_until_ready(self, end, clock):
        return True

    def call(self, payload, end, clock):
        assert not self.is_ended
        self.tasks += 1
        return None if end is not None else (VALUE, pickle.dumps("done"))

    def stack(self):
        return ""

    def end(self):
        self.is_ended = True
        if self in living:
            living.remove(self)
            LEDGER.leave(self.entry)
        return True

    let_go = end


@pytest.mark.parametrize("timeout", [None, 60.0], ids=["answered", "given up"])
@pytest.mark.parametrize("max_tasks", [None, 1], ids=["kept", "worn out"])
def test_a_ctrl_c_at_any_point_of_a_call_on_a_worker_process_leaves_no_place_taken(monkeypatch, timeout, max_tasks):
    monkeypatch.setattr(process_pool, "WorkerProcess", Process)
    workers = ProcessWorkers("interrupted", max_workers=1, max_tasks=max_tasks)

    def call():
        with contextlib.suppress(DeadlineExceeded):
            workers.call(int, timeout=timeout)

    def scene(number):
        was_interrupted = interrupted_at(number, call)
        assert workers._pool._places == len(workers._pool.idle), number
        assert workers.abandoned == 0, number
        started = set(workers._pool.held)
        assert started == set(workers._pool.idle) == started.intersection(living), number
        return was_interrupted

    points(scene)
    workers.shutdown()


@pytest.mark.parametrize("way", ["start", "restart"])
def test_a_ctrl_c_at_any_point_of_starting_a_supervised_worker_leaves_it_to_the_next_start(way):
    def scene(number):
        ran = []
        group = WorkerGroup(manager)
        group.add("interrupted", lambda: ran.append(1), 60.0)
        again = group.start if way == "start" else functools.partial(group.restart, "interrupted")
        try:
            was_interrupted = interrupted_at(number, again)
        except RuntimeError as error:  # what `threading` makes of it here and there
            assert "release unlocked lock" in str(error)
            was_interrupted = True
        again()
        eventually(lambda: ran, within=10)
        assert ran == [1], number
        assert group.is_healthy(), number
        assert group.stop() == []
        return was_interrupted

    with ErrorRecoveryManager() as manager:
        points(scene)


def test_a_ctrl_c_at_any_point_of_arming_a_deadline_leaves_the_watchdog_to_the_others():
    watchdog = Watchdog()

    def scene(number):
        was_interrupted = interrupted_at(number, lambda: watchdog.arm(SYSTEM.monotonic() + 60.0, int).cancel())
        called = threading.Event()
        watchdog.arm(SYSTEM.monotonic(), called.set)
        assert called.wait(10), number
        return was_interrupted

    watchdog.arm(SYSTEM.monotonic(), int)
    points(scene)
