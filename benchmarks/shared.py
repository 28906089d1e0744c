"""Group `shared`: breakers whose state several processes share, beside pybreaker and interlock on Redis.

The servers are those of `resilience.testing` (extra `test`); without them only the file store is measured.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from .measure import Row, floor_wrapper, interleaved, no_op
from .spread import spread

PANEL = "One healthy call of a shared breaker (microseconds)"


def shared_group(smoke: bool) -> Iterator[Row]:
    """The file store, then Redis and PostgreSQL where there is a server."""
    from resilience.testing import Postgres, Valkey

    openings = 2 if smoke else 40
    with tempfile.TemporaryDirectory(prefix="resilience-bench-") as folder:
        yield from _store("file", f"file://{folder}/state", smoke, {})
        yield from spread("ours", "file", f"file://{folder}/state", openings)
    with contextlib.suppress(ModuleNotFoundError), Valkey() as valkey, contextlib.ExitStack() as stack:
        peers = _peers(valkey.url, stack)
        yield from _store("Redis", valkey.url, smoke, peers, _round_trip(valkey.url, stack))
        yield from spread("ours", "Redis", valkey.url, openings)
        for name in peers:
            yield from spread(name.partition(",")[0], name, valkey.url, 2 if smoke else 10)
    with contextlib.suppress(ModuleNotFoundError), Postgres() as postgres:
        yield from _store("PostgreSQL", postgres.dsn, smoke, {}, None)
        yield from spread("ours", "PostgreSQL", postgres.dsn, openings)


def _store(
    kind: str, url: str, smoke: bool, peers: dict[str, Any], round_trip: Callable[[], Any] | None = None
) -> Iterator[Row]:
    from resilience import CircuitBreaker, CircuitBreakerConfig, open_store

    with open_store(url) as store:
        breaker = CircuitBreaker("bench", CircuitBreakerConfig(failure_threshold=10**9), store=store)
        breaker.call(no_op)
        store.link.flush(5.0)
        healthy = {"floor": floor_wrapper(no_op), "ours": breaker(no_op)}
        healthy.update({name: call for name, (call, _) in peers.items()})
        took = interleaved(healthy, rounds=2 if smoke else 200)
        yield Row("shared", f"healthy call, {kind} / floor", took["ours"] / took["floor"], goal=1.5)
        yield Row("shared", f"healthy call, {kind}", took["ours"] * 1e6, "us", panel=PANEL, label=f"ours, {kind}")
        for name in peers:
            yield Row(
                "shared", f"peer: healthy call, {name}", took[name] * 1e6, "us", panel=PANEL, label=name, who="peer"
            )
        failing = {"ours": _failing(breaker.call)}
        failing.update({name: fail for name, (_, fail) in peers.items() if fail is not None})
        if round_trip is not None:
            failing["round trip"] = round_trip
        took = interleaved(failing, rounds=2 if smoke else 100)
        if round_trip is not None:
            yield Row("shared", f"failure recorded, {kind} / round trip", took["ours"] / took["round trip"], goal=2.0)
        goal = 10.0 if kind == "file" else None
        yield Row("shared", f"failure recorded, {kind}", took["ours"] * 1e6, "us", goal=goal)
        for name in peers.keys() & took.keys():
            yield Row("shared", f"peer: failure recorded, {name}", took[name] * 1e6, "us", who="peer")


def _fail() -> None:
    raise ConnectionError("refused")


def _failing(call: Callable[..., Any]) -> Callable[[], None]:
    def fail() -> None:
        with contextlib.suppress(ConnectionError):
            call(_fail)

    return fail


def _round_trip(url: str, stack: contextlib.ExitStack) -> Callable[[], Any]:
    import redis

    client = stack.enter_context(contextlib.closing(redis.Redis.from_url(url)))
    return lambda: client.get("nothing")


def _peers(url: str, stack: contextlib.ExitStack) -> dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]]:
    """A healthy and a failing call of each peer."""
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {}
    with contextlib.suppress(ImportError):
        import pybreaker
        import redis

        client = stack.enter_context(contextlib.closing(redis.Redis.from_url(url)))
        storage = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client)
        breaker = pybreaker.CircuitBreaker(fail_max=10**9, state_storage=storage)
        found["pybreaker, Redis"] = (lambda: breaker.call(no_op), _failing(breaker.call))
    with contextlib.suppress(ImportError):
        import interlock
        import redis
        from interlock.integrations.redis import RedisStorage

        client = stack.enter_context(contextlib.closing(redis.Redis.from_url(url)))
        # its window is always judged: only the breaker that never fails can be compared
        theirs = interlock.CircuitBreaker(name="bench", storage=RedisStorage(client))
        found["interlock, Redis"] = (lambda: theirs.call(no_op), None)
    return found
