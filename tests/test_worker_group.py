"""Supervised workers under a manual clock: intervals, stops, restarts, one instance each, and their health."""

import logging
import os
import signal
import threading

import pytest

import resilience
from resilience import (
    BulkheadFullError,
    ConfigError,
    ErrorRecoveryManager,
    RetryPolicy,
    ShutdownInProgress,
    WorkerGroup,
)
from resilience.core import lifecycle
from resilience.testing import Gate, ManualClock, eventually
from resilience.workers.ledger import LEDGER


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def manager(clock):
    with ErrorRecoveryManager(clock=clock) as made:
        yield made


@pytest.fixture
def group(manager):
    made = WorkerGroup(manager)
    yield made
    made.stop()


class Source:
    """Something to collect from: counts its calls and fails while it is down."""

    def __init__(self, down=False):
        self.calls = 0
        self.down = down

    def __call__(self):
        self.calls += 1
        if self.down:
            raise ConnectionError("down")


def settled(group, name, runs):
    eventually(lambda: group.status()[name]["runs"] == runs)
    return group.status()[name]


def test_a_worker_runs_at_once_and_once_each_interval(group, clock):
    source = Source()
    group.add("binance", source, 60.0)
    assert source.calls == 0
    with group:
        settled(group, "binance", 1)
        clock.advance(59.0)
        threading.Event().wait(0.01)
        assert source.calls == 1
        clock.advance(1.0)
        assert settled(group, "binance", 2)["interval"] == 60.0
    assert source.calls == 2


def test_it_gets_slower_is_stopped_restarts_and_recovers(group, manager, clock):
    heard = []
    manager.events.subscribe(heard.append, kinds=("worker_started", "worker_lost"))
    source = Source(down=True)
    group.add("kraken", source, 10.0, max_errors=4, restart_after=60.0)
    group.start()
    for run, wait in ((1, 10.0), (2, 10.0), (3, 20.0)):
        seen = settled(group, "kraken", run)
        assert (seen["error_count"], seen["is_running"], seen["interval"]) == (run, True, wait)
        clock.advance(wait - 0.5)
        threading.Event().wait(0.01)
        assert source.calls == run
        clock.advance(0.5)
    seen = settled(group, "kraken", 4)
    eventually(lambda: not group.is_healthy())
    assert (seen["state"], seen["is_running"], seen["last_error"]) == ("stopped", False, "ConnectionError: down")
    eventually(lambda: manager.monitor.report()["workers"]["kraken"]["is_running"] is False)
    assert manager.monitor.report()["workers"]["kraken"]["error_count"] == 4
    source.down = False
    clock.advance(60.0)
    seen = settled(group, "kraken", 5)
    assert (seen["state"], seen["error_count"], seen["interval"], seen["restarts"]) == ("running", 0, 10.0, 1)
    assert group.is_healthy()
    eventually(lambda: manager.monitor.is_healthy())
    manager.events.flush(10)
    kinds = [(event.kind, event.name) for event in heard]
    assert kinds == [("worker_started", "kraken"), ("worker_lost", "kraken"), ("worker_started", "kraken")]
    assert (heard[1].reason, heard[1].restart_in, heard[2].restarts) == ("4 failures in a row", 60.0, 1)


def test_a_worker_that_keeps_dying_is_given_up_and_can_be_brought_back(group, clock):
    source = Source(down=True)
    group.add("dead", source, 1.0, max_errors=1, restart_after=5.0, max_restarts=2)
    group.start()
    for run in (1, 2, 3):
        settled(group, "dead", run)
        clock.advance(5.0)
    eventually(lambda: group.status()["dead"]["state"] == "given_up")
    eventually(lambda: not group._workers["dead"].is_alive)
    clock.advance(1000.0)
    assert source.calls == 3
    source.down = False
    assert group.restart("dead")
    assert settled(group, "dead", 4)["is_running"]


def test_a_crash_stops_the_worker_not_the_program(group, clock):
    crashed = []

    def crash():
        crashed.append(1)
        raise SystemExit(3)

    group.add("crash", crash, 1.0, restart_after=None)
    group.start()
    eventually(lambda: group.status()["crash"]["state"] == "given_up")
    assert group.status()["crash"]["last_error"].startswith("SystemExit")
    assert crashed == [1]


def test_a_restart_comes_at_once_where_it_is_asked_for(group, clock):
    source = Source(down=True)
    group.add("slow", source, 1.0, max_errors=1, restart_after=1000.0)
    group.start()
    settled(group, "slow", 1)
    eventually(lambda: group.status()["slow"]["state"] == "stopped")
    source.down = False
    assert group.restart("slow")
    assert settled(group, "slow", 2)["state"] == "running"
    assert not group.restart("slow")


def test_there_is_never_a_second_instance(group):
    entered, release, running, most = threading.Event(), threading.Event(), [], []

    def hangs():
        running.append(1)
        most.append(len(running))
        entered.set()
        release.wait(20)
        running.pop()

    group.add("hangs", hangs, 1.0)
    group.start()
    assert entered.wait(20)
    group.cancel("hangs")
    assert not group.restart("hangs")
    release.set()
    eventually(lambda: not group._workers["hangs"].is_alive)
    assert group.restart("hangs")
    eventually(lambda: len(most) == 2)
    assert most == [1, 1]
    with pytest.raises(ConfigError, match="hangs"):
        group.add("hangs", hangs, 1.0)


def once(target):
    """Gives a function that calls `target()` the first time, and keeps what that gave in its list `answers`."""

    def visit(*args, **kwargs):
        if not visit.answers:
            visit.answers.append(None)
            visit.answers[0] = target()

    visit.answers = []
    return visit


def before(monkeypatch, owner, method, visit):
    """Calls `visit()` before each call of a method of `owner`."""
    original = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *args, **kwargs: (visit(), original(*args, **kwargs))[1])


def living(name):
    return sum(thread.name == f"worker-{name}" for thread in threading.enumerate())


def test_a_start_in_the_middle_of_an_add_starts_one_thread(group, manager, monkeypatch):
    before(monkeypatch, manager.monitor, "record_worker_health", once(group.start))
    group.add("one", Source(), 60.0)
    settled(group, "one", 1)
    assert living("one") == 1


def test_a_restart_before_the_start_starts_one_thread(group):
    group.add("one", Source(), 60.0)
    assert group.restart("one")
    group.start()
    settled(group, "one", 1)
    assert living("one") == 1


def test_one_of_two_restarts_at_once_starts_the_worker(group, manager, monkeypatch):
    group.add("dead", source := Source(down=True), 1.0, max_errors=1, restart_after=None)
    group.start()
    settled(group, "dead", 1)
    eventually(lambda: not group._workers["dead"].is_alive)
    source.down = False
    meanwhile = once(lambda: group.restart("dead"))
    before(monkeypatch, manager.resources, "own", meanwhile)
    assert group.restart("dead")
    assert meanwhile.answers == [False]
    settled(group, "dead", 2)
    assert living("dead") == 1


def test_a_thread_that_ends_late_takes_nothing_from_the_one_after_it(group):
    gate = Gate()
    group.add("one", gate, 60.0)
    group.start()
    assert gate.arrived()
    worker = group._workers["one"]
    worker._live(object(), LEDGER.enter("thread", "worker one"))  # of a life that is over
    assert worker.is_busy and not group.restart("one")
    gate.open()


def test_who_hears_that_a_worker_is_lost_can_restart_it(group, manager):
    restarted, answers = threading.Event(), []

    class Slow(logging.Handler):
        def emit(self, record):  # the worker's thread has not ended when its loss is heard of
            assert restarted.wait(20)

    def restart(event):
        source.down = False
        answers.append(group.restart(event.name))
        restarted.set()

    logger, handler = logging.getLogger("resilience.workers"), Slow()
    logger.addHandler(handler)
    try:
        manager.events.subscribe(restart, kinds=("worker_lost",))
        group.add("lost", source := Source(down=True), 1.0, max_errors=1, restart_after=None)
        group.start()
        seen = settled(group, "lost", 2)
    finally:
        logger.removeHandler(handler)
    assert answers == [True]
    assert (seen["is_running"], seen["error_count"]) == (True, 0)


def test_a_worker_that_waits_for_its_next_run_can_be_cancelled_and_restarted_at_once(group):
    group.add("one", Source(), 60.0)
    group.start()
    settled(group, "one", 1)
    with group._changed:  # its thread cannot end meanwhile
        group.cancel("one")
        assert group.restart("one")
    assert settled(group, "one", 2)["is_running"]
    assert living("one") == 1


def test_a_stop_while_a_worker_is_being_started_ends_the_group(group, monkeypatch):
    group.add("one", source := Source(), 60.0)
    before(monkeypatch, threading.Thread, "start", stop := once(group.stop))
    group.start()
    assert stop.answers == [[]]
    eventually(lambda: not group._workers["one"].is_alive)
    assert source.calls == 0
    assert group.status()["one"]["state"] == "cancelled"


def refuse_once(monkeypatch, owner, label):
    """The resource manager refuses to register what is called so, the first time."""
    original, refused = owner.own, []

    def own(kind, name, *rest):
        if name == label and not refused:
            refused.append(name)
            raise BulkheadFullError("no room", name=name)
        return original(kind, name, *rest)

    monkeypatch.setattr(owner, "own", own)


@pytest.mark.parametrize("label", ["worker b", "worker group workers"])
def test_a_start_that_failed_can_be_tried_again(group, manager, monkeypatch, label):
    for name in "abc":
        group.add(name, Source(), 60.0)
    refuse_once(monkeypatch, manager.resources, label)
    with pytest.raises(BulkheadFullError):
        group.start()
    assert not group.status()["b"]["is_running"]
    group.start()
    for name in "abc":
        settled(group, name, 1)
        assert living(name) == 1


def test_a_group_that_could_not_be_entered_runs_nothing(group, manager, monkeypatch):
    for name in "ab":
        group.add(name, Source(), 60.0)
    refuse_once(monkeypatch, manager.resources, "worker b")
    with pytest.raises(BulkheadFullError), group:
        pass
    assert (living("a"), living("b")) == (0, 0)


def test_stopping_wakes_waits_and_cancels_runs(group):
    entered, ended = threading.Event(), []

    def sleeps():
        entered.set()
        try:
            resilience.sleep(1e6)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    group.add("sleeps", sleeps, 1.0)
    group.add("waits", Source(), 1e6)
    group.start()
    assert entered.wait(20)
    settled(group, "waits", 1)
    assert group.stop(timeout=20) == []
    assert group.stop() == []
    assert ended in ([], ["OperationCancelled"])  # under a manual clock the sleep may be over
    assert (living("sleeps"), living("waits")) == (0, 0)
    assert group.status()["waits"]["state"] == "cancelled"


def test_one_that_does_not_end_is_named(manager):
    group, entered, release = WorkerGroup(manager), threading.Event(), threading.Event()
    group.add("hangs", lambda: (entered.set(), release.wait(20)), 1.0)
    group.start()
    assert entered.wait(20)
    assert group.stop(timeout=0.01) == ["hangs"]
    release.set()
    eventually(lambda: not group._workers["hangs"].is_alive)


def test_closing_the_manager_ends_its_groups(clock):
    with ErrorRecoveryManager(clock=clock) as manager:
        group = WorkerGroup(manager)
        group.add("one", Source(), 60.0)
        group.start()
        settled(group, "one", 1)
        assert manager.status()["resources"]["thread"]["current_active"] == 1
    assert not group._workers["one"].is_alive
    with pytest.raises(ShutdownInProgress, match="late"):
        group.add("late", Source(), 60.0)
    with pytest.raises(ShutdownInProgress):
        group.restart("one")


def test_a_shutdown_of_the_process_ends_them(group):
    group.add("one", Source(), 1e6)
    group.start()
    settled(group, "one", 1)
    try:
        lifecycle.begin_shutdown()
        eventually(lambda: not group._workers["one"].is_alive)
    finally:
        lifecycle.reset_after_shutdown()


def test_half_of_them_running_is_healthy_and_none_is_not(group, clock):
    assert not group.is_healthy()
    group.add("up", Source(), 60.0)
    group.add("down", Source(down=True), 60.0, max_errors=1, restart_after=None)
    assert not group.is_healthy()
    group.start()
    settled(group, "up", 1)
    eventually(lambda: group.status()["down"]["state"] == "given_up")
    assert group.is_healthy()
    assert not group.is_healthy(min_ratio=0.51)
    group.cancel("up")
    assert not group.is_healthy()
    assert repr(group) == "<WorkerGroup 'workers': 0 of 2 run>"


def test_a_run_may_be_a_call_of_an_operation(group, manager):
    manager.register_retry_policy("fetch", RetryPolicy(max_retries=2, base_delay=0.0, jitter=False))
    source = Source(down=True)
    group.add("a", source, 60.0, operation="fetch")
    group.start()
    settled(group, "a", 1)
    assert source.calls == 3
    assert manager.monitor.operations()["fetch"]["failures"] == 1
    assert "a" not in manager.monitor.operations()


def test_other_runs_are_counted_under_the_name_of_the_worker(group, manager):
    group.add("b", Source(down=True), 60.0)
    group.start()
    settled(group, "b", 1)
    eventually(lambda: manager.monitor.operations().get("b", {}).get("failures") == 1)
    assert len(manager.errors) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_the_group_of_its_parent_anew(group, clock):
    group.add("one", source := Source(), 60.0)
    group.start()
    settled(group, "one", 1)
    held, release = threading.Event(), threading.Event()

    def hold():
        with group._changed:
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(20)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            source.calls = 0
            idle = group.status()["one"]["state"]
            group.start()
            eventually(lambda: source.calls == 1, within=5)
            code = 0 if (idle, group.stop()) == ("new", []) else 2
        finally:
            os._exit(code)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert group.status()["one"]["is_running"]


def test_a_group_of_its_own_needs_no_manager():
    with WorkerGroup() as group:
        group.add("a", source := Source(), 60.0)
        settled(group, "a", 1)
    assert source.calls == 1


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("interval", 0), ("interval", float("nan")), ("max_errors", 0), ("slow_after", 0), ("max_restarts", -1),
     ("restart_after", -1), ("restart_window", 0), ("max_interval", 0)],
)  # fmt: skip
def test_bad_values_are_refused_by_name(group, key, wrong):
    with pytest.raises(ConfigError) as caught:
        group.add("a", Source(), **{"interval": 1.0, key: wrong})
    assert caught.value.key == key


def test_an_unknown_worker_is_refused(group):
    for method in (group.cancel, group.restart):
        with pytest.raises(ConfigError, match="no such worker"):
            method("nobody")
    with pytest.raises(ConfigError):
        group.add("five", 5, 1.0)
