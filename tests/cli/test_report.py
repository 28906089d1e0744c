"""`resilience report`: what journals hold, whoever wrote them."""

import json

from resilience_cli import exits
from resilience_cli.main import run


def test_records_that_are_odd_are_counted_with_the_others(capsys, tmp_path):
    records = [
        {"ok": True, "key": ["a"], "elapsed_s": float("nan"), "attempts": 1},
        {"ok": False, "key": "b", "at": "yesterday", "error": "boom"},
        {"ok": False, "key": {"c": 1}, "at": 5, "error": "boom", "status": [1], "host": [2], "attempts": "many"},
        {"ok": False, "key": "d", "at": None, "error": {"a": 1}, "category": ["x"], "attempts": True},
        {"ok": False, "key": "e", "at": 7.5, "error": "boom", "host": 3},
    ]
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records) + "[]\nnull\n\x00\n")
    assert run(["report", str(path), "--json"]) == exits.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["sources"][0]["items"], told["sources"][0]["torn"]) == (5, 3)
    assert told["errors"]["errors"] == 4
    assert run(["report", str(path), "-v"]) == exits.OK
