"""`resilience report`: what journals hold, whoever wrote them."""

import json

from resilience_cli import exits
from resilience_cli.main import run

from resilience import ErrorRecoveryManager, open_store
from resilience.monitoring.accounts import PREFIX


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


def test_an_account_that_cannot_be_read_is_named_and_hides_no_other(capsys, tmp_path):
    url = f"file://{tmp_path}/state"
    manager = ErrorRecoveryManager(store=url)
    manager.execute_with_retry("api_call", lambda: 1)
    manager.close()
    odd = [
        5,
        {"operations": []},
        {"errors": {"groups": [{}]}},
        {"operations": {"x": {"calls": "many"}}},
        {"alerts": [1]},
    ]
    with open_store(url) as store:
        for number, account in enumerate(odd):
            store.transact(f"{PREFIX}{number}", lambda old, now, account=account: (account, None))
    assert run(["report", "--store", url, "--json"]) == exits.OK
    shown = capsys.readouterr()
    assert json.loads(shown.out)["operations"]["api_call"]["calls"] == 1
    assert shown.err.count("is no account that can be read") == len(odd)
