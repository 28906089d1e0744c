"""Durations as people write them: "100ms", "5s", "1m30s"; a bare number is seconds."""

from __future__ import annotations

import re

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
EXAMPLES = "write it like 100ms, 5s, 1m30s, or as a number of seconds"
_NUMBER = r"\d+(?:\.\d+)?"
_BARE = re.compile(_NUMBER, re.ASCII)
_PARTS = re.compile(rf"(?:{_NUMBER}(?:ns|us|ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(rf"({_NUMBER})(ns|us|ms|s|m|h|d)", re.ASCII)
LONGEST = 1e12  # seconds


def parse_duration(text: str) -> float:
    """Seconds of a duration; raises `ValueError` with examples for anything else (signs and spaces included)."""
    if len(text) > 64:
        raise ValueError(f"{text[:20]!r}... is no duration: {EXAMPLES}")
    if _BARE.fullmatch(text):
        seconds = float(text)
    elif _PARTS.fullmatch(text):
        seconds = sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))
    else:
        raise ValueError(f"{text!r} is no duration: {EXAMPLES}")
    if seconds > LONGEST:
        raise ValueError(f"{text!r} is longer than 30,000 years: {EXAMPLES}")
    return seconds


def format_duration(seconds: float | None) -> str:
    """A duration as people write it; "none" for None."""
    if seconds is None:
        return "none"
    if seconds == 0:
        return "0s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:g}us"
    if seconds < 1:
        return f"{seconds * 1e3:g}ms"
    if seconds < 60 or seconds != int(seconds):
        return f"{seconds:g}s"
    parts = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
