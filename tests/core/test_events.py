"""Events are told in order, outside of calls, and a bad listener costs events, never a call."""

import pickle
import threading

import pytest

from resilience.core.clock import SYSTEM
from resilience.core.errors import ConfigError
from resilience.core.events import Event, EventStream


def test_events_arrive_in_order_with_their_fields():
    seen = []
    stream = EventStream()
    stream.subscribe(seen.append)
    stream.emit("retry_scheduled", "api", delay=0.5)
    stream.emit("recovered", "api", attempts=2)
    assert stream.flush(5)
    assert [event.kind for event in seen] == ["retry_scheduled", "recovered"]
    assert seen[0].delay == 0.5
    assert "delay=0.5" in repr(seen[0])


def test_a_listener_that_exits_costs_its_event_and_no_other():
    seen = []
    stream = EventStream()

    def listener(event):
        seen.append(event.name)
        if event.name == "first":
            raise SystemExit(1)

    stream.subscribe(listener)
    for name in ("first", "second"):
        stream.emit("recovered", name)
    assert stream.flush(5)
    assert seen == ["first", "second"]


def test_a_ctrl_c_while_the_thread_starts_leaves_one_thread_that_tells(monkeypatch):
    seen = []
    stream = EventStream()
    stream.subscribe(lambda event: seen.append((event.name, threading.current_thread())))
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.emit("recovered", "first")
    for name in ("second", "third"):
        stream.emit("recovered", name)
    assert stream.flush(5)
    assert [name for name, _ in seen] == ["first", "second", "third"]
    assert {thread for _, thread in seen} == {stream._thread}


def test_events_are_immutable_values():
    event = Event("recovered", "api", 1.0, attempts=2)
    with pytest.raises(AttributeError):
        event.attempts = 3
    with pytest.raises(AttributeError):
        del event.kind
    with pytest.raises(AttributeError):
        _ = event.nothing
    assert event == Event("recovered", "api", 1.0, attempts=2)
    assert len({event, Event("recovered", "api", 1.0, attempts=2)}) == 1
    assert pickle.loads(pickle.dumps(event)) == event


def test_only_the_kinds_asked_for_are_told_and_wanted():
    seen = []
    stream = EventStream()
    end = stream.subscribe(seen.append, kinds=["recovered"])
    assert stream.wants("recovered")
    assert not stream.wants("abandoned")
    stream.emit("abandoned", "api")
    stream.emit("recovered", "api")
    stream.flush(5)
    end()
    stream.emit("recovered", "api")
    assert stream.flush(5)
    assert [event.kind for event in seen] == ["recovered"]
    assert not stream.wants("recovered")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError) as caught:
        EventStream().subscribe(print, kinds=["recoverd"])
    assert caught.value.key == "kinds"


def test_a_raising_listener_is_logged_and_the_others_are_told(caplog):
    seen = []

    def broken(event):
        raise RuntimeError("listener bug")

    stream = EventStream()
    stream.subscribe(broken)
    stream.subscribe(seen.append)
    stream.emit("recovered", "api")
    assert stream.flush(5)
    assert len(seen) == 1
    assert "listener bug" in caplog.text


def test_a_hanging_listener_delays_no_call_and_drops_are_counted():
    release = threading.Event()
    stream = EventStream(queue_size=10)
    stream.subscribe(lambda event: release.wait(30))
    begun = SYSTEM.monotonic()
    for _ in range(100):
        stream.emit("recovered", "api")
    assert SYSTEM.monotonic() - begun < 0.5
    assert stream.dropped >= 89
    assert not stream.flush(0.01)
    release.set()
    assert stream.flush(5)


def test_a_listener_may_emit_subscribe_and_unsubscribe():
    seen = []
    stream = EventStream()

    def listener(event):
        seen.append(event.kind)
        if event.kind == "recovered":
            stream.emit("restored", "api")
            stream.subscribe(lambda event: seen.append("second " + event.kind))
            end()

    end = stream.subscribe(listener)
    stream.emit("recovered", "api")
    stream.flush(5)
    assert stream.flush(5)
    assert seen == ["recovered", "second restored"]


def test_nothing_is_made_when_nobody_listens(new_threads):
    begun = new_threads()
    stream = EventStream()
    for _ in range(1000):
        stream.emit("recovered", "api")
    assert begun() == []
    assert stream.flush(0)
