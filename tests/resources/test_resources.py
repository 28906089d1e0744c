"""Every resource is cleaned up once, and a leak is counted once and told with the line that opened it."""

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref

import pytest

from resilience import ErrorRecoveryManager
from resilience.core.errors import BulkheadFullError, ConfigError, ShutdownInProgress
from resilience.resources import ResourceManager, ResourceType
from resilience.testing import EventLog, ManualClock


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def resources(clock):
    made = ResourceManager(clock=clock)
    yield made
    made.shutdown()


def test_leaving_the_block_cleans_up_once(resources):
    cleaned = []
    with resources.register_resource("conn", ResourceType.CONNECTION, lambda: cleaned.append(1)) as handle:
        assert resources.stats()["connection"]["current_active"] == 1
    handle.close()
    assert cleaned == [1]
    counters = resources.stats()["connection"]
    assert (counters["total_created"], counters["total_cleaned"], counters["current_active"]) == (1, 1, 0)
    assert counters["last_cleanup_time"] is not None


def test_releasing_forgets_without_cleaning(resources):
    cleaned = []
    handle = resources.register_resource("a", ResourceType.FILE, lambda: cleaned.append(1))
    handle.release()
    handle.close()
    resources.register_resource("b", ResourceType.FILE, lambda: cleaned.append(1))
    resources.unregister_resource("b")
    resources.unregister_resource("never seen")
    assert cleaned == []
    assert resources.stats()["file"]["current_active"] == 0


def test_an_id_in_use_is_refused_with_the_line_that_uses_it(resources):
    resources.register_resource("same", ResourceType.LOCK)
    with pytest.raises(ConfigError, match=r"test_resources\.py") as caught:
        resources.register_resource("same", ResourceType.LOCK)
    assert caught.value.key == "resource_id"


def test_a_raising_clean_up_is_counted_and_the_resource_removed(resources, caplog):
    handle = resources.register_resource("bad", ResourceType.TIMER, lambda: 1 / 0)
    handle.close()
    counters = resources.stats()["timer"]
    assert (counters["cleanup_errors"], counters["total_cleaned"], counters["current_active"]) == (1, 0, 0)
    assert "ZeroDivisionError" in caplog.text


def test_a_clean_up_may_use_the_manager(resources):
    resources.register_resource("inner", ResourceType.FILE)
    outer = resources.register_resource("outer", ResourceType.FILE, lambda: resources.unregister_resource("inner"))
    outer.close()
    assert resources.stats()["file"]["current_active"] == 0


def test_goroutines_are_threads():
    assert ResourceType.GOROUTINE is ResourceType.THREAD


def test_idle_resources_are_cleaned_and_touched_or_long_lived_ones_stay(resources, clock):
    closed = []
    for name, long_lived in (("idle", False), ("touched", False), ("pool", True)):
        resources.register_resource(name, ResourceType.CONNECTION, lambda n=name: closed.append(n), None, long_lived)
    clock.advance(299.0)
    assert resources.cleanup_idle() == 0
    next(handle for handle in resources.active() if handle.resource_id == "touched").touch()
    clock.advance(1.0)
    assert resources.cleanup_idle() == 1
    assert closed == ["idle"]


def test_an_old_idle_resource_is_a_leak_counted_once_and_told_with_its_line(resources, clock, caplog):
    resources.register_resource("old", ResourceType.CONNECTION)
    clock.advance(600.0)
    assert resources.detect_leaks() == []
    clock.advance(1.0)
    with caplog.at_level(logging.WARNING):
        assert [handle.resource_id for handle in resources.detect_leaks()] == ["old"]
        assert resources.detect_leaks() == []
    assert resources.stats()["connection"]["leaks_detected"] == 1
    assert caplog.text.count("test_resources.py") == 1


def test_a_resource_in_use_is_no_leak_however_old(resources, clock):
    handle = resources.register_resource("busy", ResourceType.CONNECTION)
    clock.advance(1000.0)
    handle.touch()
    clock.advance(299.0)
    assert resources.detect_leaks() == []


def test_a_resource_whose_owner_is_collected_is_a_leak(resources):
    class Owner:
        pass

    owner = Owner()
    handle = resources.register_resource("owned", ResourceType.MEMORY, owner=owner)
    assert resources.detect_leaks() == []
    del owner
    gc.collect()
    assert resources.stats()["memory"]["leaks_detected"] == 1
    handle.close()


def test_a_resource_closed_before_its_owner_goes_is_no_leak(resources):
    class Owner:
        pass

    owner = Owner()
    resources.register_resource("owned", ResourceType.MEMORY, owner=owner).close()
    del owner
    gc.collect()
    assert resources.stats()["memory"]["leaks_detected"] == 0


def test_what_comes_into_use_while_others_are_cleaned_up_stays(resources, clock):
    cleaned = []
    resources.register_resource("slow", ResourceType.CONNECTION, lambda: other.touch())
    other = resources.register_resource("other", ResourceType.CONNECTION, lambda: cleaned.append("other"))
    clock.advance(300.0)
    assert resources.cleanup_idle() == 1
    assert cleaned == []
    assert [handle.resource_id for handle in resources.active()] == ["other"]


def test_a_limit_of_no_type_is_refused():
    with pytest.raises(ConfigError) as caught:
        ResourceManager(limits={"thread": 8})
    assert caught.value.key == "limits"


def test_what_ends_while_somebody_holds_the_books_takes_no_place(clock):
    resources = ResourceManager(clock=clock, limits={ResourceType.THREAD: 1})
    ended = resources.own("thread", "worker")
    with resources._lock:  # held in the moment in which the end is told
        teller = threading.Thread(target=ended)
        teller.start()
        teller.join(30)
    with resources.register_resource("mine", ResourceType.THREAD):
        pass


def test_a_limit_warns_above_80_percent_and_refuses_at_100(clock, caplog):
    resources = ResourceManager(clock=clock, limits={ResourceType.CONNECTION: 5})
    for number in range(4):
        resources.register_resource(f"c{number}", ResourceType.CONNECTION)
    assert "limit" not in caplog.text
    resources.register_resource("c4", ResourceType.CONNECTION)
    assert "100% of the limit of connection" in caplog.text
    with pytest.raises(BulkheadFullError) as caught:
        resources.register_resource("c5", ResourceType.CONNECTION)
    assert caught.value.limit == 5
    assert "connection 'c5' was not registered: 5 of 5 are open; the oldest is 'c0', opened at" in str(caught.value)
    assert resources.stats()["connection"]["total_created"] == 5
    resources.shutdown()


def test_the_warning_of_a_limit_is_said_again_only_after_it_was_down(clock, caplog):
    resources = ResourceManager(clock=clock)
    resources.set_limit(ResourceType.FILE, 10)
    handles = [resources.register_resource(f"f{number}", ResourceType.FILE) for number in range(10)]
    handles.pop().close()
    resources.register_resource("again", ResourceType.FILE)
    assert caplog.text.count("of the limit of file") == 1
    for _ in range(3):
        handles.pop().close()
    for number in range(2):
        resources.register_resource(f"later{number}", ResourceType.FILE)
    assert caplog.text.count("of the limit of file") == 2
    assert resources.usage() == {"file": 0.9}
    resources.set_limit(ResourceType.FILE, None)
    assert resources.usage() == {}
    resources.shutdown()


def test_shutdown_closes_the_last_opened_first_and_refuses_later_ones(resources):
    order = []
    for name in "abc":
        resources.register_resource(name, ResourceType.FILE, lambda name=name: order.append(name))
    resources.shutdown()
    resources.shutdown()
    assert order == ["c", "b", "a"]
    with pytest.raises(ShutdownInProgress):
        resources.register_resource("d", ResourceType.FILE)


def test_what_has_lost_its_owner_is_cleaned_up_with_the_idle_ones(resources):
    class Owner:
        pass

    cleaned = []
    owner = Owner()
    resources.register_resource("owned", ResourceType.MEMORY, lambda: cleaned.append(1), owner=owner)
    assert resources.cleanup_idle() == 0
    del owner
    gc.collect()
    assert resources.cleanup_idle() == 1
    assert cleaned == [1]
    counters = resources.stats()["memory"]
    assert (counters["leaks_detected"], counters["total_cleaned"], counters["current_active"]) == (1, 1, 0)


def test_an_owner_keeps_nothing_of_what_it_had(resources):
    class Owner:
        pass

    owner = Owner()
    before = len(weakref.finalize._registry)
    for number in range(100):
        resources.register_resource(f"c{number}", ResourceType.CONNECTION, owner=owner).close()
    assert len(weakref.finalize._registry) == before
    with pytest.raises(TypeError):
        resources.register_resource("five", ResourceType.CUSTOM, owner=5)
    assert resources.active() == []


def test_a_finalizer_may_close_a_handle_in_the_middle_of_anything(resources):
    handle = resources.register_resource("inner", ResourceType.FILE)
    with resources._lock:
        handle.close()
    assert resources.active() == []


def test_worker_threads_are_registered_as_long_as_they_live():
    with ErrorRecoveryManager() as manager:
        names = manager.execute_with_retry("job", lambda: [h.resource_id for h in manager.resources.active()])
        assert names == ["job-1"]
        (handle,) = manager.resources.active()
        assert (handle.type, handle.long_lived) == (ResourceType.THREAD, True)
        assert "test_resources.py" in handle.opened_at
        manager.submit("job", lambda: 1).result(timeout=30)
        assert manager.status()["resources"]["thread"]["current_active"] == 2


def test_a_limit_of_threads_refuses_the_call_that_needs_one_more():
    with ErrorRecoveryManager() as manager:
        manager.resources.set_limit(ResourceType.THREAD, 1)
        assert manager.execute_with_retry("one", lambda: 1) == 1
        with pytest.raises(BulkheadFullError, match=r"'two-\d' was not registered: 1 of 1 are open"):
            manager.execute_with_retry("two", lambda: 2)
        counts = manager.monitor.operations()["two"]
        assert (counts["calls"], counts["rejections"], counts["failures"]) == (1, 1, 0)
        assert manager.execute_with_retry("one", lambda: 3) == 3


def test_looking_for_idle_ones_on_a_thread_of_its_own():
    cleaned = threading.Event()
    resources = ResourceManager(idle_after=0.0)
    resources.register_resource("idle", ResourceType.FILE, cleaned.set)
    resources.start(interval=0.01)
    resources.start(interval=0.01)
    assert cleaned.wait(20)
    resources.shutdown()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_looking_for_idle_ones_goes_on_in_a_forked_child():
    resources = ResourceManager(idle_after=0.0)
    resources.start(interval=0.01)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cleaned = threading.Event()
            resources.register_resource("idle", ResourceType.FILE, cleaned.set)
            code = 0 if cleaned.wait(20) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    resources.shutdown()


def test_a_raising_clean_up_of_a_shutdown_keeps_the_others_from_nothing(resources):
    order = []

    def leave():
        raise SystemExit(3)

    resources.register_resource("first", ResourceType.FILE, lambda: order.append("first"))
    resources.register_resource("leaves", ResourceType.FILE, leave)
    resources.shutdown()
    assert order == ["first"]
    assert resources.stats()["file"]["cleanup_errors"] == 1


def test_a_forked_child_has_none_of_its_parents_resources(tmp_path):
    script = tmp_path / "forks.py"
    script.write_text(
        "import os\n"
        "from resilience import ResourceManager, ResourceType\n"
        "resources = ResourceManager()\n"
        "handle = resources.register_resource('parents', ResourceType.FILE, lambda: print('cleaned by', os.getpid()))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    handle.close()\n"
        "    assert resources.stats()['file']['current_active'] == 0\n"
        "else:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    handle.close()\n"
        "    print('parent is', os.getpid())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    lines = done.stdout.split()
    assert len(lines) == 6
    assert lines[2] == lines[5]


def test_a_hanging_clean_up_does_not_hold_the_shutdown(resources):
    release, order = threading.Event(), []
    resources.register_resource("first", ResourceType.FILE, lambda: order.append("first"))
    resources.register_resource("hangs", ResourceType.FILE, lambda: release.wait(30))
    resources.shutdown(timeout=0.05)
    release.set()
    assert order == ["first"]
    assert resources.stats()["file"]["cleanup_errors"] == 1


def test_an_operation_is_registered_for_the_length_of_a_block(resources):
    with resources.operation("op-1", "processing", 3) as handle:
        assert handle.metadata == {"kind": "processing", "units": 3}
    assert resources.active() == []


def test_what_is_open_at_exit_is_reported_with_its_line(tmp_path):
    script = tmp_path / "leaky.py"
    script.write_text(
        "from resilience.resources import ResourceManager, ResourceType\n"
        "resources = ResourceManager()\n"
        "resources.register_resource('forgotten', ResourceType.FILE)\n"
        "resources.register_resource('pool', ResourceType.FILE, long_lived=True)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stderr.count("leaked") == 1
    assert "'forgotten'" in done.stderr
    assert "leaky.py:3" in done.stderr


def test_each_resource_is_told_once_when_it_comes_leaks_and_goes(clock):
    log = EventLog()
    with ErrorRecoveryManager(clock=clock) as manager:
        manager.events.subscribe(log)
        with manager.resources.register_resource("kept", ResourceType.FILE):
            pass
        manager.resources.register_resource("lost", ResourceType.MEMORY)
        clock.advance(601.0)
        for _ in range(3):
            manager.resources.detect_leaks()
        assert manager.events.flush(10.0)
        told = [event.kind for event in log.events if event.name in ("kept", "lost")]
    assert told == ["resource_registered", "resource_closed", "resource_registered", "resource_leaked"]
