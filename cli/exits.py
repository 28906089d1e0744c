"""The exit codes (README, "Exit codes"): one table for all verbs."""

from __future__ import annotations

from collections.abc import Iterable

OK = 0
NO = 1  # done, but the answer is no
USAGE = 2
UNREACHABLE = 69
OUTPUT = 74
TRANSIENT = 75  # run again later
CONFIG = 78
TIMED_OUT = 124
NOT_EXECUTABLE = 126
NOT_FOUND = 127
INTERRUPTED = 130
TERMINATED = 143

_PRECEDENCE = (INTERRUPTED, TERMINATED, TIMED_OUT, OUTPUT, NO, TRANSIENT, OK)


def worst(codes: Iterable[int]) -> int:
    """The code of a run with several outcomes: 130/143 > 124 > 74 > 1 > 75 > 0, decided over all of them."""
    seen = set(codes)
    for code in _PRECEDENCE:
        if code in seen:
            return code
    return max(seen, default=OK)
