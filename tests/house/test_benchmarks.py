"""The benchmarks come out, judge honestly and draw: with figures made up, in no time."""

import json

import pytest

from benchmarks import report
from benchmarks.drivers import drivers
from benchmarks.measure import Row, interleaved, of_process

ROWS = [
    Row("call", "ours", 1.5, goal=1.6, panel="One call (x)", label="ours"),
    Row("call", "theirs", 6.0, panel="One call (x)", label="theirs", who="peer"),
    Row("threads", "ours", 3.0, "M/s", goal=4.0, at_least=True, panel="Calls (million/s)", label="ours"),
    Row("call", "stretch", 1.5, goal=0.75, stretch=True),
]


def test_a_goal_is_reached_from_its_own_side():
    assert [row.reached for row in ROWS] == [True, None, False, False]
    assert report.line(ROWS[0]).endswith("ok")
    assert report.line(ROWS[2]).endswith(">= 4      MISSED")
    assert report.line(ROWS[3]).endswith("not reached (stretch)")
    assert "MISSED" not in report.line(ROWS[2], judged=False)


def test_results_say_where_they_come_from(tmp_path):
    report.write_json(ROWS, tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["machine"]["processors"] >= 1
    assert [row["reached"] for row in written["rows"]] == [True, None, False, False]


def test_the_picture_has_a_panel_for_each_set_of_rows(tmp_path):
    pytest.importorskip("matplotlib")
    assert report.write_plot(ROWS, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000
    assert not report.write_plot(ROWS[3:], tmp_path / "none.png")


def test_the_picture_of_delays_has_a_curve_for_each_row_with_samples(tmp_path):
    pytest.importorskip("matplotlib")
    told = Row("shared", "told", 2.0, "ms", goal=5.0, label="ours, file", samples=(1.0, 2.0, 30.0))
    assert report.write_spread([*ROWS, told], tmp_path / "propagation.png")
    assert (tmp_path / "propagation.png").stat().st_size > 10_000
    assert not report.write_spread(ROWS, tmp_path / "none.png")


def test_a_missing_library_is_told_from_a_broken_program():
    assert of_process("print(1.5)") == 1.5
    with pytest.raises(LookupError):
        of_process("import no_such_library_at_all")
    with pytest.raises(RuntimeError):
        of_process("1 / 0")


def test_contenders_take_turns():
    turns: list[str] = []
    interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=2)
    order = [name for place, name in enumerate(turns) if place == 0 or turns[place - 1] != name]
    assert order[-4:] == ["a", "b", "a", "b"]


def test_the_rows_of_the_drivers_come_out(valkey_url, postgres_dsn):
    """The fixtures say whether the servers can run here; the benchmark starts its own by the same code."""
    told = [row.what for row in drivers(smoke=True)]
    assert [what.split(",")[0] for what in told if "over the bare driver" in what] == [
        "requests", "redis", "psycopg2", "psycopg2",
    ]  # fmt: skip
