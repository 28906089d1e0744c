"""Measuring: interleaved rounds, the minimum over the rounds, ratios within one run.

Machines are noisy and differ; a ratio between things timed turn by turn in the same minute is what can be compared. A
round is kept shorter than a slice of the scheduler, so that among many of them some run undisturbed.
"""

from __future__ import annotations

import functools
import gc
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ROUND_SECONDS = 0.0015
FLOOR = "usual cheapest decorator (the floor)"


@dataclass
class Row:
    """One line of the table: a figure of ours or of a peer, and the goal it is held against.

    Rows with the same `panel` have a unit in common and are drawn beside each other; `label` is the name there.
    """

    group: str
    what: str
    value: float
    unit: str = "x"
    goal: float | None = None
    at_least: bool = False  # the goal is a lower bound
    stretch: bool = False  # a goal to be proud of: missing it fails nothing
    panel: str = ""
    label: str = ""
    who: str = "ours"  # "ours", "peer" or "floor"
    samples: tuple[float, ...] = ()  # sorted, where how they are spread is drawn

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def interleaved(contenders: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """Seconds per call of each contender: all take turns, the fastest of the rounds counts."""
    timers = {}
    for name, fn in contenders.items():
        timer = timeit.Timer("f()", globals={"f": fn})
        timer.timeit(20)
        number = max(1, int(ROUND_SECONDS / (timer.timeit(30) / 30)))
        timers[name] = timer, number
    best = dict.fromkeys(contenders, float("inf"))
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name, (timer, number) in timers.items():
                best[name] = min(best[name], timer.timeit(number) / number)
            if turn % 25 == 24:
                gc.collect()  # what the calls have left in cycles
    finally:
        gc.enable()
    return best


def late(samples: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(samples, n=100, method="inclusive")[98]


def wall(fn: Callable[[], Any]) -> float:
    """Seconds one run of `fn` takes."""
    begun = time.perf_counter()
    fn()
    return time.perf_counter() - begun


def in_turn(contenders: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """The fastest run of each, taken in turn, in seconds: for whole jobs."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, fn in contenders.items():
            best[name] = min(best[name], wall(fn))
    return best


def of_process(code: str) -> float:
    """The number that a fresh interpreter prints for this code; raises `LookupError` where an import is missing."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "ModuleNotFoundError" in ended.stderr:
        raise LookupError(ended.stderr.strip().rpartition("\n")[2])
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return float(ended.stdout.split()[-1])


def floor_wrapper(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The usual cheapest decorator: what every wrapper with arguments and a try pays."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception:
            raise

    return wrapper


def no_op() -> int:
    """The function under measurement."""
    return 1
