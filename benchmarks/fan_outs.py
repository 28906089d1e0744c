"""Group `fan-out`: many small tasks, many streamed ones, and tasks that wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

from .measure import Row, in_turn, of_process

WORKERS = 8


def _identity(item: int) -> int:
    return item


def _map_with_pool(fn: Callable[[int], Any], count: int) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(fn, range(count)):
            pass


def _imap(fn: Callable[[int], Any], count: int) -> None:
    with ThreadPool(WORKERS) as pool:
        for _ in pool.imap(fn, range(count)):
            pass


def fan_out_group(smoke: bool) -> Iterator[Row]:
    """Times beside ThreadPoolExecutor.map, and the memory of a stream."""
    yield from _no_ops(500 if smoke else 10_000, 1 if smoke else 9)
    yield from _streamed(5_000 if smoke else 1_000_000)
    yield from _sleeping(40 if smoke else 200, 1 if smoke else 15)


def _no_ops(count: int, rounds: int) -> Iterator[Row]:
    from resilience import fan_out

    pool = "ThreadPoolExecutor.map"
    contenders: dict[str, Callable[[], Any]] = {
        "ours": lambda: fan_out(_identity, range(count), max_workers=WORKERS),
        pool: lambda: _map_with_pool(_identity, count),
        "multiprocessing ThreadPool.imap": lambda: _imap(_identity, count),
    }
    with contextlib.suppress(ImportError):
        import pebble

        def pebble_map() -> None:
            with pebble.ThreadPool(max_workers=WORKERS) as threads:
                for _ in threads.map(_identity, range(count)).result():
                    pass

        contenders["pebble ThreadPool.map"] = pebble_map
    with contextlib.suppress(ImportError):
        from pyresilience import CircuitBreakerConfig, RetryConfig, resilient

        guarded = resilient(retry=RetryConfig(max_attempts=3), circuit_breaker=CircuitBreakerConfig())(_identity)
        contenders[f"{pool} + pyresilience"] = lambda: _map_with_pool(guarded, count)
    took = in_turn(contenders, rounds=rounds)
    panel = f"{count:,} no-op items on {WORKERS} threads (microseconds an item)"
    yield Row("fan-out", f"{count:,} no-ops with guard / {pool}", took["ours"] / took[pool], goal=0.05)
    for name in sorted(took, key=lambda name: took[name]):
        label, who = ("fan_out", "ours") if name == "ours" else (name, "floor" if name == pool else "peer")
        yield Row("fan-out", f"  {label}", took[name] / count * 1e6, "us/item", panel=panel, label=label, who=who)


STREAM = """
import psutil
from resilience import fan_out_iter
rss = psutil.Process().memory_info
stream = lambda count: fan_out_iter(int, range(count), max_workers=8, look_ahead=256)
for _ in stream(5_000): pass
before = peak = rss().rss
for position, _ in enumerate(stream({count})):
    if position % 20_000 == 0: peak = max(peak, rss().rss)
print((max(peak, rss().rss) - before) / 2**20)
"""


def _streamed(count: int) -> Iterator[Row]:
    from resilience import fan_out_iter

    growth = of_process(STREAM.format(count=count))
    yield Row("fan-out", f"{count:,} streamed in order: growth of memory", growth, "MiB", goal=2.0)

    def stream() -> None:
        for _ in fan_out_iter(_identity, range(sample), max_workers=WORKERS, look_ahead=256):
            pass

    sample = min(count, 100_000)
    contenders = {"ours": stream, "pool": lambda: _map_with_pool(_identity, sample)}
    took = in_turn(contenders, rounds=1 if sample < 10_000 else 5)
    what = f"{sample:,} streamed in order: time / ThreadPoolExecutor.map"
    yield Row("fan-out", what, took["ours"] / took["pool"], goal=0.15)
    yield Row("fan-out", "  fan_out_iter", took["ours"] / sample * 1e6, "us/item")


def _sleeping(count: int, rounds: int) -> Iterator[Row]:
    from resilience import fan_out

    def nap(_: int) -> None:
        time.sleep(0.001)

    took = in_turn(
        {"ours": lambda: fan_out(nap, range(count), max_workers=WORKERS), "pool": lambda: _map_with_pool(nap, count)},
        rounds=rounds,
    )
    ideal = count * 0.001 / WORKERS
    what = f"{count} x 1 ms sleeps, {WORKERS} workers / ideal"
    yield Row("fan-out", what, took["ours"] / ideal, goal=1.15)
    yield Row("fan-out", "peer: ThreadPoolExecutor.map / ideal", took["pool"] / ideal, who="peer")
