"""The error report: a million errors stay a page, and nothing of them stays alive."""

import gc
import json
import threading
import weakref

import pytest

from resilience import ConfigError, ErrorRecoveryManager, ErrorReport
from resilience.monitoring.error_report import normalised
from resilience.testing import ManualClock


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.fixture
def clock():
    return ManualClock(epoch=5000.0)


@pytest.fixture
def report(clock):
    return ErrorReport(clock=clock)


def test_errors_that_differ_in_numbers_only_are_one_group(report, clock):
    for number in range(5):
        report.add(raised_here(number), operation="fetch", item=number)
        clock.advance(10)
    (group,) = report.to_json()["groups"]
    assert (group["count"], group["category"], group["type"]) == (5, "transient", "ConnectionError")
    assert group["message"] == "host N is down"
    assert group["where"].startswith("fetch (test_error_report.py:")
    assert (group["first_seen"], group["last_seen"]) == (5000.0, 5040.0)
    assert "in raised_here" in group["sample"]
    assert "host 0 is down" in group["sample"], "the sample is that of the first"
    assert group["item"] == "0"
    assert len(report) == 5
    assert report


def raised_here(number):
    try:
        raise ConnectionError(f"host {number} is down")
    except ConnectionError as error:
        return error


def test_category_type_message_place_and_operation_tell_groups_apart(report):
    report.add(raised(ConnectionError("down")))
    report.add(raised(TimeoutError("down")))
    report.add(raised(ConnectionError("up")))
    report.add(raised_here(1))
    report.add(raised_here(2), operation="other")
    report.add(raised(ValueError("down")))
    groups = report.to_json()["groups"]
    assert len(groups) == 6
    assert {group["category"] for group in groups} == {"transient", "logic"}


def test_the_summary_is_the_specifications_sentence_and_the_most_frequent_come_first(report):
    report.count_call(2500)
    report.add(raised(ValueError("bad row")))
    for number in range(3):
        report.add(raised_here(number))
    first, second, third = report.summary().splitlines()
    assert first == "operation completed with 4 errors out of 2500"
    assert second.split()[:2] == ["3x", "transient"]
    assert "ConnectionError: host N is down at test_error_report.py:" in second
    assert "ValueError: bad row" in third


def test_without_counted_calls_the_total_is_never_less_than_the_errors(report):
    assert report.summary() == "operation completed with 0 errors out of 0"
    assert not report
    report.add(ValueError())
    assert report.to_json()["total"] == 1


def test_an_error_may_be_counted_many_times_at_once(report):
    report.add(ValueError("late"), times=1000)
    report.add(ValueError("late"), times=10)
    assert len(report) == 1010
    assert report.to_json()["groups"][0]["count"] == 1010


def test_beyond_the_most_groups_kinds_are_counted_together(clock):
    report = ErrorReport(clock=clock, max_groups=3)
    for word in ("one", "two", "three", "four", "five"):
        report.add(ValueError(word))
    report.add(ValueError("one"))
    groups = report.to_json()["groups"]
    assert len(groups) == 4
    assert {group["type"]: group["count"] for group in groups}["(other)"] == 2
    assert len(report) == 6


def test_a_group_holds_no_error_no_frame_and_no_item(report):
    class Payload:
        pass

    payload = Payload()
    error = raised(ConnectionError("down"))
    error.payload = payload
    watched = weakref.ref(payload)
    report.add(error, item=payload)
    del error, payload
    gc.collect()
    assert watched() is None


def test_an_error_that_cannot_show_itself_is_counted(report):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no")

    report.add(raised(Broken()))
    assert report.to_json()["groups"][0]["message"] == "(its message cannot be shown)"


def test_an_item_that_cannot_show_itself_is_counted_too(report):
    class Item:
        def __repr__(self):
            raise RuntimeError("no")

    report.add(ValueError("x"), item=Item())
    assert len(report) == 1
    assert json.dumps(report.to_json())


def test_huge_messages_and_chains_stay_small(report):
    error = ValueError("x" * 1_000_000)
    for _ in range(200):
        try:
            raise RuntimeError("again") from error
        except RuntimeError as caught:
            error = caught
    report.add(error, item="y" * 1_000_000)
    assert len(json.dumps(report.to_json())) < 10_000


def test_it_is_ready_for_json_and_a_copy(report):
    report.add(raised_here(1))
    shown = report.to_json()
    assert json.loads(json.dumps(shown)) == shown
    shown["groups"][0]["count"] = 99
    assert report.to_json()["groups"][0]["count"] == 1


def test_counts_are_exact_under_threads(report):
    def add():
        for number in range(500):
            report.add(raised_here(number))
            report.count_call()

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(report) == report.total == 4000
    assert report.to_json()["groups"][0]["count"] == 4000


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("timed out after 3.5 s, attempt 2", "timed out after N s, attempt N"),
        ("<urlopen object at 0x7f3a>", "<urlopen object at 0x...>"),
        ("no row 'Bob' in \"people\"", "no row '...' in \"...\""),
        ("GET https://host.example/a/b?c=d failed", "GET https://host.example/... failed"),
        ("Max retries exceeded with url: /a/b?c=d (Caused", "Max retries exceeded with url: /... (Caused"),
        ("breaker 'a' is open (last error: A: b\n(c)) and more", "breaker '...' is open (last error: ...)"),
        ("job 123e4567-e89b-12d3-a456-426614174000 is lost", "job <id> is lost"),
        ("two\n  lines", "two lines"),
        ("", ""),
    ],
)
def test_what_differs_from_one_error_to_the_next_is_left_out(message, expected):
    assert normalised(message) == expected


def test_a_bad_number_of_groups_is_refused():
    with pytest.raises(ConfigError, match="max_groups"):
        ErrorReport(max_groups=0)


def test_the_table_of_the_end_of_a_run(report):
    for _ in range(12):
        report.add(ConnectionError("refused"), operation="fetch")
    report.add(PermissionError("no"), operation="a longer name")
    assert report.table().splitlines() == [
        "COUNT  CATEGORY   TYPE             WHERE          MESSAGE",
        "   12  transient  ConnectionError  fetch          refused",
        "    1  permanent  PermissionError  a longer name  no",
    ]
    assert ErrorReport().table() == ""


def test_new_kinds_from_many_threads_stay_within_the_most_groups(clock):
    report, ready = ErrorReport(clock=clock, max_groups=10), threading.Barrier(8)

    def add(worker):
        ready.wait(20)
        for kind in range(50):
            report.add(type(f"Error{worker}x{kind}", (Exception,), {})("x"))

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    groups = report.to_json()["groups"]
    assert len(report) == sum(group["count"] for group in groups) == 400
    assert len(groups) <= 11
    assert groups[0]["type"] == "(other)"


def test_every_failed_call_of_a_manager_is_in_its_report():
    with ErrorRecoveryManager(clock=ManualClock()) as manager:
        for number in range(5):
            manager.execute_with_recovery("api", lambda number=number: 1 / number)
        assert manager.errors.summary().startswith("operation completed with 1 errors out of 5")
        assert manager.status()["errors"]["groups"][0]["type"] == "ZeroDivisionError"
