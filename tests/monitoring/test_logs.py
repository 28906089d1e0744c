"""Logs as JSON, and events as log records."""

import json
import logging

import pytest

from resilience import EventStream
from resilience.monitoring.logs import JsonFormatter, log_events
from resilience.testing import ManualClock


class Lines(logging.Handler):
    """Keeps what it was given, as the formatter writes it."""

    def __init__(self):
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines = []

    def emit(self, record):
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines():
    logger, handler = logging.getLogger("test.json"), Lines()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.lines
    logger.removeHandler(handler)


def test_a_record_is_one_line_with_its_extra_fields(lines):
    logging.getLogger("test.json").warning("%d left\nof %s", 3, "Käse", extra={"op": "api", "attempt": 2})
    (line,) = lines
    assert (line["message"], line["level"], line["logger"]) == ("3 left\nof Käse", "warning", "test.json")
    assert (line["op"], line["attempt"]) == ("api", 2)
    assert line["time"] > 1.7e9
    assert "error" not in line


def test_an_exception_is_told_with_its_traceback(lines):
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("test.json").exception("failed")
    error = lines[0]["error"]
    assert (error["type"], error["message"]) == ("ZeroDivisionError", "division by zero")
    assert "test_logs.py" in error["traceback"]


def test_what_json_does_not_know_is_text(lines):
    class Shy:
        def __str__(self):
            raise ValueError

    logging.getLogger("test.json").info("x", extra={"path": {1, 2}, "shy": Shy()})
    assert lines[0]["path"] == "{1, 2}"
    assert lines[0]["shy"] == "(Shy that cannot be shown)"


def test_events_become_records_at_the_level_they_deserve(lines):
    events = EventStream(clock=ManualClock(epoch=1000.0))
    end = log_events(events, logging.getLogger("test.json"))
    events.emit("breaker_state_changed", "db", old="closed", new="open", message="m")
    events.emit("retry_scheduled", "api", delay=0.2)
    events.emit("recovered", "api")
    assert events.flush(10)
    end()
    events.emit("recovered", "again")
    events.flush(10)
    assert [line["level"] for line in lines] == ["warning", "debug", "info"]
    first = lines[0]
    assert (first["event"], first["event_name"], first["new"]) == ("breaker_state_changed", "db", "open")
    assert first["time"] == 1000
    assert first["message"] == "breaker_state_changed db"
    assert first["event_message"] == "m"


def test_a_logger_that_does_not_care_gets_nothing(lines):
    logging.getLogger("test.json").setLevel(logging.WARNING)
    events = EventStream()
    log_events(events, logging.getLogger("test.json"), kinds=["recovered", "timed_out"])
    events.emit("recovered", "api")
    events.emit("timed_out", "api")
    assert events.flush(10)
    assert [line["event"] for line in lines] == ["timed_out"]
