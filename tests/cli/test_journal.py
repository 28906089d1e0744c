"""The journal: what was written is read, whatever stands between."""

import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resilience_cli.collect import journal as module
from resilience_cli.collect.journal import Journal, NotAJournal, OutputError, read_past, read_records


def final(key, ok=True, **more):
    return {"url": f"http://a.test/{key}", "ok": ok, "key": key, **more}


def test_records_come_back_in_their_order(tmp_path):
    path = tmp_path / "deep" / "j.jsonl"
    journal = Journal(path)
    records = [final("1"), {"event": "run"}, final("2", ok=False, error="käse\n\u2028")]
    for record in records:
        assert json.loads(journal.write(record)) == record
    assert list(read_records(path)) == records
    assert path.read_bytes().count(b"\n") == 3


def test_after_a_torn_line_the_next_record_starts_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).write(final("1"))
    with open(path, "ab") as file:
        file.write(b'{"url": "http://a.test/2", "o')
    Journal(path).write(final("3"))
    assert list(read_records(path)) == [final("1"), None, final("3")]
    assert set(read_past(path).finals) == {"1", "3"}


def test_the_past_knows_the_last_end_what_was_under_way_and_which_breakers_were_open(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    for record in [
        final("1", ok=False, category="transient"),
        final("1"),
        final("2", ok=False, category="permanent"),
        {"event": "started", "key": "3"},
        {"event": "started", "key": "4"},
        final("4", ok=False, category="transient"),
        {"event": "breaker", "host": "a:80", "state": "open"},
        {"event": "breaker", "host": "b:80", "state": "open"},
        {"event": "breaker", "host": "b:80", "state": "closed"},
        {"ok": "yes"},
        {"key": 5, "ok": True},
    ]:
        journal.write(record)
    past = read_past(path)
    assert {key: record["ok"] for key, record in past.finals.items()} == {"1": True, "2": False, "4": False}
    assert past.started == {"3"}
    assert past.open_hosts == {"a:80"}


def test_a_success_is_never_taken_back(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.write(final("1"))
    journal.write(final("1", ok=False))
    assert read_past(path).finals["1"]["ok"] is True


def test_no_file_is_no_past(tmp_path):
    assert not read_past(tmp_path / "none").finals


@pytest.mark.parametrize("content", ["http://a.test/\n", '{"url": "http://a.test/"}\n', "a\nb\n"])
def test_a_list_of_urls_is_not_taken_for_a_journal(tmp_path, content):
    path = tmp_path / "urls.txt"
    path.write_text(content)
    with pytest.raises(NotAJournal):
        read_past(path)


def test_beginning_anew_moves_the_old_journal_aside(tmp_path):
    path = tmp_path / "j.jsonl"
    first = Journal(path)
    first.write(final("1"))
    os.close(first._file)  # its run is over
    second = Journal(path, anew=True)
    second.write(final("2"))
    assert list(read_records(second.moved_to)) == [final("1")]
    assert list(read_records(path)) == [final("2")]


def test_another_name_of_an_open_file_is_never_moved(tmp_path):
    path = tmp_path / "log"
    path.write_text(json.dumps(final("1")) + "\n")
    with open(path, "ab") as log:
        journal = Journal(f"/dev/fd/{log.fileno()}", anew=True)
        journal.write(final("2"))
    assert journal.moved_to is None
    assert list(read_records(path)) == [final("1"), final("2")]


def test_a_journal_in_use_is_not_moved(tmp_path):
    path = tmp_path / "j.jsonl"
    first = Journal(path)
    first.write(final("1"))
    second = Journal(path, anew=True)
    second.write(final("2"))
    assert second.moved_to is None
    assert list(read_records(path)) == [final("1"), final("2")]


def test_a_full_disk_is_an_output_error():
    with pytest.raises(OutputError, match="journal /dev/full: No space left"):
        Journal("/dev/full").write(final("1"))


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Journal(tmp_path / "file" / "j.jsonl")


def test_a_success_of_another_run_is_the_last_word_on_its_item(tmp_path):
    path = tmp_path / "j.jsonl"
    ours, theirs = Journal(path), Journal(path)
    assert (ours.is_shared, theirs.is_shared) == (False, True)
    ours.write(final("1", ok=False, category="transient"))
    theirs.write(final("1"))
    line = ours.write(final("1"))
    ours.write(final("1", ok=False, category="transient"))
    theirs.write(final("2"))
    assert json.loads(line) == final("1")  # whoever prints it has it all the same
    assert [(r["key"], r["ok"]) for r in read_records(path)] == [("1", False), ("1", True), ("2", True)]


def test_a_success_of_the_past_is_the_last_word_too(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).write(final("1"))
    again = Journal(path, past=read_past(path))
    again.write(final("1"))
    assert [record["key"] for record in read_records(path)] == ["1"]


def test_a_line_that_another_run_leaves_torn_takes_no_record_with_it(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.write(final("1"))
    with open(path, "ab") as other:
        other.write(b'{"url": "http://a.test/2", "o')
    journal.write(final("3"))
    assert list(read_records(path)) == [final("1"), None, final("3")]


def test_the_peace_a_host_asked_for_is_kept_until_it_is_over(tmp_path):
    path = tmp_path / "j.jsonl"
    for wait in (100.0, 7.0):
        Journal(path).write({"event": "pause", "host": "a:80", "wait_s": wait, "at": 1000.0})
    Journal(path).write({"event": "pause", "host": "b:80", "wait_s": "long", "at": None})
    past = read_past(path)
    assert [past.pause("a:80", now) for now in (1000.0, 1005.0, 1007.5, 3.0)] == [7.0, 2.0, 0.0, 7.0]
    assert past.pause("b:80", 1000.0) == past.pause("c:80", 1000.0) == 0.0


good = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8) | st.none(), max_size=3)
garbage = st.binary(max_size=40).filter(lambda line: b"\n" not in line)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(good | garbage, max_size=12), torn=st.binary(max_size=30).filter(lambda end: b"\n" not in end))
def test_garbage_between_the_records_costs_no_record(tmp_path, lines, torn):
    path = tmp_path / "j.jsonl"
    with open(path, "wb") as file:
        for line in lines:
            file.write((json.dumps(line).encode() if isinstance(line, dict) else line) + b"\n")
        file.write(torn)
    Journal(path).write(final("after"))
    read = [record for record in read_records(path) if record is not None]
    assert [record for record in read if record in lines] == [line for line in lines if isinstance(line, dict)]
    assert read[-1] == final("after")
    path.unlink()


def test_a_line_of_brackets_without_end_is_garbage(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"a":' * 200_000 + b"\n" + b"[" + b"9" * 10_000 + b"]\n")
    Journal(path).write(final("1"))
    assert list(read_records(path)) == [None, None, final("1")]


WRITER = """
import sys
from resilience_cli.collect.journal import Journal
journal = Journal(sys.argv[1])
for number in range(300):
    key = f"{sys.argv[2]}-{number}"
    journal.write({"url": "http://a.test/", "ok": True, "key": key, "error": "x" * (number % 300)})
"""


def test_eight_writers_never_mix_their_lines(tmp_path):
    path = tmp_path / "j.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(writer)]) for writer in range(8)]
    assert [writer.wait(60) for writer in writers] == [0] * 8
    past = read_past(path)
    assert past.skipped == 0
    assert len(past.finals) == 2_400


ENDLESS = """
import random, sys
from resilience_cli.collect.journal import Journal
journal, source = Journal(sys.argv[1]), random.Random(sys.argv[2])
while True:
    key, ok = str(source.randrange(10**5)), source.random() < 0.5
    record = {"url": "http://a.test/", "ok": ok, "key": key, "error": "x" * source.randrange(300)}
    journal.write(record)
    print(key, int(ok), flush=True)
"""


def kill_writers(path, rounds, writers=8):
    """Rounds of writers on one journal and the same items, killed together; checks what they were told is kept."""
    acknowledged = set()
    for turn in range(rounds):
        command = [sys.executable, "-c", ENDLESS, str(path)]
        pipe = {"stdout": subprocess.PIPE, "text": True}
        running = [subprocess.Popen([*command, f"{turn}.{number}"], **pipe) for number in range(writers)]
        lines = [writer.stdout.readline() for writer in running]  # all are at it
        for writer in running:
            writer.kill()
        for writer, line in zip(running, lines, strict=True):
            rest, _ = writer.communicate()
            acknowledged |= {told for told in (line + rest).rpartition("\n")[0].split("\n") if told}
    done, failed, torn = set(), set(), 0
    for record in read_records(path):
        if record is None:
            torn += 1
            continue
        assert record["key"] not in done, "a record after an ok"
        (done if record["ok"] else failed).add(record["key"])
    assert {told.split()[0] for told in acknowledged if told.endswith(" 1")} <= done
    assert {told.split()[0] for told in acknowledged if told.endswith(" 0")} <= done | failed
    assert torn <= 1
    return len(acknowledged)


def test_writers_that_are_killed_leave_every_line_they_had_written(tmp_path):
    assert kill_writers(tmp_path / "j.jsonl", 2) > 16


@pytest.mark.slow
@pytest.mark.parametrize("part", range(13))
def test_eight_writers_killed_at_five_hundred_moments_leave_every_line_they_had_written(tmp_path, part):
    assert kill_writers(tmp_path / "j.jsonl", 5) > 40


# -- runs that start at once -----------------------------------------------------------------------------------------


def keys_in(path):
    return [record["key"] for record in read_records(path)]


def test_a_journal_that_another_run_has_just_begun_is_not_moved_away(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(final("old")) + "\n")
    others, really_open = [], module._open

    def open_late(place):
        file = really_open(place)
        monkeypatch.setattr(module, "_open", really_open)
        others.append(Journal(path, anew=True))  # between our opening it and our locking it
        others[0].write(final("other"))
        return file

    monkeypatch.setattr(module, "_open", open_late)
    ours = Journal(path, anew=True)
    ours.write(final("ours"))
    others[0].write(final("other too"))
    assert ours.is_shared
    assert keys_in(path) == ["other", "ours", "other too"]
    assert keys_in(tmp_path / "j.jsonl.previous") == ["old"]


def test_a_journal_that_is_just_being_moved_away_is_not_written_to(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(final("old")) + "\n")
    others, wants_it = [], threading.Event()
    other = threading.Thread(target=lambda: others.append(Journal(path, anew=True)))
    really_lock, really_replace = module._lock, os.replace

    def lock(file, kind):
        if threading.current_thread() is other and kind == module.fcntl.LOCK_SH:
            wants_it.set()
        return really_lock(file, kind)

    def replace(source, target):
        other.start()
        assert wants_it.wait(30)
        really_replace(source, target)

    monkeypatch.setattr(module, "_lock", lock)
    monkeypatch.setattr(module.os, "replace", replace)
    monkeypatch.setattr(module, "MOVING", 30.0)
    ours = Journal(path, anew=True)
    other.join(30)
    ours.write(final("ours"))
    others[0].write(final("other"))
    assert keys_in(path) == ["ours", "other"]
    assert keys_in(tmp_path / "j.jsonl.previous") == ["old"]


def test_what_was_done_in_a_journal_that_has_been_moved_away_is_written_again(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).write(final("1"))
    past = read_past(path)
    os.replace(path, tmp_path / "elsewhere")
    Journal(path, past=past).write(final("1"))
    assert keys_in(path) == ["1"]
