"""Group `timed`: a call with a deadline, on a worker thread and in the caller's own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .drivers import drivers
from .measure import Row, floor_wrapper, interleaved, no_op
from .processes import processes


def timed_group(smoke: bool) -> Iterator[Row]:
    """Each row of the group in turn; the process worker at the end."""
    yield from _worker_thread(smoke)
    yield from _callers_thread(smoke)
    yield from _aware_requests(smoke)
    yield from drivers(smoke)
    yield from processes(smoke)


def _worker_thread(smoke: bool) -> Iterator[Row]:
    from resilience import Timeout

    ours = Timeout(30.0, isolation="thread")(no_op)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        contenders: dict[str, Callable[[], Any]] = {"ours": ours, "pool": lambda: pool.submit(no_op).result(30.0)}
        contenders.update(_timed_peers(stack))
        took = interleaved(contenders, rounds=2 if smoke else 400)
    panel, label = "One timed call on a worker thread (microseconds)", "Timeout(isolation='thread')"
    pool_label = "ThreadPoolExecutor.submit().result(timeout)"
    yield Row("timed", "worker thread / ThreadPoolExecutor.submit().result()", took["ours"] / took["pool"], goal=1.0)
    yield Row("timed", label, took["ours"] * 1e6, "us", panel=panel, label=label)
    yield Row("timed", pool_label, took["pool"] * 1e6, "us", panel=panel, label=pool_label, who="floor")
    for name in sorted(set(took) - {"ours", "pool"}, key=lambda name: took[name]):
        yield Row("timed", f"peer: {name}", took[name] * 1e6, "us", panel=panel, label=name, who="peer")


def _timed_peers(stack: contextlib.ExitStack) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    with contextlib.suppress(ImportError):
        from pyresilience import TimeoutConfig, resilient

        found["pyresilience timeout"] = resilient(timeout=TimeoutConfig(seconds=30.0))(no_op)
    with contextlib.suppress(ImportError):
        from pebble import ThreadPool

        threads = stack.enter_context(ThreadPool(max_workers=1))
        found["pebble ThreadPool"] = lambda: threads.schedule(no_op).result(30.0)
    return found


def _callers_thread(smoke: bool) -> Iterator[Row]:
    from resilience import Timeout, deadline
    from resilience.workers.watchdog import WATCHDOG

    in_an_hour = time.monotonic() + 3600.0

    def in_block() -> None:
        with deadline(30.0):
            no_op()

    def armed() -> None:
        WATCHDOG.arm(in_an_hour, no_op).cancel()

    contenders = {
        "floor": floor_wrapper(no_op),
        "ours": Timeout(30.0, isolation="caller")(no_op),
        "with deadline(30)": in_block,
        "watchdog armed and disarmed": armed,
    }
    took = interleaved(contenders, rounds=3 if smoke else 150)
    what = "caller's-thread deadline, whole call / floor"
    yield Row("timed", what, took["ours"] / took["floor"], goal=2.0)
    for name in ("with deadline(30)", "watchdog armed and disarmed"):
        yield Row("timed", f"  {name}", took[name] / took["floor"])


def _aware_requests(smoke: bool) -> Iterator[Row]:
    """A request to a local server with a total deadline over it, beside the same session without."""
    import requests

    from resilience.integrations.requests import DeadlineAdapter
    from resilience.testing import FaultServer

    with FaultServer() as server, requests.Session() as bare, requests.Session() as session:
        session.mount("http://", DeadlineAdapter(10.0))
        url = f"{server.url}/ok"
        contenders = {"ours": lambda: session.get(url), "bare": lambda: bare.get(url, timeout=10.0)}
        took = interleaved(contenders, rounds=2 if smoke else 300)
    over = (took["ours"] - took["bare"]) * 1e6
    allowed = max(10.0, 0.05 * took["bare"] * 1e6)
    yield Row("timed", "requests under a total deadline: over a bare session", over, "us", goal=allowed)
    yield Row("timed", "  bare session, one GET", took["bare"] * 1e6, "us")
