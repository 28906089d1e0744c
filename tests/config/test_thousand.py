"""A thousand malformed or contradictory configurations: each is refused by name, and what runs stays as it is."""

import random
import re
import string

import pytest
from resilience_cli import exits
from resilience_cli.main import run

from resilience import ConfigError, ErrorRecoveryManager
from resilience.config.model import BREAKER, BULKHEAD, RATE_LIMIT, RETRY, RETRY_BUDGET, TIMEOUT_DEFAULTS
from resilience.config.sources import check_sources, load_settings

NOT_A_DURATION = ["-1s", "1e3", "nan", "inf", "5 s", "1:30", "60x", "soon", "0x10", "1h2", "s", "true", "5S", "1,5"]
NOT_A_COUNT = ["-1", "1.5", "five", "010", "0x10", "1e3", "true", "1_000", "5s", "+5", "NaN", "1000000000000"]
NOT_A_NUMBER = ["-1", "two", "1e3", "nan", "inf", "2x", "1,5", "--2"]
NOT_A_SHARE = ["0", "1.5", "150%", "half", "-0.5", "nan"]
NOT_A_BOOLEAN = ["yes", "on", "1", "maybe", "0"]
NOT_A_WORD = ["exp", "threads", "2", "Raise", "none at all"]
BAD = {
    "failure_threshold": NOT_A_COUNT, "success_threshold": NOT_A_COUNT, "max_requests": NOT_A_COUNT,
    "minimum_calls": NOT_A_COUNT, "window_size": NOT_A_COUNT, "max_retries": NOT_A_COUNT, "max_attempts": NOT_A_COUNT,
    "max_concurrent": NOT_A_COUNT, "max_queue": NOT_A_COUNT, "burst": NOT_A_COUNT,
    "failure_rate": NOT_A_SHARE, "slow_call_rate": NOT_A_SHARE, "backoff_factor": NOT_A_NUMBER, "rate": NOT_A_NUMBER,
    "ratio": NOT_A_SHARE, "min_per_second": NOT_A_NUMBER,
    "jitter": NOT_A_BOOLEAN, "idempotent": NOT_A_BOOLEAN, "critical": NOT_A_BOOLEAN,
    "backoff": NOT_A_WORD, "on_open": NOT_A_WORD, "isolation": NOT_A_WORD,
}  # fmt: skip
BLOCKS = {"circuit_breaker": BREAKER, "retry": RETRY}
OWN = {**BLOCKS, "retry_budget": RETRY_BUDGET, "bulkhead": BULKHEAD, "rate_limit": RATE_LIMIT}


def misspelt(word, rng):
    place = rng.randrange(len(word))
    return word[:place] + rng.choice(string.ascii_lowercase) + word[place + rng.randrange(2) :] + rng.choice("xqz")


class Writer:
    """Makes one bad configuration after another: (lines below the root, the number of the bad one, its key)."""

    def __init__(self, rng):
        self.rng = rng

    def padding(self):
        letters = string.ascii_letters + " :[]{}"
        return ["# " + "".join(self.rng.choices(letters, k=20)) for _ in range(self.rng.randrange(4))]

    def bad_value(self):
        block = self.rng.choice([*BLOCKS, "timeouts"])
        key = self.rng.choice([*BLOCKS.get(block, TIMEOUT_DEFAULTS)])
        value = self.rng.choice([*BAD.get(key, NOT_A_DURATION), "[1]", "{a: 1}"])
        lines = [f"  {block}:", *self.padding(), f"    {key}: {value}"]
        return lines, len(lines), f"{block}.{key}"

    def bad_value_of_an_operation(self):
        block = self.rng.choice([*OWN])
        key = self.rng.choice([*OWN[block]])
        value = self.rng.choice(BAD.get(key, NOT_A_DURATION))
        lines = ["  operations:", *self.padding(), "    quotes:", f"      {block}:", f"        {key}: {value}"]
        return lines, len(lines), f"operations.quotes.{block}.{key}"

    def unknown_key(self):
        block = self.rng.choice([*BLOCKS])
        key = misspelt(self.rng.choice([*BLOCKS[block]]), self.rng)
        lines = [f"  {block}:", *self.padding(), f"    {key}: 5"]
        return lines, len(lines), f"{block}.{key}"

    def delays_the_wrong_way_round(self):
        longest = self.rng.randint(1, 999)
        base = longest + self.rng.randint(1, 9999)
        lines = ["  retry:", f"    max_delay: {longest}ms", *self.padding(), f"    base_delay: {base}ms"]
        return lines, 2, "retry.max_delay"

    def attempts_that_are_not_the_retries(self):
        retries = self.rng.randint(0, 50)
        attempts = retries + self.rng.choice([2, 3, 9])
        lines = ["  retry:", f"    max_retries: {retries}", *self.padding(), f"    max_attempts: {attempts}"]
        return lines, len(lines), "retry.max_attempts"

    def a_window_that_never_holds_enough(self):
        size, more = self.rng.randint(1, 50), self.rng.randint(1, 50)
        lines = ["  circuit_breaker:", f"    window_size: {size}", f"    minimum_calls: {size + more}"]
        return lines, 3, "circuit_breaker.minimum_calls"

    def a_total_shorter_than_one_attempt(self):
        one = self.rng.randint(2, 60)
        lines = ["  operations:", "    quotes:", f"      timeout: {one}s", f"      total_timeout: {one * 1000 - 1}ms"]
        return lines, 4, "operations.quotes.total_timeout"

    def a_key_twice(self):
        key = self.rng.choice(["timeout", "failure_threshold", "max_requests"])
        lines = ["  circuit_breaker:", f"    {key}: 5", *self.padding(), f"    {key}: 6"]
        return lines, len(lines), f"circuit_breaker.{key}"


KINDS = [name for name in vars(Writer) if not name.startswith("_") and name != "padding"]


def refused(path, line, key):
    """Each error names its origin, its key and a reason; one of them is the one that was put in."""
    errors = check_sources(path, {})
    assert errors
    for error in errors:
        assert re.match(rf"{re.escape(path)}:\d+: \S+: .{{15}}", str(error)), str(error)
    assert (f"{path}:{line}", key) in [(error.origin, error.key) for error in errors], errors
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert str(caught.value) == str(errors[0])


def test_a_thousand_bad_files_are_refused_and_the_running_configuration_stays(tmp_path, capsys, monkeypatch):
    rng = random.Random(39)
    writer = Writer(rng)
    path = tmp_path / "resilience.yaml"
    path.write_text("error_recovery:\n  timeouts: {api_call: 7s}\n  retry: {max_retries: 1, base_delay: 0s}\n")
    monkeypatch.chdir(tmp_path)
    calls = []
    with ErrorRecoveryManager.from_config(str(path), {}) as manager:
        before = load_settings(str(path), {}).rows()
        for turn in range(1_000):
            lines, number, key = getattr(writer, KINDS[turn % len(KINDS)])()
            path.write_text("\n".join(["error_recovery:", *lines]) + "\n")
            refused(str(path), number + 1, key)
            with pytest.raises(ConfigError):
                ErrorRecoveryManager.from_config(str(path), {})
            if turn % 10 == 0:  # and so the command line says
                assert run(["config", "check", "resilience.yaml"]) == exits.CONFIG
                talk = capsys.readouterr().err
                assert f"resilience.yaml:{number + 1}: {key}: " in talk
                assert "Traceback" not in talk
        assert manager.timeouts.timeout_of("api_call") == 7.0
        with pytest.raises(ConnectionError):
            manager.execute_with_retry("api_call", failing(calls))
        assert len(calls) == 2  # one retry, as at its start
    path.write_text("error_recovery:\n  timeouts: {api_call: 7s}\n  retry: {max_retries: 1, base_delay: 0s}\n")
    assert load_settings(str(path), {}).rows() == before


def failing(calls):
    def fail():
        calls.append(1)
        raise ConnectionError("down")

    return fail


def test_every_verb_that_reads_the_configuration_refuses_a_bad_one_with_78(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resilience.yaml").write_text("error_recovery:\n  retry:\n    base_delay: soon\n")
    (tmp_path / "urls.txt").write_text("http://127.0.0.1:9/\n")
    for verb in (["config", "check"], ["config", "show"], ["config", "show", "--origin"], ["explain"],
                 ["collect", "urls.txt"]):  # fmt: skip
        assert run(verb) == exits.CONFIG
        assert "resilience.yaml:3: retry.base_delay: 'soon' is no duration" in capsys.readouterr().err
    assert not (tmp_path / "urls.txt.journal.jsonl").exists()


def test_a_refused_update_of_timeouts_changes_none_of_them():
    with ErrorRecoveryManager() as manager:
        before = manager.timeouts.config()
        for bad in (-1.0, 0.0, float("nan"), float("inf"), "5s", True):
            with pytest.raises(ConfigError):
                manager.timeouts.update_config(api_call=3.0, redis_operation=bad)
            assert manager.timeouts.config() == before
