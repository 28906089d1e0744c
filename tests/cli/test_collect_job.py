"""The end of a run and the ends of its items: what is just being kept counts, what comes later does not."""

import io
import signal
import threading
from pathlib import Path

import pytest
from resilience_cli import exits
from resilience_cli.collect.answer import Answer
from resilience_cli.collect.inputs import read_items
from resilience_cli.collect.job import Job, Options, write_list
from resilience_cli.collect.journal import OutputError, Past
from resilience_cli.collect.progress import Progress
from resilience_cli.collect.signals import Signals
from resilience_cli.collect.tasks import Final, Task

from resilience.testing import Gate, eventually


class GatedJournal:
    """A journal whose writes wait at a gate; it knows what was written."""

    path = "gated"

    def __init__(self):
        self.gate = Gate()
        self.written = []

    def write(self, record):
        self.gate()
        self.written.append(record["url"])
        return "line\n"

    def sync(self):
        pass


def job_of(journal, *urls):
    listing = read_items([url.encode() for url in urls], "urls.txt")
    job = Job(listing, Options(), Past(), journal, lambda: None)
    finals = [Final(Task(item, job._new_host(item.host)), Answer(True, 200), 0.1) for item in listing.items]
    return job, finals


def test_an_item_whose_end_is_just_being_kept_is_done_when_the_run_has_closed(monkeypatch):
    monkeypatch.setattr("resilience_cli.collect.job.KEEPING", 30.0)
    journal, seen = GatedJournal(), []
    job, (first, late) = job_of(journal, "http://a.test/1", "http://a.test/2")
    keeping = threading.Thread(target=job._record, args=(first,))
    keeping.start()
    assert journal.gate.arrived()
    closing = threading.Thread(target=lambda: seen.append((job._close(), job.tally.ok)))
    closing.start()
    assert eventually(lambda: job._is_closed)
    journal.gate.open()
    closing.join(30)
    keeping.join(30)
    job._record(late)
    assert seen == [(None, 1)]
    assert journal.written == ["http://a.test/1"]
    assert [item.url for item in job._not_ok.values()] == ["http://a.test/2"]


def test_a_write_that_hangs_does_not_hold_up_the_end_of_the_run(monkeypatch):
    monkeypatch.setattr("resilience_cli.collect.job.KEEPING", 0.01)
    journal = GatedJournal()
    job, (stuck,) = job_of(journal, "http://a.test/1")
    keeping = threading.Thread(target=job._record, args=(stuck,))
    keeping.start()
    assert journal.gate.arrived()
    closing = threading.Thread(target=job._close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    journal.gate.open()
    keeping.join(30)


@pytest.mark.parametrize("name", ["x" * 250, "missing/failed.txt", "file/failed.txt"])
def test_a_list_of_failed_items_that_cannot_be_written_is_an_output_error(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the list of failed items"):
        write_list(tmp_path / name, ["http://a.test/1"])
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_list_of_failed_items_goes_to_an_open_file_by_another_name(tmp_path):
    (tmp_path / "log").write_text("before\n")
    with open(tmp_path / "log", "ab") as log:
        write_list(Path(f"/dev/fd/{log.fileno()}"), ["http://a.test/1"])
    assert (tmp_path / "log").read_text() == "before\nhttp://a.test/1\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_signal_while_the_ends_of_what_was_left_are_written_is_heeded():
    class Journal(GatedJournal):
        def write(self, record):
            if "ok" in record:
                self.written.append(record["url"])
                signals.received = signal.SIGTERM
            return "line\n"

    journal, signals = Journal(), Signals()
    listing = read_items([f"http://a.test/{number}".encode() for number in range(9)], "urls.txt")
    job = Job(listing, Options(deadline=1e-9), Past(), journal, lambda: None)
    with signals:
        code = job.run(signals, Progress(io.StringIO(), quiet=True))
    assert journal.written == ["http://a.test/0"]
    assert (code, job.tally.failed, job.unfinished) == (exits.TERMINATED, 1, 8)
