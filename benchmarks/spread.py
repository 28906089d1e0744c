"""How long an opening takes to reach the other processes: from the call that opens the breaker until the last refuses.

`python -m benchmarks.spread LIBRARY URL TIMES` is one of those that wait to hear of it.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from .measure import Row, late, no_op

PROCESSES = 8
LOOK_EVERY = 0.0002  # seconds between two looks of those who wait
PATIENCE = 30.0  # seconds

# opens the breaker of this name; whether calls are refused
Sides: TypeAlias = tuple[Callable[[], object], Callable[[], bool]]


def spread(library: str, label: str, url: str, openings: int) -> Iterator[Row]:
    """Rows for one library on one store; the first has the samples of all processes."""
    command = [sys.executable, "-m", "benchmarks.spread", library, url, str(openings)]
    where = Path(__file__).resolve().parent.parent
    crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=where) for _ in range(PROCESSES)]
    delays: list[float] = []
    try:
        with LIBRARIES[library](url) as sides:
            for number in range(openings):
                for process in crowd:
                    _line(process)
                trip, _ = sides(f"spread-{library}-{number}")
                begun = time.monotonic()
                with contextlib.suppress(Exception):
                    trip()
                delays.extend((float(_line(process)) - begun) * 1e3 for process in crowd)
    finally:
        for process in crowd:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    what, half = f"opening told to {PROCESSES} processes, {label}", statistics.median(delays)
    who, name, goal = ("ours", f"ours, {label}", 5.0) if library == "ours" else ("peer", label, None)
    what = what if who == "ours" else f"peer: {what}"
    samples = tuple(sorted(delays))
    yield Row("shared", f"{what}: p50", half, "ms", goal=goal, label=name, who=who, samples=samples)
    yield Row("shared", f"{what}: p99", late(samples), "ms", who=who)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that was to hear of openings has ended: {process.args}")
    return line


def _fail() -> None:
    raise ConnectionError("refused")


@contextlib.contextmanager
def _ours(url: str) -> Iterator[Callable[[str], Sides]]:
    from resilience import CircuitBreaker, CircuitBreakerConfig, open_store

    with open_store(url) as store:

        def sides(name: str) -> Sides:
            breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=1), store=store)
            breaker.call(no_op)
            while store.link.clerk.epoch is None:
                time.sleep(0.001)
            store.link.flush(5.0)
            return lambda: breaker.call(_fail), lambda: not breaker.token

        yield sides


@contextlib.contextmanager
def _pybreaker(url: str) -> Iterator[Callable[[str], Sides]]:
    import pybreaker
    import redis

    with redis.Redis.from_url(url) as client:

        def sides(name: str) -> Sides:
            storage = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client, namespace=name)
            breaker = pybreaker.CircuitBreaker(fail_max=1, state_storage=storage)
            # only looked at: a success of somebody else sets the count of failures back, also in the middle of one
            return lambda: breaker.call(_fail), lambda: breaker.current_state == pybreaker.STATE_OPEN

        yield sides


@contextlib.contextmanager
def _interlock(url: str) -> Iterator[Callable[[str], Sides]]:
    import interlock
    import redis
    from interlock.integrations.redis import RedisStorage

    with redis.Redis.from_url(url) as client:
        config = interlock.Config(minimum_number_of_calls=1, window_size=1, failure_rate_threshold=1.0)

        def sides(name: str) -> Sides:
            breaker = interlock.CircuitBreaker(name=name, config=config, storage=RedisStorage(client))
            breaker.call(no_op)
            return lambda: breaker.call(_fail), lambda: breaker.state is interlock.State.OPEN

        yield sides


LIBRARIES = {"ours": _ours, "pybreaker": _pybreaker, "interlock": _interlock}


def main(library: str, url: str, times: int) -> None:
    """Tells when it is ready for the next opening, and at which moment of the monotonic clock that has come here."""
    with LIBRARIES[library](url) as sides:
        for number in range(times):
            _, refuses = sides(f"spread-{library}-{number}")
            print("ready", flush=True)
            give_up = time.monotonic() + PATIENCE
            while not refuses():
                if time.monotonic() > give_up:
                    sys.exit(f"{library}: the breaker has not opened here")
                time.sleep(LOOK_EVERY)
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
