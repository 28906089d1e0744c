"""5,000 items with known ends: the run, its journal, the report on it and the manager that made the requests agree."""

import io
import json
from collections import Counter

import pytest
from resilience_cli.collect.answer import Answer, of_error
from resilience_cli.collect.inputs import read_items
from resilience_cli.collect.job import Job, Options
from resilience_cli.collect.journal import Journal, Past, read_records
from resilience_cli.collect.progress import Progress
from resilience_cli.collect.signals import Signals
from resilience_cli.main import run as command

from resilience import CircuitBreakerConfig, DeadlineExceeded, ErrorRecoveryManager, RetryPolicy
from resilience.integrations import prometheus

ITEMS = 5_000
KINDS = ("ok",) * 6 + ("wrong", "recovers", "down", "late")
EACH = ITEMS // len(KINDS)


def request(kind, turn):
    """What the server of an item does at its `turn`-th request."""
    if kind == "wrong":
        raise PermissionError("no")
    if kind == "late":
        raise DeadlineExceeded(name="request", timeout=5.0)
    if kind == "down" or (kind == "recovers" and turn == 1):
        raise ConnectionResetError("reset")


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        made.register_retry_policy("request", RetryPolicy(max_retries=0))
        yield made


def fetcher(manager, turns):
    """One attempt of `collect`, as a call of the manager."""
    call = manager.protect("request", isolation="caller")(request)

    def fetch(item, seconds, onward=None):
        turns[item.url] += 1  # one request for an item at a time
        try:
            call(item.url.rpartition("/")[2].partition("-")[0], turns[item.url])
        except Exception as error:
            return of_error(error, 5.0)
        return Answer(True, 200)

    return fetch


def test_5000_items_agree_in_run_journal_report_monitor_and_text(tmp_path, capsys, manager):
    urls = [f"http://{number % 7}.test/{KINDS[number % len(KINDS)]}-{number}".encode() for number in range(ITEMS)]
    options = Options(
        attempts=2, retry=RetryPolicy(max_retries=1, base_delay=0.0), workers=8, per_host=8,
        breaker=CircuitBreakerConfig(failure_threshold=10 * ITEMS),
    )  # fmt: skip
    path, turns = tmp_path / "run.jsonl", Counter()
    job = Job(read_items(urls, "urls.txt"), options, Past(), Journal(path), lambda: fetcher(manager, turns))
    signals = Signals()
    with signals:
        job.run(signals, Progress(io.StringIO(), quiet=True))

    known = {"calls": 10, "successes": 7, "failures": 3, "retries": 3, "timeouts": 1, "rejections": 0}
    known = {name: times * EACH for name, times in known.items()}
    assert (job.tally.ok, job.tally.failed) == (known["successes"], known["failures"])
    records = [record for record in read_records(path) if "ok" in record]
    assert len({record["key"] for record in records}) == len(records) == ITEMS
    assert sum(record["attempts"] for record in records) == known["calls"] + known["retries"] == turns.total()

    assert command(["report", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    hosts = report["operations"]
    assert len(hosts) == 7
    assert {name: sum(host[name] for host in hosts.values()) for name in known} == known
    (source,) = report["sources"]
    assert (source["records"], source["items"], source["ok"], source["torn"]) == (ITEMS, ITEMS, known["successes"], 0)
    causes = {cause.text: cause.hosts.total() for cause in job.tally.causes.values()}
    groups = Counter()
    for group in report["errors"]["groups"]:
        groups[group["message"]] += group["count"]
    assert sorted(groups.values()) == sorted(causes.values()) == [EACH] * 3
    assert report["errors"]["errors"] == known["failures"]

    counts = manager.monitor.operations()["request"]
    attempts = {"calls": 13 * EACH, "successes": 7 * EACH, "failures": 6 * EACH, "timeouts": 2 * EACH}
    assert {name: counts[name] for name in attempts} == attempts
    assert counts["calls"] == known["calls"] + known["retries"]
    assert {name: manager.status()["operations"]["request"][name] for name in attempts} == attempts
    text = prometheus.render(manager)
    for outcome, times in (("ok", 7), ("error", 4), ("timeout", 2)):
        assert f'resilience_calls_total{{name="request",outcome="{outcome}"}} {times * EACH}\n' in text
