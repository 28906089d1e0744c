"""A worker process beside pebble's: one call on a warm one, and the way back after a kill at the deadline."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .measure import Row, interleaved, no_op

LIMIT = 0.1  # seconds that the hung call is given


def spin_in_c() -> None:
    """What no exception and no SIGTERM handler of Python ends."""
    sum(itertools.repeat(1))


def processes(smoke: bool) -> Iterator[Row]:
    """Warm calls over a call on ThreadPoolExecutor, and from the deadline of a hung call to the next answer."""
    from resilience.workers.processes import ProcessWorkers

    workers = ProcessWorkers("bench", max_workers=1)
    workers.warm()
    with contextlib.ExitStack() as stack:
        stack.callback(workers.shutdown)
        threads = stack.enter_context(ThreadPoolExecutor(1))
        contenders: dict[str, Callable[[], Any]] = {
            "pool": lambda: threads.submit(no_op).result(30.0),
            "ours": lambda: workers.call(no_op, timeout=30.0),
        }
        hung: dict[str, Callable[[], Any]] = {"ours": lambda: workers.call(spin_in_c, timeout=LIMIT)}
        after: dict[str, Callable[[], Any]] = {"ours": lambda: workers.call(no_op, timeout=30.0)}
        with contextlib.suppress(ImportError):
            from pebble import ProcessPool

            pool = stack.enter_context(ProcessPool(max_workers=1))
            stack.callback(pool.stop)
            contenders["pebble ProcessPool"] = lambda: pool.schedule(no_op, timeout=30.0).result()
            hung["pebble ProcessPool"] = lambda: pool.schedule(spin_in_c, timeout=LIMIT).result()
            after["pebble ProcessPool"] = lambda: pool.schedule(no_op, timeout=30.0).result()
        took = interleaved(contenders, rounds=2 if smoke else 200)
        back = _way_back(hung, after, rounds=1 if smoke else 10)
    panel = "From the deadline of a hung C loop to the answer of the next call (milliseconds)"
    over = (took["ours"] - took["pool"]) * 1e6
    yield Row("timed", "process worker, warm: over ThreadPoolExecutor", over, "us", goal=50.0)
    if "pebble ProcessPool" in took:
        yield Row("timed", "  peer: pebble ProcessPool", (took["pebble ProcessPool"] - took["pool"]) * 1e6, "us")
    label = "ProcessWorkers"
    yield Row("timed", "process worker: hung C loop killed, next call answered", back["ours"] * 1e3, "ms", goal=50.0,
              panel=panel, label=label)  # fmt: skip
    for name in back:
        if name != "ours":
            yield Row("timed", f"  peer: {name}", back[name] * 1e3, "ms", panel=panel, label=name, who="peer")


def _way_back(
    hung: dict[str, Callable[[], Any]], after: dict[str, Callable[[], Any]], *, rounds: int
) -> dict[str, float]:
    """Seconds from the deadline of a hung call to the next answer: the fastest of the rounds counts."""
    best = dict.fromkeys(hung, float("inf"))
    for _ in range(rounds):
        for name, fn in hung.items():
            begun = time.perf_counter()
            with contextlib.suppress(Exception):
                fn()
            after[name]()
            best[name] = min(best[name], time.perf_counter() - begun - LIMIT)
    return best
