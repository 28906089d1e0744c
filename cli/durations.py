"""Durations as options of the command line."""

from __future__ import annotations

from typing import Any

import click

LONGEST = 1e9  # seconds: 30 years, for no clock and no socket takes a much longer wait


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in stubs only
    """A duration such as 100ms, 5s or 1m30s; a bare number is seconds."""

    name = "duration"

    def __init__(self, *, positive: bool = True) -> None:
        self._positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; a malformed one is a usage error."""
        from resilience.config.durations import parse_duration

        if isinstance(value, (int, float)):
            return float(value)
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self._positive and seconds <= 0:
            self.fail(f"{value!r} is not above 0, as 5s is", param, ctx)
        return min(seconds, LONGEST)
