"""A breaker that could not work is refused when it is configured, by the name of the parameter."""

import dataclasses

import pytest

from resilience.core.errors import ConfigError
from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, CountWindow, TimeWindow

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = (NAN, INF, -INF, -1, True, "5", b"5", [5], object())
COUNTS = ("failure_threshold", "success_threshold", "max_requests", "minimum_calls")
SECONDS = ("timeout", "reset_timeout", "slow_call_duration", "probe_lease")
SHARES = ("failure_rate", "slow_call_rate")
BAD = [
    *((key, value) for key in COUNTS for value in (*NO_NUMBERS, 0, 1.5, 2.0)),
    *((key, value) for key in SECONDS for value in NO_NUMBERS),
    *((key, value) for key in SECONDS[1:] for value in (0, 0.0)),
    *((key, value) for key in SHARES for value in (*NO_NUMBERS, 0, 0.0, 1.01, 50)),
    *((key, None) for key in ("success_threshold", "max_requests", "minimum_calls", "timeout", "slow_call_rate")),
    *(("window", value) for value in (5, 10.0, "60s", True, CountWindow)),
    *(("is_failure", value) for value in (True, "no", 5)),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_value_that_cannot_be_used_is_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        CircuitBreakerConfig(**{key: value})
    assert caught.value.key == key
    assert caught.value.value is value or caught.value.value == value
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0])
def test_a_window_of_no_size_is_refused(value):
    for kind, key in ((CountWindow, "size"), (TimeWindow, "seconds")):
        with pytest.raises(ConfigError) as caught:
            kind(value)
        assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("failure_threshold", {"failure_threshold": None}),
        ("failure_threshold", {"failure_threshold": None, "slow_call_duration": 1.0}),
        ("failure_rate", {"window": CountWindow(10), "failure_rate": None}),
        ("minimum_calls", {"window": CountWindow(10), "minimum_calls": 11}),
    ],
)
def test_a_breaker_that_could_never_open_is_refused(key, settings):
    with pytest.raises(ConfigError, match="never open") as caught:
        CircuitBreakerConfig(**settings)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": 1e9},
        {"timeout": 1},
        {"failure_threshold": None, "window": TimeWindow(0.1)},
        {"window": CountWindow(10), "failure_rate": None, "slow_call_duration": 0.5},
        {"window": CountWindow(10), "minimum_calls": 10, "failure_rate": 1},
        {"reset_timeout": None, "probe_lease": 1e-3},
    ],
)
def test_unusual_values_that_work_are_taken(settings):
    CircuitBreakerConfig(**settings)


def test_the_defaults_are_those_of_the_specification():
    config = CircuitBreakerConfig()
    assert dataclasses.asdict(config) == {
        "failure_threshold": 5, "success_threshold": 3, "timeout": 60.0, "max_requests": 10, "reset_timeout": 300.0,
        "window": None, "failure_rate": 0.5, "minimum_calls": 10, "slow_call_duration": None, "slow_call_rate": 1.0,
        "probe_lease": None, "is_failure": None, "lease": 60.0, "is_timed": False, "is_silent": True,
    }  # fmt: skip


def test_configurations_compare_by_value_cannot_be_changed_and_can_be_varied():
    config = CircuitBreakerConfig(window=CountWindow(50))
    assert config == CircuitBreakerConfig(window=CountWindow(50)) != CircuitBreakerConfig(window=CountWindow(51))
    assert dataclasses.replace(config, timeout=5.0).lease == 5.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.timeout = 1.0
    assert "is_silent" not in repr(config)


def test_a_breaker_takes_a_configuration_and_nothing_else():
    with pytest.raises(ConfigError) as caught:
        CircuitBreaker("x", {"timeout": 5})
    assert caught.value.key == "config"
