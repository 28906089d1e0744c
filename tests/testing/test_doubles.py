"""The stand-ins that users test with do what their first lines say."""

import threading

import pytest

from resilience import EventStream, Retry, RetryPolicy
from resilience.testing import EventLog, Flaky, Gate, ManualClock, eventually


def test_flaky_raises_what_it_is_told_and_then_gives_its_value():
    flaky = Flaky([ValueError("one"), None, KeyError("three")], value=7)
    with pytest.raises(ValueError, match="one"):
        flaky()
    assert flaky() == 7
    with pytest.raises(KeyError):
        flaky()
    assert flaky("any", arguments=1) == 7
    assert flaky.calls == 4


def test_a_number_of_errors_is_so_many_connection_errors():
    flaky = Flaky(2)
    policy = RetryPolicy(max_retries=2, base_delay=1.0, jitter=False)
    assert Retry(policy, clock=ManualClock()).call(flaky) == "ok"
    assert flaky.calls == 3
    assert Flaky(0)() == "ok"


def test_a_callable_value_gets_the_arguments():
    assert Flaky(0, value=lambda a, b: a + b)(1, b=2) == 3


def test_flaky_knows_how_many_were_inside_at_once():
    gate = Gate()
    flaky = Flaky(0, value=gate)
    threads = [threading.Thread(target=flaky) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert gate.arrived(3)
    gate.open()
    for thread in threads:
        thread.join()
    assert (flaky.peak, flaky.calls) == (3, 3)


def test_a_gate_holds_until_it_is_opened_and_then_lets_everybody_through():
    gate = Gate("through")
    assert not gate.arrived(1, timeout=0)
    got = []
    thread = threading.Thread(target=lambda: got.append(gate("any")))
    thread.start()
    assert gate.arrived(1)
    assert got == []
    gate.open()
    thread.join()
    assert got == ["through"]
    assert gate() == "through"
    assert gate.inside == 0


def test_an_event_log_keeps_kinds_and_events_in_order():
    events, log = EventStream(), EventLog()
    events.subscribe(log)
    events.emit("degraded", "a", reason="x")
    events.emit("restored", "a", reason="y")
    assert events.flush(5.0)
    assert log.kinds() == ["degraded", "restored"]
    assert [event.reason for event in log.of("restored")] == ["y"]


# -- the clock -----------------------------------------------------------------------------------------------------


def test_sleeping_moves_the_time_and_is_written_down():
    clock = ManualClock(10.0)
    assert clock.sleep(5.0) is False
    assert clock.monotonic() == 15.0
    assert clock.sleeps == [5.0]
    assert clock.time() - clock.monotonic() == 1_700_000_000.0 - 10.0


def test_advancing_moves_forward_only():
    clock = ManualClock()
    clock.advance(3)
    assert clock.monotonic() == 3
    with pytest.raises(ValueError, match="forward only"):
        clock.advance(-1)


def test_a_sleep_that_is_woken_already_does_not_move_the_time():
    clock, wake = ManualClock(), threading.Event()
    wake.set()
    assert clock.sleep(5.0, wake) is True
    assert clock.monotonic() == 0.0


def test_parallel_sleeps_do_not_add_up():
    clock = ManualClock()
    at_once = threading.Barrier(8)

    def sleeper():
        start = clock.monotonic()
        at_once.wait(10)
        clock.sleep(10.0 + 0 * start)

    threads = [threading.Thread(target=sleeper) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.sleeps == [10.0] * 8


def test_a_wait_never_moves_the_time_and_ends_when_notified_or_advanced():
    clock, condition, ends = ManualClock(), threading.Condition(), []
    waiting = threading.Event()

    def wait():
        with condition:
            waiting.set()
            ends.append(clock.wait(condition, 5.0))

    for act, expected in ((lambda: clock.advance(5.0), False), (lambda: notify(condition), True)):
        waiting.clear()
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait(10)
        with condition:
            pass  # it waits now
        act()
        thread.join(10)
        assert ends.pop() is expected
    assert clock.monotonic() == 5.0
    with condition:
        assert clock.wait(condition, 0.0) is False


def notify(condition):
    with condition:
        condition.notify_all()


def test_what_comes_true_is_waited_for_and_given():
    answers = iter([0, [], "there"])
    assert eventually(lambda: next(answers)) == "there"


def test_what_never_comes_true_is_named():
    with pytest.raises(AssertionError, match=r"not true within 0.01 s: .*lambda.*test_doubles.py:\d+"):
        eventually(lambda: False, within=0.01)
