"""`resilience breakers`: what it shows, what it orders, and that running processes obey."""

import json
import subprocess
import sys

import pytest
from resilience_cli import exits
from resilience_cli.main import run

from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, open_store
from resilience.testing import DeadPort, eventually


@pytest.fixture
def url(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/state"
    monkeypatch.setenv("RESILIENCE_STORE", url)
    return url


def shown(capsys, *arguments):
    capsys.readouterr()
    code = run(["breakers", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def failing():
    raise ConnectionError("refused")


def test_an_order_reaches_a_running_breaker_and_so_does_its_end(url, capsys):
    with open_store(url) as store:
        breaker = CircuitBreaker("backup", store=store)
        assert breaker.call(lambda: 1) == 1
        assert run(["breakers", "trip", "backup", "--reason", "maintenance"]) == 0
        eventually(lambda: str(breaker.state) == "forced_open")
        with pytest.raises(CircuitOpenError):
            breaker.call(lambda: 1)
        assert breaker.stats.reason == "maintenance"
        assert run(["breakers", "check", "backup"]) == exits.NO
        assert run(["breakers", "reset", "backup"]) == 0
        eventually(lambda: str(breaker.state) == "closed")
        assert breaker.call(lambda: 2) == 2
        assert run(["breakers", "check", "backup"]) == 0
        for verb, state in (("disable", "disabled"), ("metrics-only", "metrics_only")):
            assert run(["breakers", verb, "backup"]) == 0
            eventually(lambda state=state: str(breaker.state) == state)
        assert [event["new"] for event in shown(capsys, "events", "backup")[1]] == [
            "forced_open", "closed", "disabled", "metrics_only",
        ]  # fmt: skip


def test_what_a_breaker_has_seen_is_listed(url, capsys):
    with open_store(url) as store:
        breaker = CircuitBreaker("api", CircuitBreakerConfig(failure_threshold=2, timeout=500.0), store=store)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                breaker.call(failing)
        code, [seen] = shown(capsys, "list")
    assert code == 0
    assert seen["name"] == "api"
    assert seen["state"] == "open"
    assert seen["threshold"] == 2
    assert 400 < seen["retry_after_s"] <= 500
    assert "refused" in seen["last_error"]
    assert shown(capsys, "show", "api")[1]["state"] == "open"
    assert run(["breakers", "list"]) == 0
    assert "OPEN" in capsys.readouterr().out


def test_a_trip_lasts_as_long_as_told(url, capsys):
    code, seen = shown(capsys, "trip", "x", "--for", "10m")
    assert code == 0
    assert 590 < seen["retry_after_s"] <= 600


def test_a_name_that_is_unknown_is_said_with_the_nearest_one(url, capsys):
    run(["breakers", "trip", "backup"])
    assert run(["breakers", "show", "bakcup"]) == exits.NO
    assert "backup" in capsys.readouterr().err


def test_a_store_that_is_away_is_69_and_a_url_of_no_store_is_2(capsys):
    assert run(["breakers", "list", "--store", "redis://127.0.0.1:1/0"]) == exits.UNREACHABLE
    assert run(["breakers", "--store", "gopher://x", "list"]) == exits.USAGE
    assert "redis://" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["show", "trip", "reset", "check", "events", "disable", "metrics-only"])
def test_a_name_that_is_empty_or_no_text_is_bad_usage(url, capsys, verb):
    for name in ("", "\udcff"):
        assert run(["breakers", verb, name]) == exits.USAGE
    assert run(["breakers", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


GARBAGE = [5, "x", [], {}, {"state": 5}, {"last_error": 5, "last_at": "x", "threshold": "many"}, {"last_error": "\n"}]
EVENTS = [
    {"events": [{}, 1, {"at": "x", "old": "a", "new": "b"}, {"at": 1e300, "old": "a", "new": "b"}]},
    {"events": [{"at": 5, "old": "closed", "new": "open", "last_error": 5, "reason": None}]},
    {"events": {}},
    [],
]


def test_garbage_in_the_store_hides_nothing_else(url, capsys):
    with open_store(url) as store:
        for number, doc in enumerate(GARBAGE):
            store.transact(f"breaker/{number}", lambda old, now, doc=doc: (doc, None))
        for number, doc in enumerate(EVENTS):
            store.transact(f"breaker-events/{number}", lambda old, now, doc=doc: (doc, None))
    assert run(["breakers", "trip", "other", "--reason", "why"]) == 0
    assert run(["breakers", "list"]) == 0
    assert "FORCED_OPEN" in capsys.readouterr().out
    assert len(shown(capsys, "list")[1]) == len(GARBAGE) + 1
    assert [(one["name"], one["new"]) for one in shown(capsys, "events")[1]] == [
        ("1", "open"),
        ("other", "forced_open"),
    ]
    for name in range(len(GARBAGE)):
        assert run(["breakers", "show", str(name)]) == 0
        assert run(["breakers", "events", str(name)]) == 0
    assert run(["breakers", "check"]) == exits.NO


def test_an_empty_store_lists_nothing(url, capsys):
    assert shown(capsys, "list") == (0, [])
    assert run(["breakers", "check"]) == 0


def test_a_host_that_one_collection_found_dead_is_spared_by_the_next(url, capsys, tmp_path):
    with DeadPort() as dead:
        (tmp_path / "urls.txt").write_text("".join(f"http://127.0.0.1:{dead.port}/{number}\n" for number in range(8)))
        for number in (1, 2):
            done = subprocess.run(
                [sys.executable, "-m", "resilience_cli", "collect", "urls.txt", "--attempts", "1", "-q", "--nl",
                 "--journal", f"{number}.jsonl"], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == exits.TRANSIENT, done.stderr
            finals = [json.loads(line) for line in done.stdout.splitlines()]
            assert len(finals) == 8
        assert sum(final["attempts"] for final in finals) == 0
        [seen] = shown(capsys, "list")[1]
        assert seen["name"] == f"127.0.0.1:{dead.port}"
        assert seen["state"] == "open"
