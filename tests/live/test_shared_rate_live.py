"""A rate limit over eight processes, on every store: never more than the limit, and nearly all of it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
CODE = """
import sys, time
from resilience import RateLimiter, RateLimitExceeded, open_store
limiter = RateLimiter("api", 10, store=open_store(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
calls, end = 0, time.monotonic() + 5
while time.monotonic() < end:
    try:
        limiter.acquire()
        calls += 1
    except RateLimitExceeded:
        time.sleep(0.01)
print(calls)
"""


@pytest.mark.parametrize("kind", ["file", "redis", "postgres"])
def test_ten_a_second_over_eight_processes(kind, request, tmp_path):
    fixture = {"redis": "valkey_url", "postgres": "postgres_dsn"}.get(kind)
    url = request.getfixturevalue(fixture) if fixture else f"file://{tmp_path}/state"
    crowd = [
        subprocess.Popen([sys.executable, "-c", CODE, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in crowd:
        assert process.stdout.readline() == "ready\n"
    for process in crowd:
        process.stdin.write("\n")
        process.stdin.flush()
    calls = [int(process.communicate(timeout=60)[0]) for process in crowd]
    assert 45 <= sum(calls) <= 60
