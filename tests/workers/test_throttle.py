"""Near a limit of the process fan-outs and bulkheads get narrower, and wider again when it is far."""

import threading

import pytest

from resilience import Bulkhead, BulkheadFullError, ErrorRecoveryManager, EventStream, fan_out, fan_out_iter
from resilience.testing import ManualClock
from resilience.workers import gate as gates
from resilience.workers.throttle import Throttle


class Usage:
    """The share of each limit in use, as a test says."""

    def __init__(self):
        self.shares = {"memory": 0.3, "fds": 0.2, "threads": None}
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return dict(self.shares)

    def usage(self, reading=None):
        return self()

    def read(self):
        return dict.fromkeys(("cpu", "rss", "threads", "os_threads", "fds", "children")) | {"limits": {}}


@pytest.fixture
def usage():
    return Usage()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def manager(clock, usage):
    with ErrorRecoveryManager(clock=clock) as made:
        made.monitor.reader = usage
        yield made


def looks(clock, throttle, number):
    for _ in range(number):
        clock.advance(1.0)
        throttle.look()


def test_the_usage_is_read_at_most_once_a_second(clock, usage):
    throttle = Throttle(usage, clock=clock)
    for _ in range(5):
        throttle.look()
    assert usage.looks == 1
    looks(clock, throttle, 3)
    assert usage.looks == 4


def test_a_bulkhead_is_halved_and_comes_back_and_says_why(clock, usage):
    events, heard = EventStream(clock=clock), []
    events.subscribe(heard.append, kinds=("degraded", "restored"))
    throttle, bulkhead = Throttle(usage, clock=clock, events=events), Bulkhead("db", 8, clock=clock)
    throttle.obey(bulkhead)
    throttle.look()
    usage.shares["fds"] = 0.82
    seen = []
    for share in (0.82, 0.82, 0.82, 0.75, 0.96, 0.75, 0.6, 0.6, 0.6):
        usage.shares["fds"] = share
        looks(clock, throttle, 1)
        seen.append(bulkhead.max_concurrent)
    assert seen == [4, 2, 1, 1, 0, 1, 2, 4, 8]
    events.flush()
    assert [event.kind for event in heard] == ["degraded"] * 4 + ["restored"] * 4
    assert heard[0].reason == "fds at 82% of its limit: at most 1/2 of each width"
    assert (heard[0].resource, heard[0].share) == ("fds", 0.82)
    assert "nothing is admitted" in heard[3].reason
    assert "full width" in heard[-1].reason


def test_a_bulkhead_that_admits_nothing_refuses_with_the_reason_and_looks_again(clock, usage):
    throttle, bulkhead = Throttle(usage, clock=clock), Bulkhead("db", 2, clock=clock)
    throttle.obey(bulkhead)
    usage.shares["memory"] = 0.97
    throttle.look()
    with pytest.raises(BulkheadFullError, match="memory at 97% of its limit"):
        bulkhead.call(lambda: 1)
    usage.shares["memory"] = 0.1
    with pytest.raises(BulkheadFullError):
        bulkhead.call(lambda: 1)  # within the same second
    clock.advance(1.0)
    assert bulkhead.call(lambda: 1) == 1
    assert bulkhead.max_concurrent == 1
    bulkhead.resize(6)
    clock.advance(1.0)
    assert bulkhead.call(lambda: 1) == 1
    assert bulkhead.max_concurrent == 6


def test_the_bulkheads_of_a_manager_obey_also_in_the_express_lane(manager, clock, usage):
    bulkhead = Bulkhead("fast", 4)
    manager.register_bulkhead("fast", bulkhead)
    call = manager.protect("fast", isolation="caller")(lambda: bulkhead.max_concurrent)
    assert call() == 4
    usage.shares["memory"] = 0.9
    clock.advance(6.0)  # a call every few seconds looks, at its end
    assert [call(), call()] == [4, 2]
    usage.shares["memory"] = 0.99
    clock.advance(6.0)
    call()
    assert "memory at 99%" in manager.status()["pressure"]
    with pytest.raises(BulkheadFullError, match="memory at 99%"):
        manager.execute_with_retry("fast", lambda: 1)
    assert manager.monitor.operations()["fast"]["rejections"] == 1
    usage.shares["memory"] = 0.2
    for _ in range(4):
        clock.advance(1.0)
        manager.watch.throttle.look()
    assert call() == 4
    assert manager.status()["pressure"] is None


def test_a_fan_out_gets_narrower_while_it_runs_and_wide_again(manager, clock, usage):
    told, widths, lock = [], [], threading.Lock()
    manager.events.subscribe(told.append, kinds=("degraded", "restored"))
    running, peak = 0, 0
    throttle = manager.watch.throttle

    def work(number):
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        if number % 25 == 24:  # one of the workers moves the time
            with lock:
                usage.shares["fds"] = 0.9 if number < 100 else 0.1
                clock.advance(1.0)
                throttle.look()
                widths.append(1 if throttle.pressure.halvings == 3 else throttle.pressure.allows(8))
        with lock:
            running -= 1
        return number

    result = fan_out(work, range(400), max_workers=8, manager=manager)
    assert result.values == list(range(400))
    assert result.degraded == "resource pressure (fds at 90% of its limit)"
    assert {item.mode for item in result.items} == {"concurrent", "sequential"}
    assert min(widths) == 1
    assert widths[-1] == 8
    manager.events.flush()
    kinds = [event.kind for event in told if event.name == "fan_out"]
    assert kinds[0] == "degraded"
    assert kinds[-1] == "restored"


def test_a_fan_out_that_starts_under_pressure_is_narrow_from_the_start(manager, usage):
    usage.shares["memory"] = 0.85
    result = fan_out(lambda n: n, range(20), max_workers=2, manager=manager)
    assert result.values == list(range(20))
    assert {item.mode for item in result.items} == {"sequential"}


def test_items_that_fail_under_pressure_are_not_repeated_for_that(manager, usage):
    usage.shares["memory"] = 0.85
    calls = []

    def work(number):
        calls.append(number)
        if number % 5 == 0:
            raise ConnectionError("down")

    result = fan_out(work, range(20), max_workers=4, manager=manager)
    assert sorted(calls) == list(range(20))
    assert len(result.errors) == 4


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_a_limit_that_admits_nothing_for_long_ends_the_fan_out_with_its_reason(manager, usage, monkeypatch, isolation):
    monkeypatch.setattr(gates, "STARVED_AFTER", 0.0)
    usage.shares["memory"] = 0.97
    result = fan_out(lambda n: n, range(5), max_workers=2, manager=manager, isolation=isolation)
    assert len(result.items) == 5
    for item in result.items:
        assert isinstance(item.error, BulkheadFullError)
        assert "memory at 97% of its limit: nothing was admitted" in str(item.error)


def test_a_stream_that_starves_gives_every_item_its_reason(manager, usage, monkeypatch):
    monkeypatch.setattr(gates, "STARVED_AFTER", 0.0)
    usage.shares["memory"] = 0.97
    errors = [item.error for item in fan_out_iter(lambda n: n, range(5), max_workers=2, manager=manager)]
    assert [type(error) for error in errors] == [BulkheadFullError] * 5


def test_on_an_executor_too(manager, usage, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as executor:
        usage.shares["memory"] = 0.85
        result = fan_out(lambda n: n, range(20), max_workers=2, manager=manager, executor=executor)
        assert {item.mode for item in result.items} == {"sequential"}
        monkeypatch.setattr(gates, "STARVED_AFTER", 0.0)
        usage.shares["memory"] = 0.99
        manager._clock.advance(1.0)
        result = fan_out(lambda n: n, range(5), max_workers=2, manager=manager, executor=executor)
        assert {type(item.error) for item in result.items} == {BulkheadFullError}


def test_limited_resource_types_are_no_pressure_on_the_process(manager):
    from resilience import ResourceType

    manager.resources.set_limit(ResourceType.CONNECTION, 1)
    with manager.resources.register_resource("c", ResourceType.CONNECTION):
        manager.watch.throttle.look()
        assert manager.status()["pressure"] is None


def test_what_begins_to_obey_in_the_moment_of_a_look_is_told_of_the_pressure(usage, clock):
    class Obedient:
        full_width, pressure = 8, None

        def squeeze(self, pressure, reason, throttle):
            self.pressure = pressure

    late = Obedient()

    def reads():
        throttle.obey(late)
        return usage()

    throttle = Throttle(reads, clock=clock)
    usage.shares["memory"] = 0.96
    throttle.look()
    assert late.pressure is throttle.pressure
    assert late.pressure.stopped
