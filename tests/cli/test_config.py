"""`resilience config` and `explain`, as a person uses them."""

import json

import pytest
from resilience_cli import exits
from resilience_cli.main import run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    return tmp_path


def test_init_writes_a_file_that_checks_and_never_overwrites_one(folder, capsys):
    assert run(["config", "init"]) == 0
    assert run(["config", "check"]) == 0
    (folder / "resilience.yaml").write_text("error_recovery: {}\n")
    assert run(["config", "init"]) == exits.NO
    assert (folder / "resilience.yaml").read_text() == "error_recovery: {}\n"
    assert "left as it is" in capsys.readouterr().err


def test_check_names_every_error_with_file_and_line(folder, capsys):
    (folder / "bad.yaml").write_text("error_recovery:\n  retry:\n    max_retrys: 3\n    base_delay: soon\n")
    assert run(["config", "check", "bad.yaml"]) == exits.CONFIG
    shown = capsys.readouterr().err
    assert "bad.yaml:3: retry.max_retrys" in shown
    assert "bad.yaml:4: retry.base_delay" in shown
    assert "'max_retries'" in shown


def test_show_tells_attempts_and_retries_and_the_origin_of_each(folder, capsys, monkeypatch):
    (folder / "resilience.yaml").write_text("error_recovery:\n  retry:\n    base_delay: 100ms\n")
    monkeypatch.setenv("RETRY_MAX_ATTEMPTS", "3")
    assert run(["config", "show", "--origin"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["retry.base_delay"] == ["100ms", "resilience.yaml:3"]
    assert rows["retry.max_retries"][0] == "2"
    assert rows["retry.max_attempts"] == ["3", "environment", "RETRY_MAX_ATTEMPTS"]
    assert run(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["retry.base_delay"] == {"value": "100ms", "origin": "resilience.yaml:3"}


def test_the_users_own_file_is_found_where_there_is_no_local_one(folder, capsys, monkeypatch):
    (folder / "home" / "resilience").mkdir(parents=True)
    (folder / "home" / "resilience" / "config.yaml").write_text("error_recovery:\n  retry: {max_retries: 9}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
    assert run(["config", "show"]) == 0
    assert "retry.max_retries                  9" in capsys.readouterr().out


def test_check_says_it_in_json_too_and_quietly_if_wanted(folder, capsys):
    (folder / "bad.yaml").write_text("error_recovery:\n  retry:\n    max_retrys: 3\n    base_delay: soon\n")
    assert run(["config", "check", "bad.yaml", "--json", "-q"]) == exits.CONFIG
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert (document["ok"], told.err) == (False, "")
    assert [(e["origin"], e["key"], e["value"]) for e in document["errors"]] == [
        ("bad.yaml:3", "retry.max_retrys", "max_retrys"), ("bad.yaml:4", "retry.base_delay", "soon"),
    ]  # fmt: skip
    assert run(["config", "check", "bad.yaml", "--nl"]) == exits.CONFIG
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 2
    assert run(["config", "check", "--json", "--nl"]) == exits.USAGE


def test_show_and_explain_speak_json_lines(capsys):
    assert run(["config", "show", "--nl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"key": "retry.max_attempts", "value": "4", "origin": "default"} in rows
    assert run(["explain", "--nl"]) == 0
    assert next(json.loads(line)["operation"] for line in capsys.readouterr().out.splitlines()) == "api_call"


def test_init_leaves_no_half_of_a_file(folder, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        assert run(["config", "init"]) == exits.OUTPUT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(folder.iterdir()) == []
    assert "cannot write resilience.yaml: File too large" in capsys.readouterr().err


def test_explain_tells_the_worst_case_and_the_contradictions(capsys):
    assert run(["explain", "database_operation", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["attempts"], facts["attempt_timeout"]) == (6, 5.0)
    assert facts["worst_wall_time"] == pytest.approx(6 * 5 + 0.05 + 0.075 + 0.1125 + 0.16875 + 0.253125)
    assert any("threshold of 5" in warning for warning in facts["warnings"])
    assert run(["explain"]) == 0
    assert "api_call" in capsys.readouterr().out
