"""What a run says: progress lines, tables, causes, records, names of body files."""

import io
import json
from pathlib import Path

import pytest
from resilience_cli.collect.answer import Answer, cause_of, of_error, of_status
from resilience_cli.collect.bodies import Bodies, name_of
from resilience_cli.collect.hosts import Host
from resilience_cli.collect.inputs import read_items
from resilience_cli.collect.journal import OutputError
from resilience_cli.collect.progress import Progress, Snapshot, line_of
from resilience_cli.collect.records import final_record, started_record
from resilience_cli.collect.summary import Tally, cause_lines, host_table
from resilience_cli.collect.tasks import Final, Task

from resilience.core.classify import Classification
from resilience.core.errors import DeadlineExceeded, ErrorCategory
from resilience.strategies.circuit_breaker import CircuitBreaker


class Terminal(io.StringIO):
    def isatty(self):
        return True


def item_of(line):
    return read_items([line.encode()], "x").items[0]


def host(name="a.test:80", ok=0, failed=0, tries=0, **more):
    made = Host(name, CircuitBreaker(name), 4)
    made.ok, made.failed, made.tries = ok, failed, tries
    for key, value in more.items():
        setattr(made, key, value)
    return made


def test_a_terminal_gets_one_line_written_over_and_cleared():
    stream = Terminal()
    progress = Progress(stream)
    progress.show(0.0, Snapshot(10, 1, 0, 4, 0))
    progress.show(1.0, Snapshot(10, 5, 1, 4, 2, ["dead.test:80"], "1 at a time (x)", 4.0))
    progress.clear()
    text = stream.getvalue()
    assert "\n" not in text
    assert text.count("\r") == 4
    assert text.endswith("\r")
    assert "6/10  ok 5  failed 1  in flight 4  waiting 2 | 5/s | breaker open: dead.test:80" in text


def test_off_a_terminal_there_is_a_line_each_ten_seconds_and_no_carriage_return():
    stream = io.StringIO()
    progress = Progress(stream)
    for second in range(35):
        progress.show(float(second), Snapshot(100, second, 0, 4, 0))
    progress.clear()
    assert stream.getvalue().count("\n") == 3
    assert "\r" not in stream.getvalue()


def test_quiet_shows_nothing_and_a_closed_stream_hurts_nobody():
    stream = io.StringIO()
    Progress(stream, quiet=True).show(100.0, Snapshot(1, 0, 0, 0, 0))
    assert stream.getvalue() == ""
    closed = Terminal()
    progress = Progress(closed)
    closed.close()
    progress.show(1.0, Snapshot(1, 0, 0, 0, 0))


def test_many_open_breakers_are_counted():
    line = line_of(Snapshot(9, 0, 0, 0, 0, ["a", "b", "c", "d"]), 0.0)
    assert "breaker open: a, b and 2 more" in line


def test_the_table_shows_trouble_first_and_only_so_many_rows():
    hosts = [host(f"h{number}:80", ok=1, tries=1) for number in range(30)]
    hosts.append(host("dead:80", failed=10, tries=5, untried=5, last_error="connection refused"))
    lines = host_table(hosts)
    assert lines[0].split() == ["HOST", "OK", "FAIL", "TRIES", "BREAKER", "NOTE"]
    assert lines[1].split()[:4] == ["dead:80", "0", "10", "5"]
    assert "connection refused; 5 not even tried" in lines[1]
    assert len(lines) == 22
    assert lines[-1] == "and 11 more hosts: 11 ok, 0 failed"


def test_an_obeyed_wish_and_retries_are_noted():
    (_, line) = host_table([host(ok=10, tries=12, waited=2.04)])
    assert line.endswith("2 tried again; waited 2.0 s as told (Retry-After)")


def test_failures_are_grouped_by_cause_with_their_hosts():
    tally = Tally(10)
    for number in range(5):
        tally.fell("transient", f"h{number}:80", "connection refused", f"http://h{number}/")
    tally.fell("permanent", "h0:80", "404 Not Found", "http://h0/x")
    lines = cause_lines(tally)
    assert len(lines) == 2
    assert lines[0].split()[:2] == ["5", "transient"]
    assert "on h0:80, h1:80, h2:80 and 2 more hosts, e.g. http://h0/" in lines[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DeadlineExceeded(timeout=2.0), "no complete answer within 5 s"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (ConnectionResetError(104, "x"), "connection reset"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (ValueError("a\nb" + "c" * 1000), "a b" + "c" * 197),
    ],
)
def test_a_cause_is_short_and_the_same_for_the_same_trouble(error, words):
    assert cause_of(error, 5.0) == words


def test_no_room_here_is_nobody_elses_fault():
    answer = of_error(OSError(24, "Too many open files"), 5.0)
    assert (answer.category, answer.is_exhausted, answer.blames_host) == ("resource", True, None)


def test_a_wish_to_come_back_later_is_no_failure_of_the_host():
    limited = Classification(ErrorCategory.TRANSIENT, True, "answered", 3.0)
    assert of_status(429, "", limited, 0).blames_host is None
    plain = Classification(ErrorCategory.TRANSIENT, True, "answered")
    assert of_status(429, "", plain, 0).blames_host is True
    gone = Classification(ErrorCategory.PERMANENT, False, "answered")
    assert of_status(404, "", gone, 0).blames_host is False


def test_a_final_record_has_what_scripts_read_and_no_password():
    item = item_of("http://me:secret@a.test/x")
    task = Task(item, host())
    task.attempts = 2
    record = final_record(Final(task, Answer(False, 503, "503 x", "transient", retry_after=2.0), 1.5), 1e9)
    assert record["url"] == "http://me:***@a.test/x"
    assert (record["ok"], record["status"], record["attempts"], record["elapsed_s"]) == (False, 503, 2, 1.5)
    assert (record["category"], record["error"], record["retry_after"]) == ("transient", "503 x", 2.0)
    good = final_record(Final(task, Answer(True, 200, size=5, path="out/x"), 1.5), 1e9)
    assert good["ok"] is True
    assert not {"category", "error"} & set(good)
    assert "ok" not in started_record(item, 1.0)
    assert json.loads(json.dumps(good)) == good


NASTY = ["http://a.test/../../etc/passwd", "http://a.test/%2e%2e%2fx", "http://a.test/" + "long" * 500, "http://a.test/",
         "http://a.test/a%00b", "http://a.test/.hidden", "http://a.test/x.tar.gz", "http://a.test/x?y=/../z",
         "http://[::1]/x", "http://ä.test/ö"]  # fmt: skip


@pytest.mark.parametrize("url", NASTY)
def test_names_of_bodies_stay_in_their_directory(url):
    name = name_of(item_of(url))
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()
    assert len(name) < 130


def test_names_of_bodies_never_collide():
    more = ["http://a.test/X", "http://a.test/x", "http://a.test/x?1", '{"url": "http://a.test/x", "key": "2"}']
    lines = [*NASTY, *more]
    assert len({name_of(item_of(line)).lower() for line in lines}) == len(lines)
    assert name_of(item_of("http://a.test/pic.JPG")).endswith(".JPG")


def test_a_body_is_there_complete_or_not_at_all(tmp_path):
    bodies = Bodies(tmp_path / "new")
    item = item_of("http://a.test/x")

    def broken():
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        bodies.keep(item, broken())
    assert list(bodies.directory.iterdir()) == []
    size, path = bodies.keep(item, [b"who", b"le"])
    assert (size, Path(path).read_bytes()) == (5, b"whole")


def test_a_directory_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Bodies(tmp_path / "file")
