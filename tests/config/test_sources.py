"""Settings from file and environment: precedence, origins, and every malformed one refused by name."""

import itertools
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience import ConfigError, ErrorRecoveryManager
from resilience.config.explain import explain_operation
from resilience.config.settings import Settings
from resilience.config.sources import check_sources, default_settings, load_settings

SPECIFICATION = """\
# config/error_recovery.yaml
error_recovery:
  circuit_breaker:
    failure_threshold: 5
    success_threshold: 3
    timeout: 60s
    max_requests: 10
    reset_timeout: 300s

  retry:
    max_retries: 3
    base_delay: 100ms
    max_delay: 5s
    backoff_factor: 2.0
    jitter: true

  timeouts:
    api_call: 10s
    database_query: 5s
    redis_operation: 2s
    concurrent_op: 15s
"""
SPECIFIED_VARIABLES = {
    "CIRCUIT_BREAKER_FAILURE_THRESHOLD": ("5", "circuit_breaker.failure_threshold", 5),
    "CIRCUIT_BREAKER_SUCCESS_THRESHOLD": ("3", "circuit_breaker.success_threshold", 3),
    "CIRCUIT_BREAKER_TIMEOUT": ("60s", "circuit_breaker.timeout", 60.0),
    "RETRY_MAX_ATTEMPTS": ("3", "retry.max_retries", 2),
    "RETRY_BASE_DELAY": ("100ms", "retry.base_delay", 0.1),
    "RETRY_MAX_DELAY": ("5s", "retry.max_delay", 5.0),
    "API_CALL_TIMEOUT": ("10s", "timeouts.api_call", 10.0),
    "DATABASE_QUERY_TIMEOUT": ("5s", "timeouts.database_query", 5.0),
    "REDIS_OPERATION_TIMEOUT": ("2s", "timeouts.redis_operation", 2.0),
}


@pytest.fixture
def write(tmp_path):
    def write(text, name="resilience.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def value_of(found, path):
    block, key = path.split(".")
    return {"circuit_breaker": found.circuit_breaker, "retry": found.retry, "timeouts": found.timeouts}[block][key]


def test_the_yaml_of_the_specification_verbatim_is_valid(write):
    found = load_settings(write(SPECIFICATION), {})
    assert found.circuit_breaker["reset_timeout"] == 300.0
    assert found.retry == {
        "max_retries": 3, "base_delay": 0.1, "max_delay": 5.0, "backoff_factor": 2.0, "jitter": True,
    }  # fmt: skip
    assert found.timeouts["concurrent_op"] == 15.0


@pytest.mark.parametrize("variable", SPECIFIED_VARIABLES)
@pytest.mark.parametrize("prefix", ["", "RESILIENCE_"])
def test_every_variable_of_the_specification_moves_the_value_it_names(variable, prefix):
    text, path, value = SPECIFIED_VARIABLES[variable]
    found = load_settings(None, {prefix + variable: text})
    assert value_of(found, path) == value
    assert any(origin == f"environment {prefix}{variable}" for _, _, origin in found.rows())


def test_the_prefixed_variable_wins_over_the_bare_one_and_both_over_the_file(write):
    path = write(SPECIFICATION)
    found = load_settings(path, {"RETRY_BASE_DELAY": "200ms"})
    assert (found.retry["base_delay"], found.retry["max_delay"]) == (0.2, 5.0)
    found = load_settings(path, {"RETRY_BASE_DELAY": "200ms", "RESILIENCE_RETRY_BASE_DELAY": "300ms"})
    assert found.retry["base_delay"] == 0.3
    assert load_settings(path, {}, {"retry.base_delay": 0.4}).retry["base_delay"] == 0.4
    assert load_settings(path, {"RETRY_BASE_DELAY": ""}).retry["base_delay"] == 0.1


def test_attempts_in_the_environment_replace_retries_in_the_file(write):
    found = load_settings(write(SPECIFICATION), {"RETRY_MAX_ATTEMPTS": "2"})
    assert found.retry["max_retries"] == 1
    shown = {path: (value, origin) for path, value, origin in found.rows()}
    assert shown["retry.max_attempts"] == ("2", "environment RETRY_MAX_ATTEMPTS")
    assert shown["retry.max_retries"][0] == "1"


def test_attempts_and_retries_in_the_environment_are_one_value_too():
    agreeing = {"RETRY_MAX_ATTEMPTS": "3", "RETRY_MAX_RETRIES": "2"}
    assert load_settings(None, agreeing).retry["max_retries"] == 2
    with pytest.raises(ConfigError, match=r"environment RETRY_MAX_ATTEMPTS.*3 attempts are 2 retries"):
        load_settings(None, {**agreeing, "RETRY_MAX_RETRIES": "7"})
    for variables in ({"RESILIENCE_RETRY_MAX_ATTEMPTS": "3", "RETRY_MAX_RETRIES": "7"},
                      {"RESILIENCE_RETRY_MAX_RETRIES": "2", "RETRY_MAX_ATTEMPTS": "8"}):  # fmt: skip
        assert load_settings(None, variables).retry["max_retries"] == 2


def test_a_prefixed_variable_gives_a_kind_of_ones_own_its_timeout():
    assert load_settings(None, {"RESILIENCE_QUOTES_TIMEOUT": "3s"}).timeouts == {"quotes": 3.0}
    assert load_settings(None, {"QUOTES_TIMEOUT": "3s", "RESILIENCE_STORE": "x"}).timeouts == {}


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("  timeouts: {api_call: 10s}\n  operations:\n    api_call: {total_timeout: 5s}\n", {}),
        ("  operations:\n    api_call:\n      total_timeout: 5s\n", {"API_CALL_TIMEOUT": "10s"}),
        ("  timeouts: {database_query: 10s}\n  operations:\n    database_operation: {total_timeout: 5s}\n", {}),
    ],
)
def test_a_total_shorter_than_the_attempt_that_somebody_chose_is_refused(write, text, variables):
    path = write("error_recovery:\n" + text)
    (error,) = check_sources(path, variables)
    assert error.key.endswith(".total_timeout")
    assert error.origin.startswith(f"{path}:4")
    assert "shorter than one attempt" in str(error)


def test_a_total_shorter_than_a_default_cuts_it_short(write):
    path = write("error_recovery:\n  operations:\n    api_call: {total_timeout: 5s}\n")
    assert check_sources(path, {}) == []


def test_each_value_knows_the_line_it_comes_from(write):
    path = write(SPECIFICATION)
    found = load_settings(path, {})
    assert found.origin("circuit_breaker.timeout") == f"{path}:6"
    assert found.origin("timeouts.api_call") == f"{path}:18"
    assert found.origin("timeouts.backfill") == "default"


def test_an_operation_overrides_any_block(write):
    path = write(
        "error_recovery:\n  operations:\n    quotes:\n"
        "      timeout: 3s\n      total_timeout: 9s\n      isolation: caller\n"
        "      retry: {max_attempts: 2, base_delay: 1s}\n      circuit_breaker: {failure_threshold: 2}\n"
        "      bulkhead: {max_concurrent: 4, max_queue: 2, max_wait: 500ms}\n      rate_limit: {rate: 10, per: 1s}\n"
    )
    with ErrorRecoveryManager.from_config(path, {}) as manager:
        parts = manager.operation("quotes").parts
        assert (parts.timeout, parts.total, parts.isolation) == (3.0, 9.0, "caller")
        assert (parts.policy.max_retries, parts.policy.base_delay, parts.policy.max_delay) == (1, 1.0, 5.0)
        assert (parts.breaker.config.failure_threshold, parts.breaker.config.timeout) == (2, 60.0)
        assert (parts.bulkhead.max_concurrent, parts.bulkhead.max_wait) == (4, 0.5)
        assert parts.limiter.rate == 10
        assert manager.operation("other").parts.breaker is None


def test_presets_keep_their_own_retries_and_names_without_use_the_block(write):
    with ErrorRecoveryManager.from_config(None, {"RETRY_BASE_DELAY": "1s"}) as manager:
        assert manager.operation("api_call").parts.policy.base_delay == 1.0
        assert manager.operation("anything").parts.policy.base_delay == 1.0
        assert manager.operation("redis_operation").parts.policy.base_delay == 0.025


def test_only_from_config_reads_the_environment(monkeypatch):
    monkeypatch.setenv("RETRY_BASE_DELAY", "3s")
    with ErrorRecoveryManager() as manager:
        assert manager.operation("api_call").parts.policy.base_delay == 0.1
    with ErrorRecoveryManager.from_config() as manager:
        assert manager.operation("api_call").parts.policy.base_delay == 3.0


def block(name, key, value):
    return f"error_recovery:\n  {name}:\n    {key}: {value}\n"


NOT_DURATIONS = ["1:30", "60x", "-5s", "soon", "1e3", ".inf", ".nan", "[1]", "{a: 1}", "5 s", "on"]
NOT_COUNTS = ["1.5", "-1", "five", "010", "0x10", "1e3", "true", "[5]", "1_000", "5s"]
DURATION_KEYS = [("circuit_breaker", "timeout"), ("circuit_breaker", "reset_timeout"), ("retry", "base_delay"),
                 ("retry", "max_delay"), ("timeouts", "api_call"), ("timeouts", "my_kind")]  # fmt: skip
COUNT_KEYS = [("circuit_breaker", "failure_threshold"), ("circuit_breaker", "success_threshold"),
              ("circuit_breaker", "max_requests"), ("retry", "max_retries"), ("retry", "max_attempts")]  # fmt: skip
MALFORMED = [
    *(block(*key, value) for key, value in itertools.product(DURATION_KEYS, NOT_DURATIONS)),
    *(block(*key, value) for key, value in itertools.product(COUNT_KEYS, NOT_COUNTS)),
    *(block("retry", "jitter", value) for value in ("on", "yes", "1", "ful", "[a]")),
    *(block("retry", "backoff_factor", value) for value in ("two", "0.5", "-1", ".inf", "1e3", "2x")),
    *(block("retry", "backoff", value) for value in ("exp", "fibonacci", "2")),
    *(block("circuit_breaker", key, "5") for key in ("failure_treshold", "tmeout", "Timeout", "failures")),
    *(block("retry", key, "5") for key in ("max_retrys", "attempts", "delay", "backoff-factor")),
    *(block("timeouts", key, "5s") for key in ("api_cal", "database_querry", "redis_operations")),
    *(block("circuit_breaker", key, "0") for key in ("failure_threshold", "success_threshold", "max_requests")),
    *(block("circuit_breaker", "failure_rate", value) for value in ("0", "1.5", "150%", "half")),
    block("retry", "base_delay", "10s"), block("retry", "max_attempts", "0"), block("timeouts", "api_call", "0s"),
    block("circuit_breaker", "failure_threshold", "null"), block("circuit_breaker", "window_size", "0"),
    "error_recovery:\n  retry: {max_retries: 3, max_attempts: 3}\n",
    "error_recovery:\n  circuit_breaker: {window_size: 10, window_seconds: 10s}\n",
    "error_recovery:\n  circuit_breaker: {window_size: 5, minimum_calls: 50, failure_threshold: null}\n",
    "error_recovery:\n  retry:\n    base_delay: 1s\n    base_delay: 2s\n",
    "error_recovery:\n  retries: {}\n", "error_recover: {}\n", "retry: {max_retries: 3}\n", "[]\n", "just text\n",
    "3\n",
    "error_recovery: 5\n", "error_recovery: [retry]\n", "error_recovery:\n\tretry: {}\n", "error_recovery: {\n",
    "error_recovery: 'x\n", "a: b: c\n", "--- {}\n--- {}\n", "error_recovery: &a {retry: *b}\n", "%YAML 9\n---\n",
    "error_recovery:\n  operations:\n    x: {timeout: 5s, total_timeout: 1s}\n",
    "error_recovery:\n  operations:\n    x: {timeout: 0s}\n",
    "error_recovery:\n  operations:\n    x: {timeout: null, isolation: process}\n",
    "error_recovery:\n  operations:\n    x: {total_timeout: 0s}\n",
    "error_recovery:\n  operations:\n    x: {isolation: async}\n",
    "error_recovery:\n  operations:\n    x: {retries: 3}\n",
    "error_recovery:\n  operations:\n    x: {bulkhead: {max_queue: 3}}\n",
    "error_recovery:\n  operations:\n    x: {bulkhead: {max_concurrent: 0}}\n",
    "error_recovery:\n  operations:\n    x: {rate_limit: {per: 1s}}\n",
    "error_recovery:\n  operations:\n    x: {rate_limit: {rate: 0}}\n",
    "error_recovery:\n  operations:\n    x: {retry_budget: {ratio: 0.2, ttl: 0s}}\n",
    "error_recovery:\n  operations:\n    x: {retry_budget: {ratio: 120%}}\n",
    "error_recovery:\n  operations:\n    a.b: {timeout: 1s}\n", "error_recovery:\n  operations: [x]\n",
    "error_recovery:\n  operations:\n    x: {retry: {base_delay: 9s}}\n",
    "error_recovery:\n  operations:\n    x: {circuit_breaker: {failure_threshold: 0}}\n",
    b"error_recovery: \xff\xfe\n", b"\x00\x01\x02",
]  # fmt: skip
BAD_VARIABLES = [
    *({name: value} for name, value in itertools.product(
        ("CIRCUIT_BREAKER_TIMEOUT", "RETRY_BASE_DELAY", "API_CALL_TIMEOUT", "RESILIENCE_MARKET_DATA_TIMEOUT"),
        ("60x", "-1", "1e3", "nan", "1:30", "5 s"))),
    *({name: value} for name, value in itertools.product(
        ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "RETRY_MAX_ATTEMPTS", "RESILIENCE_CIRCUIT_BREAKER_MAX_REQUESTS"),
        ("0", "-1", "1.5", "x", "010"))),
    {"RESILIENCE_RETRY_MAX_ATEMPTS": "3"}, {"RESILIENCE_CIRCUIT_BREAKER_TRESHOLD": "3"}, {"RETRY_JITTER": "yes"},
    {"RETRY_BASE_DELAY": "9s"}, {"RESILIENCE_API_CAL_TIMEOUT": "3s"}, {"RESILIENCE_MY_KIND_TIMEOUT": "soon"},
]  # fmt: skip


def test_there_are_two_hundred_of_them():
    assert len(MALFORMED) + len(BAD_VARIABLES) >= 200


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text)[:60])
def test_a_malformed_or_contradictory_file_is_refused_with_its_line(write, text):
    path = write(text)
    errors = check_sources(path, {})
    assert errors
    for error in errors:
        assert error.origin is not None
        assert error.origin.startswith(path)
        assert error.key is not None or "YAML" in str(error) or "UTF-8" in str(error) or "document" in str(error)
        assert len(str(error).removeprefix(error.origin)) > 12
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("variables", BAD_VARIABLES, ids=str)
def test_a_malformed_variable_is_refused_by_its_name(variables):
    (name,) = variables
    with pytest.raises(ConfigError) as caught:
        load_settings(None, variables)
    assert caught.value.origin == f"environment {name}"
    assert name in str(caught.value)


def test_all_errors_of_a_file_are_told_not_only_the_first(write):
    path = write("error_recovery:\n  retry:\n    base_delay: x\n    max_delay: y\n  timeouts:\n    api_call: z\n")
    assert [error.origin for error in check_sources(path, {})] == [f"{path}:{line}" for line in (3, 4, 6)]


def test_the_nearest_valid_name_is_offered(write):
    (error,) = check_sources(write(block("retry", "max_retrys", "3")), {})
    assert "max_retries" in str(error)
    (error,) = check_sources(None, {"RESILIENCE_RETRY_MAX_ATEMPTS": "3"})
    assert "RESILIENCE_RETRY_MAX_ATTEMPTS" in str(error)


def test_a_file_that_is_not_there_is_named():
    (error,) = check_sources("/nowhere/resilience.yaml", {})
    assert "/nowhere/resilience.yaml" in str(error)


def test_an_empty_file_means_the_defaults(write):
    for text in ("", "# nothing\n", "error_recovery:\n", "error_recovery: {}\n"):
        assert load_settings(write(text), {}).retry == default_settings().retry


def test_a_deep_or_large_file_is_refused_quickly(write):
    assert check_sources(write("error_recovery: " + "[" * 5000), {})
    assert check_sources(write(b"#" * (1 << 21)), {})
    bomb = "a: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(50))
    assert check_sources(write(bomb), {})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_bytes_are_settings_or_refused(write, content):
    for error in check_sources(write(content, "any.yaml"), {}):
        assert isinstance(error, ConfigError)


def test_four_times_the_operations_cost_about_four_times_as_much():
    def seconds(count):
        values = {}
        for number in range(count):
            values[f"operations.host-{number}.timeout"] = 5.0
            values[f"operations.host-{number}.retry.max_attempts"] = 3
            values[f"operations.host-{number}.circuit_breaker.failure_threshold"] = 4
        began = time.process_time()
        made = Settings(values)
        for name in made.operation_names:
            made.retry_policy(name)
        return time.process_time() - began

    assert min(seconds(800) for _ in range(3)) < 9 * min(seconds(200) for _ in range(3))


def test_an_operation_whose_timeout_is_null_has_none(write):
    settings = load_settings(write("error_recovery: {operations: {api_call: {timeout: null, total_timeout: 5s}}}"), {})
    assert explain_operation(settings, "api_call")["attempt_timeout"] is None
    with ErrorRecoveryManager(settings=settings) as manager:
        assert manager.operation("api_call").parts.timeout is None
        manager.register_timeout("api_call", 2.0)
        assert manager.operation("api_call").parts.timeout == 2.0


@pytest.mark.parametrize("backoff", ["exponential", "constant", "linear", "decorrelated"])
def test_the_worst_case_of_a_billion_retries_is_told_at_once(backoff):
    variables = {"RETRY_MAX_RETRIES": "1000000000", "RETRY_BACKOFF": backoff, "RETRY_MAX_DELAY": "4s"}
    few = explain_operation(load_settings(None, {**variables, "RETRY_MAX_RETRIES": "1000"}), "job")
    many = explain_operation(load_settings(None, variables), "job")
    last = 0.1 if backoff == "constant" else 4.0
    assert many["longest_sleeps"] == pytest.approx(few["longest_sleeps"] + (1_000_000_000 - 1000) * last)


def test_a_kind_may_have_any_name(write):
    with ErrorRecoveryManager.from_config(write("error_recovery: {timeouts: {self: 4s, clock: 5s}}"), {}) as manager:
        assert [manager.operation(name).parts.timeout for name in ("self", "clock")] == [4.0, 5.0]


def test_a_kind_whose_name_has_dots_has_the_timeout_it_is_given(write):
    settings = load_settings(write("error_recovery: {timeouts: {api.example.com: 4s}}"), {})
    assert ("timeouts.api.example.com", "4s") in {row[:2] for row in settings.rows()}
    with ErrorRecoveryManager(settings=settings) as manager:
        assert manager.operation("api.example.com").parts.timeout == 4.0
    (error,) = check_sources(write("error_recovery: {timeouts: {api.example.com: 0s}}"), {})
    assert error.key == "timeouts.api.example.com"


@pytest.mark.parametrize("place", ["retry", "operations.job.retry"])
def test_attempts_without_a_limit_and_so_many_retries_are_refused(write, place):
    text = "error_recovery: {" + "".join(f"{key}: {{" for key in place.split("."))
    path = write(text + "max_attempts: null, max_retries: 3" + "}" * text.count("{"))
    (error,) = check_sources(path, {})
    assert error.key == f"{place}.max_attempts"
    assert "no limit" in str(error)
