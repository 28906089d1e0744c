"""The specification's program: it loses nothing, its books agree, and it ends in order."""

import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
import resilience_cli.main

from resilience import ErrorRecoveryManager, OutcomeUnknown
from resilience.testing import FaultProxy

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "collector.py"
GUIDE = PROGRAM.parents[1] / "docs" / "the-collector.md"
PATIENCE = 60.0  # real seconds for the program to start on a busy machine


@pytest.fixture
def parts(monkeypatch):
    """Imports a part of the program."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    return lambda name: importlib.import_module(f"collector.{name}")


def ask(dsn, statement):
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.fixture
def database(postgres_dsn):
    """A database of its own on the shared server."""
    name = f"collector_{uuid.uuid4().hex}"
    ask(postgres_dsn, f"CREATE DATABASE {name}")
    yield f"{postgres_dsn.rpartition('/')[0]}/{name}"
    ask(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def collector():
    """Starts the program in a session of its own, as a terminal would."""
    begun = []

    def start(*words, **environment):
        begun.append(subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env={**os.environ, **environment},
        ))  # fmt: skip
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def wait_for(process, words):
    """Reads what the program tells until these words come."""
    hang = threading.Timer(PATIENCE, process.kill)
    hang.start()
    told = []
    try:
        for line in process.stderr:
            told.append(line)
            if words in line:
                return
    finally:
        hang.cancel()
    raise AssertionError(f"{words!r} never came:\n{''.join(told)}")


def check_that_nothing_was_lost(report, dsn, price):
    """The report against the database and the exchanges' own prices, without the program's help."""
    assert report["problems"] == []
    rows = whole_series(dsn, price)
    in_table = Counter(row[0] for row in rows)
    for name, books in report["exchanges"].items():
        assert books["stored"] == books["rows"] == in_table[name] > 0, name
        assert books["stored"] + books["known"] <= books["received"] <= books["served"], name
    return rows


def whole_series(dsn, price):
    """The rows of the table: each second once, with its price, without a gap, up to the same end everywhere."""
    rows = ask(dsn, "SELECT exchange, symbol, at, price FROM tickers ORDER BY 1, 2, 3")
    assert all(found == Decimal(price(*key)) for *key, found in rows)
    ends = set()
    for series, seconds in itertools.groupby(rows, key=lambda row: row[:2]):
        stored = [row[2] for row in seconds]
        assert stored == list(range(stored[0], stored[-1] + 1)), series
        ends.add(stored[-1])
    assert max(ends) - min(ends) <= 1
    return rows


def test_an_exchange_dies_and_redis_too_and_nothing_is_lost(collector, parts, own_valkey, database):
    process = collector(
        "--seconds", 5, "--json", "--redis", own_valkey.url, "--postgres", database, CIRCUIT_BREAKER_TIMEOUT="500ms"
    )
    wait_for(process, "kraken dies")
    own_valkey.kill()
    wait_for(process, "redis_operation: closed -> open")
    own_valkey.restart()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert "Exception ignored" not in err
    report = json.loads(out)
    check_that_nothing_was_lost(report, database, parts("exchange").price)
    assert report["exchanges"]["kraken"]["backfilled"] > 0
    assert report["operations"]["market_data"]["failures"] > 0
    assert report["operations"]["redis_operation"]["failures"] > 0
    assert report["cache"]["misses"] > 0
    assert report["fallbacks"] > 0
    assert all(worker["is_running"] for worker in report["workers"].values())


def test_ctrl_c_ends_it_in_order_with_its_report(collector, tmp_path):
    store = f"file://{tmp_path}/state"
    process = collector("--seconds", 0, "--calm", "--store", store)  # servers of its own hear no Ctrl-C
    wait_for(process, "collecting")
    orders = ["breakers", "--store", store, "trip", "market_data:kraken", "--for", "1s", "--reason", "maintenance"]
    assert resilience_cli.main.run(orders) == 0
    threading.Event().wait(1.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert "nothing was lost" in out
    (kraken,) = (line.split() for line in out.splitlines() if line.startswith("kraken"))
    assert int(kraken[10]) > 0, out  # rejected: the order reached it through the store


def test_a_ticker_whose_commit_was_not_answered_is_counted_once(parts, database):
    place = urlsplit(database)
    ticker = parts("clients").Ticker
    new = [ticker("kraken", symbol, 1_800_000_000, Decimal("1.5")) for symbol in ("BTC/USDT", "ETH/USDT")]
    with FaultProxy(place.hostname, place.port) as proxy, ErrorRecoveryManager() as manager:
        behind = database.replace(str(place.port), str(proxy.port))
        with contextlib.closing(parts("storage").Storage(behind, manager)) as storage:
            storage.prepare()
            proxy.drop_replies(1, to=b"COMMIT")
            with pytest.raises(OutcomeUnknown):
                storage.save("kraken", new)
            assert not storage.stored["kraken"]
            storage.settle()
            assert storage.stored["kraken"] == len(storage.rows()) == 2
            storage.save("kraken", new)
            storage.settle()
            assert (storage.received["kraken"], storage.stored["kraken"], storage.known["kraken"]) == (4, 2, 2)


def test_gaps_are_found_inside_of_a_series_and_at_its_end(parts, database):
    ticker = parts("clients").Ticker
    with (
        ErrorRecoveryManager() as manager,
        contextlib.closing(parts("storage").Storage(database, manager)) as storage,
    ):
        storage.prepare()
        now = 1_800_000_000
        storage.save("kraken", [ticker("kraken", "BTC/USDT", now + second, Decimal(1)) for second in (0, 1, 4, 5)])
        storage.save("kraken", [ticker("kraken", "DOT/USDT", now, Decimal(1))])
        assert storage.holes("kraken", ["BTC/USDT"], now + 6) == [("BTC/USDT", now + 2, now + 3)]
        assert storage.holes("kraken", ["BTC/USDT"], now + 9)[1:] == [("BTC/USDT", now + 6, now + 8)]
        assert storage.holes("bybit", ["BTC/USDT"], now + 9) == []


@pytest.mark.slow
def test_what_was_missed_while_the_program_was_dead_is_backfilled(collector, parts, valkey_url, database):
    urls = ("--redis", valkey_url, "--postgres", database)
    first = collector("--seconds", 0, "--calm", *urls)
    wait_for(first, "collecting")
    first.kill()
    first.wait()
    (last,) = ask(database, "SELECT max(at) FROM tickers")[0]
    threading.Event().wait(3.0)
    second = collector("--seconds", 2, "--calm", "--json", *urls)
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, out + err
    assert json.loads(out)["problems"] == []
    rows = whole_series(database, parts("exchange").price)
    assert {row[2] for row in rows} >= set(range(last, last + 4))


@pytest.mark.slow
def test_ccxt_collects_the_same(collector, parts, database):
    if importlib.util.find_spec("ccxt") is None:
        print("skipping: the package ccxt is not installed (extra: ccxt)")
        pytest.skip("the package ccxt is not installed (extra: ccxt)")
    process = collector("--seconds", 5, "--json", "--postgres", database, "--client", "ccxt")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    check_that_nothing_was_lost(json.loads(out), database, parts("exchange").price)


@pytest.mark.slow
def test_a_minute_with_an_exchange_dying_and_returning_and_redis_killed_in_between(collector, parts, own_postgres):
    process = collector("--seconds", 60, "--json", "--postgres", own_postgres.dsn)
    for words in ("kraken dies", "Redis is killed", "Redis is back", "kraken returns", "kraken: half_open -> closed"):
        wait_for(process, words)
    own_postgres.restart()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    report = json.loads(out)
    rows = check_that_nothing_was_lost(report, own_postgres.dsn, parts("exchange").price)
    assert len(rows) > 14 * 45
    assert report["exchanges"]["kraken"]["backfilled"] > 3 * 20
    assert report["exchanges"]["kraken"]["rejected"] > 0
    assert {books["breaker"] for books in report["exchanges"].values()} == {"closed"}
    assert any("error_rate of tickers kraken" in alert for alert in report["alerts"])
    assert report["health"]["lowest"] < 100


@pytest.mark.slow
def test_the_commands_of_the_guide_run(home):
    (script,) = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    folder = home.folder / "bin"
    folder.mkdir()
    for name, words in (("python", ""), ("resilience", " -m resilience_cli")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    (home.work / "examples").symlink_to(PROGRAM.parent)
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=home.work, capture_output=True, text=True, timeout=100, check=False,
        env={**home.environment, "PATH": f"{folder}:{home.environment['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((home.work / "report.json").read_text(encoding="utf-8"))
    assert report["problems"] == []
    assert report["exchanges"]["kraken"]["rejected"] > 0
    assert "market_data:kraken" in done.stdout


def test_the_guide_quotes_the_program():
    blocks = re.findall(r"^```py\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    program = "".join(path.read_text(encoding="utf-8") for path in PROGRAM.with_suffix("").glob("*.py"))
    assert len(blocks) >= 4
    for block in blocks:
        assert block in program
