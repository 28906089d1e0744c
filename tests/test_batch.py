"""Fan-out as its user sees it: outcomes, order, laziness, the fall to one at a time and the way back."""

import gc
import itertools
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from resilience import (
    ConfigError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    EventStream,
    OperationCancelled,
    RetryPolicy,
    current,
    deadline,
    fan_out,
    fan_out_iter,
    remaining,
)
from resilience.testing import EventLog, Gate

FORMS = [pytest.param(True, id="streamed"), pytest.param(False, id="gathered")]


class Meter:
    """Counts the calls of each item and the most at once; `fails(item, turn)` says which of them fail."""

    def __init__(self, fails=lambda item, turn: False, error=ConnectionError):
        self.fails, self.error = fails, error
        self.lock = threading.Lock()
        self.calls, self.inside, self.log = {}, 0, []

    def __call__(self, item):
        with self.lock:
            turn = self.calls[item] = self.calls.get(item, 0) + 1
            self.inside += 1
            self.log.append((item, self.inside))
        try:
            if self.fails(item, turn):
                raise self.error(f"item {item}, turn {turn}")
            return item * 10
        finally:
            with self.lock:
                self.inside -= 1


class Alone:
    """Tells whether two were ever inside at once since `begins()`; each waits a moment for a second that must not come.

    Who came in before may still be inside then: it looks from the first one that finds nobody.
    """

    def __init__(self, begins):
        self.begins, self.looks = begins, False
        self.lock, self.inside = threading.Lock(), 0
        self.met = threading.Event()

    def __enter__(self):
        with self.lock:
            self.inside += 1
            self.looks = self.looks or bool(self.inside == 1 and self.begins())
            if self.looks and self.inside > 1:
                self.met.set()
        self.met.wait(0.001)

    def __exit__(self, *exc_info):
        with self.lock:
            self.inside -= 1


def join_workers():
    """Waits until the threads of all fan-outs have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("fan_out-"):
            thread.join(30)
            assert not thread.is_alive()


def all_of(streamed, fn, items, **options):
    """Every item's outcome, of either form."""
    return list(fan_out_iter(fn, items, **options)) if streamed else list(fan_out(fn, items, **options).items)


# -- outcomes and order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", FORMS)
def test_every_item_has_one_outcome_in_input_order(streamed):
    meter = Meter()
    items = all_of(streamed, meter, range(300), max_workers=8)
    assert [(item.index, item.item, item.value) for item in items] == [(n, n, n * 10) for n in range(300)]
    assert all(item.ok and item.error is None and item.mode == "concurrent" and item.attempts == 1 for item in items)
    assert set(meter.calls.values()) == {1}


def test_a_result_has_values_errors_and_a_readable_form():
    result = fan_out(Meter(lambda item, turn: item == 2, ValueError), range(4), max_workers=2)
    assert result.values == [0, 10, 30]
    assert len(result.errors) == 1
    assert result.errors.total == 4
    assert result.errors.to_json()["groups"][0]["item"] == "2"
    assert repr(result) == "<FanOutResult: 3 ok, 1 failed>"
    assert result.items[-1].value == 30
    assert [item.index for item in result.items[1:3]] == [1, 2]
    assert "error=ValueError('item 2" in repr(result.items[2])
    assert repr(result.items) == "<4 items>"
    with pytest.raises(IndexError):
        result.items[4]


@pytest.mark.parametrize("streamed", FORMS)
@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_no_items_no_outcomes(streamed, isolation):
    assert all_of(streamed, Meter(), [], isolation=isolation) == []
    assert all_of(streamed, Meter(), iter(()), isolation=isolation) == []


def test_all_errors_are_raised_as_one_group():
    result = fan_out(Meter(lambda item, turn: item % 2, ValueError), range(5))
    with pytest.raises(Exception) as caught:
        result.raise_for_errors()
    assert type(caught.value).__name__ == "ExceptionGroup"
    assert "2 of 5 items failed" in str(caught.value)
    assert [type(error) for error in caught.value.exceptions] == [ValueError, ValueError]
    assert fan_out(Meter(), range(5)).raise_for_errors() is None


def test_an_errors_traceback_starts_in_the_function_and_holds_nothing_of_the_fan_out():
    result = fan_out(Meter(lambda item, turn: True, ValueError), [1])
    trace = result.items[0].error.__traceback__
    assert trace.tb_frame.f_code.co_name == "__call__"
    assert trace.tb_next is None


def test_tracebacks_of_very_many_errors_are_not_kept():
    result = fan_out(Meter(lambda item, turn: True, ValueError), range(1500), max_workers=4)
    assert sum(item.error.__traceback__ is not None for item in result.items) == 1000
    assert all(str(item.error) for item in result.items)


def test_a_forgotten_result_is_freed_without_the_collector():
    class Payload:
        pass

    def fails(item):
        raise ConnectionError("down")

    payload = Payload()
    watched = weakref.ref(payload)
    gc.disable()
    try:
        result = fan_out(fails, [payload], isolation="caller")
        del payload
        assert watched() is not None
        del result
        assert watched() is None
    finally:
        gc.enable()


# -- laziness ----------------------------------------------------------------------------------------------------


def test_a_stream_of_ten_million_is_read_at_most_two_times_the_workers_ahead():
    read = 0

    def numbers():
        nonlocal read
        for read in range(1, 10_000_001):
            yield read - 1

    for item in fan_out_iter(Meter(), numbers(), max_workers=4):
        assert read <= item.index + 1 + 2 * 4
        if item.index == 2_000:
            break
    assert read < 2_100


def test_the_look_ahead_of_a_stream_is_the_callers_choice():
    read, as_far_as_it_may = 0, threading.Event()

    def numbers():
        nonlocal read
        for read in range(1, 10_000_001):
            if read == 51 + 100:
                as_far_as_it_may.set()
            yield read - 1

    ahead = 0
    for item in fan_out_iter(Meter(), numbers(), max_workers=2, look_ahead=100):
        if item.index == 50:
            assert as_far_as_it_may.wait(30)
        ahead = max(ahead, read - item.index - 1)
        if item.index == 1_000:
            break
    assert ahead == 100


def test_a_gathering_fan_out_reads_an_item_when_a_worker_is_free_for_it():
    read, most, done = 0, 0, itertools.count(1)

    def numbers():
        nonlocal read
        for read in range(1, 20_001):
            yield read - 1

    def work(item):
        nonlocal most
        most = max(most, read - next(done))

    fan_out(work, numbers(), max_workers=4)
    assert read == 20_000
    assert most <= 2 * 4


def test_leaving_a_stream_early_reads_and_runs_nothing_more():
    meter = Meter()
    stream = fan_out_iter(meter, itertools.count(), max_workers=2)
    next(stream)
    stream.close()
    calls = sum(meter.calls.values())
    assert calls <= 1 + 2 * 2 + 2
    join_workers()
    assert sum(meter.calls.values()) <= calls + 2


@pytest.mark.parametrize("streamed", FORMS)
def test_an_error_of_the_input_is_raised_after_the_items_read_before_it(streamed):
    meter = Meter()

    def broken():
        yield from range(5)
        raise OSError("the file ended")

    with pytest.raises(OSError, match="the file ended"):
        all_of(streamed, meter, broken(), max_workers=2)
    assert sorted(meter.calls) == [0, 1, 2, 3, 4]


def test_a_stream_gives_what_it_has_before_the_error_of_its_input():
    def broken():
        yield from range(5)
        raise OSError("the file ended")

    given = []
    with pytest.raises(OSError):
        for item in fan_out_iter(Meter(), broken(), max_workers=2):
            given.append(item.index)
    assert given == [0, 1, 2, 3, 4]


# -- falling back and coming back ----------------------------------------------------------------------------------


def test_below_half_it_stays_concurrent_and_from_half_on_it_falls_back():
    fails_49 = Meter(lambda item, turn: item % 100 in range(0, 98, 2))
    calm = fan_out(fails_49, range(100), max_workers=1, window=100, min_calls=100)
    assert calm.degraded is None
    assert len(calm.errors) == 49
    fails_50 = Meter(lambda item, turn: item % 2 == 0)
    fallen = fan_out(fails_50, range(100), max_workers=1, window=100, min_calls=100)
    assert fallen.degraded == "50% of the last attempts failed" or fallen.degraded == "50% of the attempts failed"


@pytest.mark.parametrize("streamed", FORMS)
def test_after_the_fall_one_attempt_at_a_time_and_what_failed_is_repeated_once(streamed):
    failing = {n for n in range(200) if n % 3}
    meter = Meter(lambda item, turn: item in failing and turn == 1)
    events, log = EventStream(), EventLog()
    events.subscribe(log)
    items = all_of(streamed, meter, range(200), max_workers=8, restore_after=1000, events=events)
    assert [item.index for item in items] == list(range(200))
    fallen = [item for item in items if item.mode == "sequential"]
    assert len(fallen) > 100
    if not streamed:
        assert all(item.ok for item in items[:8]), "what had failed before the fall was repeated"
    assert max(meter.calls.values()) == 2
    assert all(item.attempts == meter.calls[item.item] for item in items)
    events.flush(5.0)
    assert log.kinds() == ["degraded"]
    assert "of the last attempts failed" in log.events[0].reason


def test_nothing_runs_twice_at_once_after_the_fall():
    events, log = EventStream(), EventLog()
    events.subscribe(log, kinds=["degraded"])
    alone = Alone(lambda: log.events)

    def work(item):
        with alone:
            if item < 40:
                raise ConnectionError("down")

    result = fan_out(work, range(80), max_workers=8, restore_after=1000, events=events)
    assert result.degraded
    assert alone.looks
    assert not alone.met.is_set()


def test_running_items_that_end_after_the_fall_do_not_widen_it_again():
    gate = Gate()

    def work(item):
        if item < 6:  # six that run on while the other two bring the fall
            gate(item)
            return
        if item < 10:
            raise ConnectionError("down")

    def let_go():
        assert gate.arrived(6)
        started.wait(10)
        gate.open()

    started = threading.Event()
    events = EventStream()
    falls = []
    events.subscribe(lambda event: (falls.append(event), started.set()), kinds=["degraded"])
    opener = threading.Thread(target=let_go)
    opener.start()
    result = fan_out(work, range(30), max_workers=8, min_calls=2, restore_after=6, events=events)
    opener.join()
    assert result.degraded
    sequential = [item.mode for item in result.items[10:]]
    events.flush(5.0)
    assert len(falls) == 1, "wide again too early, it would have fallen a second time"
    assert sequential[:5] == ["sequential"] * 5, "the six that ran on are no successes of the sequential way"


def test_retries_of_running_items_pass_one_at_a_time_too():
    manager = ErrorRecoveryManager()
    manager.register_retry_policy("probe", RetryPolicy(max_retries=3, base_delay=0.001, jitter=False))
    manager.register_timeout("probe", None)
    log = EventLog()
    manager.events.subscribe(log, kinds=["degraded"])
    alone = Alone(lambda: log.events)

    def work(item):
        with alone:
            pass
        raise ConnectionError("down")

    with manager:
        result = fan_out(work, range(24), max_workers=8, operation="probe", manager=manager)
    assert result.degraded
    assert alone.looks
    assert not alone.met.is_set()
    assert all(item.attempts >= 4 for item in result.items), "each pass makes four attempts"
    assert all(item.attempts in (4, 8) for item in result.items)


def test_attempts_count_the_retries_of_a_named_operation():
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("job", RetryPolicy(max_retries=2, base_delay=0.0, jitter=False))
        meter = Meter(lambda item, turn: item == 3 and turn < 3)
        result = fan_out(meter, range(6), operation="job", manager=manager, max_workers=2, failure_threshold=1.0)
    assert [item.attempts for item in result.items] == [1, 1, 1, 3, 1, 1]


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_an_items_own_error_neither_triggers_nor_repeats(kind):
    meter = Meter(lambda item, turn: True, kind)
    result = fan_out(meter, range(100), max_workers=4)
    assert result.degraded is None
    assert set(meter.calls.values()) == {1}
    assert {item.mode for item in result.items} == {"concurrent"}


def test_a_job_too_short_for_min_calls_is_judged_at_its_end():
    meter = Meter(lambda item, turn: turn == 1 and item < 2)
    result = fan_out(meter, range(4), max_workers=4)
    assert result.degraded == "50% of the attempts failed"
    assert result.values == [0, 10, 20, 30]
    assert [item.mode for item in result.items] == ["sequential", "sequential", "concurrent", "concurrent"]
    assert [item.attempts for item in result.items] == [2, 2, 1, 1]


def test_coming_back_doubles_and_says_so():
    events, log = EventStream(), EventLog()
    events.subscribe(log)
    meter = Meter(lambda item, turn: item < 10)
    result = fan_out(meter, range(100), max_workers=3, restore_after=3, events=events)
    events.flush(5.0)
    assert [event.reason for event in log.of("restored")] == ["up to 2 of 3 at a time", "up to 3 of 3 at a time"]
    assert log.kinds() == ["degraded", "restored", "restored"]
    assert result.items[-1].mode == "concurrent"
    assert all(item.ok for item in result.items[10:])


def test_it_falls_back_a_second_time_and_repeats_what_failed_meanwhile():
    def fails(item, turn):
        return turn == 1 and (item < 10 or 100 <= item < 110)

    events, log = EventStream(), EventLog()
    events.subscribe(log)
    meter = Meter(fails)
    result = fan_out(meter, range(200), max_workers=2, restore_after=2, events=events)
    events.flush(5.0)
    assert log.kinds() == ["degraded", "restored", "degraded", "restored"]
    assert len(result.values) == 200
    assert {item: calls for item, calls in meter.calls.items() if calls > 1} == dict.fromkeys(
        [*range(10), *range(100, 110)], 2
    )


def test_one_fall_is_one_event_however_many_fail_at_once():
    for _ in range(20):
        barrier = threading.Barrier(16)
        events, log = EventStream(), EventLog()
        events.subscribe(log)

        def fails(item, turn, barrier=barrier):
            if item < 16 and turn == 1:
                barrier.wait(10)
            return True

        fan_out(Meter(fails), range(32), max_workers=16, min_calls=2, events=events)
        events.flush(5.0)
        assert log.kinds() == ["degraded"]


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
)
def test_exhaustion_falls_back_at_once(error):
    raised = iter([True])

    def work(item):
        if item == 30 and next(raised, False):
            raise error
        return item

    result = fan_out(work, range(60), max_workers=4)
    assert result.degraded.startswith("resource exhaustion (")
    assert result.values == list(range(60))
    assert result.items[30].mode == "sequential"


def test_threads_that_cannot_start_leave_the_work_to_those_that_can(monkeypatch):
    refused = refuse_after(monkeypatch, 3)
    gate = Gate()
    opener = threading.Thread(target=lambda: (refused.wait(30), gate.open()))
    opener.start()
    meter = Meter()
    result = fan_out(lambda item: meter(item) if item > 2 else [gate(item), meter(item)][1], range(100), max_workers=8)
    opener.join()
    assert result.degraded == "only 3 of 8 threads could be started"
    assert result.values == [n * 10 for n in range(100)]


@pytest.mark.parametrize("streamed", FORMS)
def test_where_no_thread_starts_the_caller_does_the_work(monkeypatch, streamed):
    refuse_after(monkeypatch, 0)
    ran_on = set()
    items = all_of(streamed, lambda item: ran_on.add(threading.current_thread()), range(100), max_workers=8)
    assert len(items) == 100
    assert ran_on == {threading.current_thread()}
    assert {item.mode for item in items} == {"sequential"}


def refuse_after(monkeypatch, count):
    """No more than `count` threads of fan-outs can be started; gives the event of the first refusal."""
    start, started, refused = threading.Thread.start, itertools.count(), threading.Event()

    def limited(thread):
        if thread.name.startswith("fan_out-") and next(started) >= count:
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return refused


# -- where it runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", FORMS)
def test_in_the_callers_thread_items_run_one_by_one(streamed):
    meter, ran_on = Meter(), set()

    def work(item):
        ran_on.add(threading.current_thread())
        return meter(item)

    items = all_of(streamed, work, range(50), isolation="caller", max_workers=8)
    assert [item.value for item in items] == [n * 10 for n in range(50)]
    assert ran_on == {threading.current_thread()}


def test_a_stream_in_the_callers_thread_runs_an_item_when_it_is_asked_for():
    meter = Meter()
    stream = fan_out_iter(meter, itertools.count(), isolation="caller")
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    assert len(meter.calls) == 3
    stream.close()


def test_items_see_the_callers_surroundings_and_a_deadline_of_their_own():
    import contextvars

    colour = contextvars.ContextVar("colour", default="none")
    colour.set("red")
    with ErrorRecoveryManager() as manager, manager.timeouts.operation("backfill"):
        result = fan_out(lambda item: (colour.get(), current().operation, remaining()), range(4), deadline=5.0)
    assert all(value[:2] == ("red", "backfill") and 0 < value[2] <= 5.0 for value in result.values)


def test_it_can_be_nested():
    result = fan_out(lambda item: fan_out(Meter(), range(item), max_workers=2).values, range(5), max_workers=3)
    assert result.values == [[n * 10 for n in range(item)] for item in range(5)]


def test_inside_an_operation_with_retries_each_item_is_a_tree_of_its_own():
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("outer", RetryPolicy(max_retries=2, base_delay=0.0, jitter=False))
        manager.register_retry_policy("inner", RetryPolicy(max_retries=1, base_delay=0.0, jitter=False))
        meter = Meter(lambda item, turn: turn == 1)

        def batch():
            return fan_out(meter, range(8), operation="inner", manager=manager, failure_threshold=1.0, min_calls=99)

        result = manager.execute_with_retry("outer", batch)
    assert [item.ok for item in result.items] == [True] * 8
    assert set(meter.calls.values()) == {2}


def test_degradation_mode_of_the_process_wide_manager_counts_too():
    from resilience import default_manager

    default_manager().enable_degradation_mode()
    try:
        result = fan_out(Meter(), range(30), max_workers=8, restore_after=1)
    finally:
        default_manager().disable_degradation_mode()
    assert result.degraded == "degradation mode"
    assert {item.mode for item in result.items} == {"sequential"}
    assert fan_out(Meter(), range(30)).degraded is None


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", FORMS)
@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_nothing_is_begun_once_the_deadline_around_it_has_passed(streamed, isolation):
    meter = Meter()
    with deadline(0.0):
        items = all_of(streamed, meter, range(20), max_workers=4, isolation=isolation)
    assert [(item.error.phase, item.attempts) for item in items] == [("queued", 0)] * 20
    assert not meter.calls


@pytest.mark.parametrize("streamed", FORMS)
@pytest.mark.parametrize("source", [list, iter], ids=["a list", "a generator"])
def test_at_the_deadline_every_item_has_an_outcome(streamed, source):
    gate = Gate()

    def work(item):
        return gate(item) if item >= 10 else item

    items = all_of(streamed, work, source(list(range(1000))), max_workers=4, deadline=1.0)
    gate.open()
    assert [item.index for item in items] == list(range(1000))
    assert all(item.ok for item in items[:10])
    late = [item for item in items if not item.ok]
    assert all(isinstance(item.error, DeadlineExceeded) and item.error.ambient for item in late)
    hung = [item for item in late if item.error.phase == "running"]
    assert 1 <= len(hung) <= 4
    assert all(not item.error.reclaimed and "gate" in item.error.stack and item.attempts == 1 for item in hung)
    never = late[len(hung) :]
    assert all(item.error.phase == "queued" and item.error.reclaimed and item.attempts == 0 for item in never)


def test_items_left_behind_are_in_the_ledger_until_they_end():
    from resilience.workers.ledger import LEDGER

    gate = Gate()
    with ErrorRecoveryManager() as manager:
        result = fan_out(gate, range(2), max_workers=2, deadline=1.0, manager=manager)
        assert [item.error.name for item in result.items] == ["fan_out", "fan_out"]
        assert LEDGER.abandoned_by_operation()["fan_out"] == 2
        assert "fan_out" not in manager.status()["alive"].get("thread", {})
        threads = manager.status()["resources"]["thread"]
        assert (threads["current_active"], threads["abandoned"]) == (2, 2)
        gate.open()
        join_workers()
        assert "fan_out" not in LEDGER.abandoned_by_operation()
        assert manager.status()["resources"]["thread"]["current_active"] == 0
    assert not result.items[0].ok, "a late result is dropped"


@pytest.mark.parametrize("streamed", FORMS)
def test_input_that_blocks_does_not_hold_up_the_deadline(streamed):
    never, has_ended = threading.Event(), []

    def source():
        yield 1
        yield 2
        never.wait(60)
        has_ended.append(True)

    items = all_of(streamed, Meter(), source(), max_workers=2, deadline=1.0)
    assert [item.value for item in items] == [10, 20]
    assert not has_ended
    never.set()


def test_the_concurrent_pass_ends_before_the_deadline_so_that_the_rest_has_time(monkeypatch):
    monkeypatch.setattr("resilience.batch_run.CONCURRENT_SHARE", 0.01)
    gate, calls = Gate(), []

    def work(item):
        calls.append(item)
        if item < 2 and calls.count(item) == 1:
            raise ConnectionError("down")
        if 2 <= item < 4 and not passed.is_set():
            gate(item)
        return item

    passed = threading.Event()
    events = EventStream()
    events.subscribe(lambda event: (passed.set(), gate.open()), kinds=["degraded"])
    result = fan_out(work, range(40), max_workers=2, deadline=60.0, min_calls=30, window=40, events=events)
    assert result.degraded == "the deadline of the concurrent pass"
    assert result.values == list(range(40))
    assert [item.mode for item in result.items[:2]] == ["sequential", "sequential"]


def test_an_ambient_deadline_bounds_it_too():
    gate = Gate()
    with deadline(0.1):
        result = fan_out(gate, range(10), max_workers=2, deadline=60.0)
    gate.open()
    assert all(isinstance(item.error, DeadlineExceeded) for item in result.items)


def test_a_sleep_inside_an_item_ends_at_the_deadline():
    import resilience

    result = fan_out(lambda item: resilience.sleep(60), range(2), max_workers=2, deadline=0.1)
    assert all(isinstance(item.error, DeadlineExceeded) for item in result.items)


# -- what stops it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", FORMS)
@pytest.mark.parametrize("isolation", ["thread", "caller"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_stops_everything_and_is_raised(streamed, isolation, stop):
    def work(item):
        if item == 5:
            raise stop()
        return item

    with pytest.raises(stop):
        all_of(streamed, work, range(10_000), max_workers=4, isolation=isolation)


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_a_ctrl_c_while_the_input_is_read_stops_everything(isolation):
    def interrupted():
        yield from range(20)
        raise KeyboardInterrupt

    meter = Meter(fails=lambda item, turn: True)
    with pytest.raises(KeyboardInterrupt):
        fan_out(meter, interrupted(), max_workers=1, isolation=isolation, min_calls=21)
    assert set(meter.calls.values()) == {1}  # nothing is repeated


def test_what_is_no_exception_does_not_wait_for_items_that_hang():
    gate = Gate()

    def work(item):
        if item:
            raise SystemExit(3)
        return gate(item)

    with pytest.raises(SystemExit):
        fan_out(work, range(2), max_workers=2)
    gate.open()


@pytest.mark.parametrize("streamed", FORMS)
def test_cancelling_the_operation_around_it_ends_it(streamed):
    gate = Gate()
    with ErrorRecoveryManager() as manager:
        with pytest.raises(OperationCancelled, match="enough"), manager.timeouts.operation("backfill") as context:
            canceller = threading.Thread(target=lambda: (gate.arrived(2), context.cancel("enough")))
            canceller.start()
            all_of(streamed, gate, range(10), max_workers=2)
        gate.open()
        canceller.join()


@pytest.mark.parametrize("streamed", FORMS)
def test_a_shutdown_ends_it(streamed):
    from resilience import ShutdownInProgress
    from resilience.core import lifecycle

    gate = Gate()
    stopper = threading.Thread(target=lambda: (gate.arrived(2), lifecycle.begin_shutdown()))
    stopper.start()
    try:
        with pytest.raises(ShutdownInProgress):
            all_of(streamed, gate, range(10), max_workers=2)
        with pytest.raises(ShutdownInProgress):
            all_of(streamed, gate, range(10), max_workers=2)
    finally:
        gate.open()
        stopper.join()
        lifecycle.reset_after_shutdown()


# -- progress and keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", FORMS)
@pytest.mark.parametrize("share", [0, 3, 10], ids=["none fails", "some fail", "all fail"])
def test_progress_hears_of_each_item_once_when_its_outcome_is_final(streamed, share):
    heard, lock = [], threading.Lock()

    def progress(item):
        with lock:
            heard.append((item.index, item.ok, item.attempts))

    meter = Meter(lambda item, turn: item % 10 < share)
    items = all_of(streamed, meter, range(100), max_workers=4, window=100, min_calls=30, on_progress=progress)
    assert sorted(heard) == [(item.index, item.ok, item.attempts) for item in items]


def test_progress_hears_of_items_that_were_given_up():
    heard, gate = [], Gate()
    fan_out(gate, range(20), max_workers=2, deadline=0.1, on_progress=lambda item: heard.append(item.index))
    gate.open()
    assert sorted(heard) == list(range(20))


def test_a_progress_listener_that_raises_stops_the_job_with_its_error():
    def progress(item):
        raise ZeroDivisionError("in the progress bar")

    with pytest.raises(ZeroDivisionError):
        fan_out(Meter(), range(100), max_workers=4, on_progress=progress)


@pytest.mark.parametrize("streamed", FORMS)
def test_items_of_an_equal_key_run_once_and_share_the_outcome(streamed):
    meter = Meter(lambda item, turn: item == "b", ValueError)
    meter_calls = lambda item: (meter(item["name"]), item["name"])[1]  # noqa: E731  # one expression on purpose
    names = ["a", "b", "a", "c", "b", "a", "d", "d"]
    given = [{"name": name, "position": position} for position, name in enumerate(names)]
    heard = []
    items = all_of(
        streamed, meter_calls, iter(given), max_workers=3, key=lambda item: item["name"],
        on_progress=lambda item: heard.append((item.index, item.item["name"])),
    )  # fmt: skip
    assert meter.calls == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert [item.index for item in items] == list(range(8))
    assert [item.item for item in items] == given
    assert [item.value for item in items] == ["a", None, "a", "c", None, "a", "d", "d"]
    assert items[1].error is items[4].error
    assert sorted(heard) == [(0, "a"), (1, "b"), (3, "c"), (6, "d")]


def test_a_key_that_raises_is_an_error_of_the_input():
    with pytest.raises(KeyError):
        fan_out(Meter(), [{}], key=lambda item: item["id"])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_workers", 0), ("max_workers", 1.5), ("failure_threshold", 0), ("failure_threshold", 1.01),
        ("failure_threshold", "half"), ("window", 0), ("min_calls", 0), ("deadline", 0), ("deadline", float("nan")),
        ("deadline", -1), ("isolation", "fibre"), ("restore_after", 0), ("key", "id"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [fan_out, fan_out_iter])
def test_a_bad_parameter_is_refused_by_name_before_anything_runs(form, key, value):
    meter = Meter()
    with pytest.raises(ConfigError) as caught:
        form(meter, [1], **{key: value})
    assert caught.value.key == key
    assert not meter.calls


def test_a_look_ahead_of_nothing_and_a_function_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="look_ahead"):
        fan_out_iter(Meter(), [1], look_ahead=0)
    with pytest.raises(ConfigError, match="fn"):
        fan_out("not a function", [1])
    with pytest.raises(TypeError):
        fan_out(Meter(), 5)


def test_asynchronous_functions_and_generators_are_refused():
    async def fetch(item):
        return item

    def produce(item):
        yield item

    for wrong in (fetch, produce):
        with pytest.raises(TypeError, match=wrong.__name__):
            fan_out(wrong, [1])
    result = fan_out(lambda item: fetch(item), [1, 2])  # it only shows when it returns
    assert all(isinstance(item.error, TypeError) for item in result.items)


# -- executors that are given -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", FORMS)
def test_a_given_pool_of_threads_runs_the_items_in_their_surroundings(streamed):
    with ThreadPoolExecutor(4, thread_name_prefix="given") as pool:
        meter = Meter(lambda item, turn: item % 3 and turn == 1)

        def work(item):
            assert threading.current_thread().name.startswith("given")
            assert remaining() is not None
            return meter(item)

        items = all_of(streamed, work, range(100), executor=pool, deadline=60.0, restore_after=1000)
    assert [item.index for item in items] == list(range(100))
    assert max(meter.calls.values()) == 2
    assert {item.mode for item in items[40:]} == {"sequential"}
    assert all(item.ok for item in items[40:] if item.item % 3 == 0)


def test_a_pool_that_is_given_has_as_many_in_flight_as_it_has_workers():
    gate = Gate()
    with ThreadPoolExecutor(40) as pool:
        opener = threading.Thread(target=lambda: (gate.arrived(40), gate.open()))
        opener.start()
        fan_out(gate, range(80), executor=pool)
        opener.join()


def test_retries_inside_a_given_pool_pass_the_gate():
    with ErrorRecoveryManager() as manager, ThreadPoolExecutor(8) as pool:
        manager.register_retry_policy("probe", RetryPolicy(max_retries=1, base_delay=0.001, jitter=False))
        meter = Meter(lambda item, turn: True)
        result = fan_out(meter, range(40), executor=pool, operation="probe", manager=manager)
    fall = next(n for n, (_, inside) in enumerate(meter.log) if n > 40)
    assert result.degraded
    assert {inside for _, inside in meter.log[fall:]} == {1}


def test_a_pool_that_was_shut_down_leaves_the_work_to_the_fan_out():
    pool = ThreadPoolExecutor(2)
    pool.shutdown()
    result = fan_out(Meter(), range(20), executor=pool)
    assert result.values == [n * 10 for n in range(20)]
    assert result.degraded == "the executor broke (RuntimeError)"


def test_a_pool_shut_down_in_the_middle_costs_no_item_and_repeats_none():
    pool = ThreadPoolExecutor(4)
    meter = Meter()

    def work(item):
        if item == 20:
            pool.shutdown(wait=False, cancel_futures=True)
        return meter(item)

    result = fan_out(work, range(100), executor=pool, max_workers=8)
    assert result.values == [n * 10 for n in range(100)]
    assert set(meter.calls.values()) == {1}
    assert result.degraded


def test_a_pool_that_can_start_no_thread_runs_no_item_twice(monkeypatch):
    pool = ThreadPoolExecutor(8, thread_name_prefix="given")
    start, started, refused = threading.Thread.start, itertools.count(), threading.Event()

    def limited(thread):
        if thread.name.startswith("given") and next(started) >= 2:
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    meter = Meter()

    def work(item):
        assert refused.wait(30)
        return meter(item)

    result = fan_out(work, range(60), executor=pool)
    pool.shutdown()
    assert result.values == [n * 10 for n in range(60)]
    assert set(meter.calls.values()) == {1}


def test_a_factory_makes_the_executor_and_it_is_shut_down_at_the_end():
    made = []

    def factory():
        made.append(ThreadPoolExecutor(2, thread_name_prefix="made"))
        return made[-1]

    result = fan_out(Meter(), range(10), executor=factory)
    assert result.values == [n * 10 for n in range(10)]
    assert len(made) == 1
    with pytest.raises(RuntimeError):
        made[0].submit(int)


def test_an_executor_of_ones_own_needs_submit_and_futures_only():
    from concurrent.futures import Executor, Future

    class Inline(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)
            return future

    meter = Meter(lambda item, turn: item == 3, ValueError)
    result = fan_out(meter, range(6), executor=Inline())
    assert [item.ok for item in result.items] == [True, True, True, False, True, True]
    assert set(meter.calls.values()) == {1}


if sys.version_info >= (3, 11):

    def test_the_group_can_be_split_with_except_star():
        namespace = {"result": fan_out(Meter(lambda item, turn: item == 1, ValueError), range(3)), "seen": []}
        exec("try:\n    result.raise_for_errors()\nexcept* ValueError as group:\n    seen.append(group)", namespace)
        assert len(namespace["seen"][0].exceptions) == 1


@dataclass(frozen=True)
class Frozen(Exception):
    """Refuses every attribute, also those that Python itself sets."""

    code: int


def test_an_error_that_refuses_attributes_is_the_outcome_of_its_item():
    def fail(item):
        raise Frozen(item)

    assert [item.error for item in fan_out(fail, [1, 2, 3]).items] == [Frozen(1), Frozen(2), Frozen(3)]
