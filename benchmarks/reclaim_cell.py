"""One cell of the matrix, a script of its own: `python -m benchmarks.reclaim_cell KIND TOOL`.

Says on stdout when the caller had control again, then waits for a line on stdin and ends its main thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from . import reclaim_kinds as kinds

LIMIT = 1.0
GRACE = 0.3  # the kill comes so much later where aware clients are given the first turn
Run = Callable[[Callable[[str], None], str], Any]


def ours(isolation: str) -> Run:
    from resilience import Timeout

    timeout = Timeout(LIMIT, isolation=isolation, name="cell")
    return lambda fn, kind: fn(kind) if fn is kinds.nothing else timeout.call(fn, kind)


def ours_process() -> Run:
    from resilience import Timeout
    from resilience.workers.processes import ProcessWorkers

    workers = ProcessWorkers("cell", max_workers=1)
    timeout = Timeout(LIMIT, isolation="process", name="cell", workers=workers)
    return lambda fn, kind: timeout.call(fn, kind) if fn is not kinds.nothing else workers.call(fn, (kind,))


def ours_aware() -> Run:
    from resilience.workers.processes import ProcessWorkers

    workers = ProcessWorkers("cell", max_workers=1)

    def run(fn: Callable[[str], None], kind: str) -> None:
        if fn is kinds.nothing:
            workers.call(fn, (kind,))
        else:
            workers.call(within, (kind,), timeout=LIMIT + GRACE)

    return run


def within(kind: str) -> None:
    """In the worker: the aware clients obey this deadline, the kill comes a little later."""
    from resilience import deadline

    with deadline(LIMIT):
        kinds.aware(kind)


def thread_pool() -> Run:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    return lambda fn, kind: pool.submit(fn, kind).result(LIMIT if fn is not kinds.nothing else None)


def process_pool() -> Run:
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(1)
    return lambda fn, kind: pool.submit(fn, kind).result(LIMIT if fn is not kinds.nothing else None)


def pyresilience() -> Run:
    from pyresilience import TimeoutConfig, resilient

    decorate = resilient(timeout=TimeoutConfig(seconds=LIMIT))
    return lambda fn, kind: fn(kind) if fn is kinds.nothing else decorate(fn)(kind)


def pebble_thread() -> Run:
    from pebble import ThreadPool

    pool = ThreadPool(max_workers=1)
    return lambda fn, kind: pool.schedule(fn, args=[kind]).result(LIMIT if fn is not kinds.nothing else None)


def pebble_process() -> Run:
    from pebble import ProcessPool

    pool = ProcessPool(max_workers=1)
    return lambda fn, kind: pool.schedule(fn, args=[kind], timeout=LIMIT if fn is not kinds.nothing else None).result()


TOOLS: dict[str, Callable[[], Run]] = {
    "caller": lambda: ours("caller"), "thread": lambda: ours("thread"), "process": ours_process,
    "process+aware": ours_aware, "ThreadPoolExecutor": thread_pool, "ProcessPoolExecutor": process_pool,
    "pyresilience": pyresilience, "pebble threads": pebble_thread, "pebble processes": pebble_process,
}  # fmt: skip
TAKES_AWARE = ("caller", "process+aware")


def main() -> None:
    """The cell."""
    kind, tool = sys.argv[1:3]
    run = TOOLS[tool]()
    run(kinds.nothing, kind)
    print(json.dumps({"ready": True}), flush=True)
    begun = time.monotonic()
    try:
        run(kinds.aware if tool in TAKES_AWARE else kinds.blind, kind)
        outcome = "returned"
    except BaseException as error:
        outcome = type(error).__name__
    print(json.dumps({"back": time.monotonic() - begun, "outcome": outcome}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
