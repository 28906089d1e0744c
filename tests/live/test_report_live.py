"""`resilience report` over real journals and over stores that real processes have written to."""

import json
import os
import time

import pytest
import yaml

WORK = """
import sys
from resilience import ErrorRecoveryManager, RetryPolicy, open_store
store = open_store(sys.argv[1])
manager = ErrorRecoveryManager(store=store)
manager.register_retry_policy("op", RetryPolicy(max_retries=1, base_delay=0.0))
def down():
    raise ConnectionError("connection to 10.0.0.1 refused")
for _ in range(30):
    manager.execute_with_retry("op", int)
for _ in range(20):
    try:
        manager.execute_with_retry("op", down)
    except ConnectionError:
        pass
print("ready", flush=True)
sys.stdin.read()
manager.close()
store.close()
"""

FORK = """
import os, sys
from resilience import ErrorRecoveryManager, open_store
store = open_store(sys.argv[1])
manager = ErrorRecoveryManager(store=store)
child = os.fork()
manager.execute_with_retry("child" if child == 0 else "parent", int)
if child == 0:
    manager.close()
    store.close()
    os._exit(0)
os.waitpid(child, 0)
manager.close()
store.close()
print("ready", flush=True)
"""


def told(home, *words):
    done = home.run("report", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def url_of(home):
    return f"file://{home.folder}/state"


def test_ended_running_and_killed_processes_are_all_reported(home):
    ended, running, killed = (home.start(WORK, url_of(home), agent=False) for _ in range(3))
    ended.communicate("")
    assert ended.returncode == 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        report = told(home, "--store", url_of(home))
        if report["operations"].get("op", {}).get("calls") == 150:
            break
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    report = told(home, "--store", url_of(home))
    op = report["operations"]["op"]
    assert (op["calls"], op["successes"], op["failures"], op["retries"]) == (150, 90, 60, 60)
    assert (report["errors"]["errors"], report["errors"]["total"]) == (60, 150)
    (group,) = report["errors"]["groups"]
    assert (group["category"], group["count"]) == ("transient", 60)
    assert report["alerts"] == []  # 20 retries for 50 calls: 40 %
    states = {source["pid"]: source["ended"] for source in report["sources"]}
    assert states == {ended.pid: True, running.pid: False, killed.pid: False}
    text = home.run("report", "--store", url_of(home)).stdout
    assert "60 errors out of 150" in text
    assert f":{ended.pid} -c (ended)" in text
    running.communicate("")


def test_the_store_may_come_from_the_environment_or_the_state_directory(home):
    folder = home.folder / ".local" / "state" / "resilience"
    process = home.start(WORK, f"file://{folder}/state", agent=False)
    process.communicate("")
    assert told(home)["operations"]["op"]["calls"] == 50


@pytest.mark.filterwarnings("ignore")
def test_parent_and_forked_child_each_leave_an_account(home):
    process = home.start(FORK, url_of(home), agent=False)
    process.communicate()
    report = told(home, "--store", url_of(home))
    assert {name: figures["calls"] for name, figures in report["operations"].items()} == {"child": 1, "parent": 1}
    assert len(report["sources"]) == 2


def test_no_store_and_no_journal_is_69_and_an_unknown_scheme_is_78(home):
    done = home.run("report")
    assert done.returncode == 69
    assert "--store" in done.stderr
    done = home.run("report", "--store", "redis://127.0.0.1:1/0")
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert home.run("report", "--store", "gopher://x").returncode != 0


def record(number, **fields):
    entry = {"url": f"http://h.local/{number}", "ok": True, "status": 200, "attempts": 1, "elapsed_s": 0.1,
             "host": "h.local", "key": str(number), "at": 1000.0 + number}  # fmt: skip
    return json.dumps({**entry, **fields}) + "\n"


def journal(home):
    path = home.folder / "run.jsonl"
    failed = {"ok": False, "status": None, "category": "transient"}
    lines = [
        '{"event": "run", "items": 12, "skipped": 0, "at": 1}\n',
        *(record(number) for number in range(6)),
        *(record(number, **failed, attempts=4, error=f"ConnectionError: no route {number}") for number in (6, 7)),
        record(8, **{**failed, "status": 404, "category": "permanent"}, error="404 Not Found"),
        record(9, **failed, attempts=0, error="breaker open"),
        record(10, **failed, attempts=2, error="timed out after 10 s"),
        '{"url": "torn',
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_journal_is_added_up_by_host_and_its_errors_grouped(home):
    report = told(home, journal(home))
    host = report["operations"]["h.local"]
    assert (host["calls"], host["successes"], host["failures"], host["rejections"]) == (11, 6, 4, 1)
    assert (host["retries"], host["timeouts"]) == (3 + 3 + 1, 1)
    assert host["p50"] == pytest.approx(0.1, rel=0.02)
    assert (report["errors"]["errors"], report["errors"]["total"]) == (5, 11)
    groups = {group["message"]: group["count"] for group in report["errors"]["groups"]}
    assert groups == {"ConnectionError: no route N": 2, "N Not Found": 1, "breaker open": 1, "timed out after N s": 1}
    (source,) = report["sources"]
    assert (source["items"], source["ok"], source["torn"]) == (11, 6, 1)


def test_journals_and_a_store_are_reported_together_and_as_lines(home):
    process = home.start(WORK, url_of(home), agent=False)
    process.communicate("")
    done = home.run("report", journal(home), "--store", url_of(home), "--nl")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["operation"] for line in lines if "operation" in line} == {"h.local", "op"}
    assert sum(line["count"] for line in lines if "error" in line) == 25


def test_what_is_no_journal_is_a_usage_error(home):
    assert home.run("report", home.folder / "missing.jsonl").returncode == 2
    other = home.folder / "other.txt"
    other.write_text("no journal\n", encoding="utf-8")
    done = home.run("report", other)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_rules_for_prometheus_are_five_and_valid(home):
    done = home.run("report", "rules", "--prometheus")
    assert done.returncode == 0
    (group,) = yaml.safe_load(done.stdout)["groups"]
    assert [rule["labels"]["rule"] for rule in group["rules"]] == [
        "breaker_open", "retry_rate", "timeout_rate", "resource_usage", "error_rate",
    ]  # fmt: skip
    assert all(rule["alert"] and rule["expr"] for rule in group["rules"])
    assert home.run("report", "rules").returncode == 2


def test_a_full_disk_under_the_report_is_74(home):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    import subprocess
    import sys

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resilience_cli", "report", str(journal(home))], stdout=full,
            stderr=subprocess.PIPE, text=True, env=home.environment, check=False,
        )  # fmt: skip
    assert done.returncode == 74
    assert "Traceback" not in done.stderr
