"""The table of the specification is true: what it names is there, and no row of the specification is missing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
ROWS = [
    pytest.param(*found, id=f"{number}")
    for number, found in enumerate(
        re.findall(r"^\| (.+?) \| `([\w/.]+)`(?: `(\w+)`)? \| `([\w/.]+)::(\w+)` \|$", TABLE, re.M)
    )
]


@pytest.mark.parametrize(("row", "path", "name", "test_path", "test"), ROWS)
def test_what_a_row_names_is_there(row, path, name, test_path, test):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert not name or re.search(rf"\b{name}\b", source), row
    tests = (ROOT / test_path).read_text(encoding="utf-8")
    assert re.search(rf"^def {test}\(", tests, re.M), row


def test_each_line_of_the_tables_is_a_row_of_the_right_form():
    lines = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| specification")]
    assert len(lines) == len(ROWS) > 100


@pytest.mark.parametrize(
    "words",
    [
        "FailureThreshold", "SuccessThreshold", "MaxRequests", "ResetTimeout", "api_call", "database_operation",
        "redis_operation", "50 % failures", "Goroutine", "Connection", "File", "Memory", "APICall", "DatabaseQuery",
        "RedisOperation", "ConcurrentOp", "HealthCheck", "Backfill", "SymbolFetch", "MarketData", "IsHealthy",
        "transient errors", "permanent errors", "resource errors", "logic errors", "RETRY_MAX_ATTEMPTS",
        "backoff_factor", "stuck open", "high retry rates", "resource leaks", "4 timeouts", "> 5 minutes", "> 50 %",
        "> 10 %", "> 80 %", "> 5 %", "evictions", "throughput", "trends",
    ],
)  # fmt: skip
def test_no_row_of_the_specification_is_missing(words):
    assert any(words in row.values[0] for row in ROWS), words
