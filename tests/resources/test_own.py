"""What the toolkit itself keeps open is registered: counted, limited, and never a reason for a call to fail."""

import gc
import logging
import threading
import weakref

import pytest

from resilience.core.errors import BulkheadFullError
from resilience.resources import ResourceManager, ResourceType
from resilience.testing import EventLog, ManualClock
from resilience.workers.ledger import LEDGER, registered


@pytest.fixture
def resources():
    made = ResourceManager(clock=ManualClock())
    yield made
    made.shutdown()


def counters(resources, kind="connection"):
    return resources.stats()[kind]


def test_it_finds_a_free_name_and_ends_once(resources):
    first, second = resources.own("connection", "db"), resources.own("connection", "db")
    assert [handle.resource_id for handle in resources.active()] == ["db", "db #2"]
    assert all(handle.long_lived and "test_own.py" in handle.opened_at for handle in resources.active())
    first()
    first()
    now = counters(resources)
    assert (now["total_created"], now["current_active"], now["total_cleaned"]) == (2, 1, 1)
    second()
    assert resources.active() == []


def test_it_keeps_neither_the_manager_nor_what_is_open_alive():
    class Thing:
        pass

    resources = ResourceManager(clock=ManualClock())
    owned, thing = resources.own("connection", "db"), Thing()
    entry = LEDGER.enter("connection", "alive-test", owned=owned, thing=thing)
    seen = weakref.ref(resources), weakref.ref(thing)
    del resources, thing
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
    assert "alive-test" not in LEDGER.alive().get("connection", {})
    LEDGER.leave(entry)
    owned()


def test_what_the_collector_finds_open_is_a_leak_told_once_and_gone(resources, caplog):
    class Thing:
        pass

    thing = Thing()
    LEDGER.enter("connection", "leak-test", owned=resources.own("connection", "db"), thing=thing)
    with caplog.at_level(logging.WARNING):
        del thing
        gc.collect()
        now = counters(resources), counters(resources)
    assert [(seen["leaks_detected"], seen["current_active"]) for seen in now] == [(1, 0)] * 2
    assert caplog.text.count("leak: connection 'db', opened at") == 1
    assert "test_own.py" in caplog.text


def test_a_finalizer_that_ends_it_waits_for_no_lock(resources):
    owned = resources.own("connection", "db")
    with resources._lock:
        ending = threading.Thread(target=owned)
        ending.start()
        ending.join(60.0)
        assert not ending.is_alive()
        assert resources._handles
    assert counters(resources)["current_active"] == 0


def test_the_limit_of_its_type_refuses_one_more_until_one_has_ended(resources):
    resources.set_limit(ResourceType.CONNECTION, 1)
    owned = resources.own("connection", "db")
    with pytest.raises(BulkheadFullError, match="1 of 1 are open"):
        resources.own("connection", "cache")
    with resources._lock:  # it ends while somebody is at the books: the next one finds it gone
        ending = threading.Thread(target=owned)
        ending.start()
        ending.join(60.0)
    resources.own("connection", "cache")()


def test_after_the_shutdown_nothing_is_registered_and_nothing_refused(resources):
    owned = resources.own("thread", "early")
    resources.shutdown()
    late = resources.own("thread", "late")
    owned()
    late()
    assert counters(resources, "thread")["total_created"] == 1


def test_what_could_not_be_made_is_not_open(resources):
    def fail():
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        registered(resources.own, "process", "child", fail)
    assert (counters(resources, "process")["current_active"], counters(resources, "process")["total_created"]) == (0, 1)
    assert registered(None, "process", "child", lambda: 5) == (5, None)


def test_listeners_hear_when_it_comes_and_goes():
    from resilience.core.events import EventStream

    log, events = EventLog(), EventStream()
    events.subscribe(log)
    resources = ResourceManager(events=events)
    resources.own("connection", "db")()
    assert events.flush(60.0)
    told = [(event.kind, event.name) for event in log.events]
    assert told == [("resource_registered", "db"), ("resource_closed", "db")]
