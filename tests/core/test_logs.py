"""What the toolkit logs is seen by those who have asked for it."""

import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError
if sys.argv[1] == "configured":
    logging.basicConfig(format="%(name)s %(message)s")
breaker = CircuitBreaker("payments", CircuitBreakerConfig(failure_threshold=1))
breaker.acquire().failure(ConnectionError("down"))
assert str(breaker.state) == "open"
"""


@pytest.mark.parametrize("how", ["configured", "not configured"])
def test_loggers_are_silent_until_configured(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    said = "resilience.breaker breaker 'payments' is open: 1 failure (last error: ConnectionError: down)\n"
    assert done.stderr == (said if how == "configured" else "")
