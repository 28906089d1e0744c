"""Group `size`: what importing costs, and what a breaker weighs."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from . import peers
from .measure import Row, in_turn, of_process

FORBIDDEN = ("requests", "redis", "psycopg2", "psutil", "yaml", "click", "logging.config")
IMPORT = "import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
WEIGH = """
import tracemalloc
{setup}
names = [f"breaker-{{number}}" for number in range({count})]
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
breakers = {{name: {make} for name in names}}
print((tracemalloc.get_traced_memory()[0] - before) / {count})
"""
BREAKERS = {
    "ours": (
        "from resilience import CircuitBreaker, CircuitBreakerConfig; config = CircuitBreakerConfig()\n"
        "CircuitBreaker('first', config).call(int)",
        "CircuitBreaker(name, config)",
    ),
    "circuitbreaker": ("from circuitbreaker import CircuitBreaker", "CircuitBreaker(name=name)"),
    "pybreaker": ("from pybreaker import CircuitBreaker", "CircuitBreaker(name=name)"),
    "pyresilience": (
        "from pyresilience import CircuitBreaker, CircuitBreakerConfig; config = CircuitBreakerConfig()",
        "CircuitBreaker(config)",
    ),
    "interlock": ("from interlock import CircuitBreaker", "CircuitBreaker(name=name)"),
}


def size_group(smoke: bool) -> Iterator[Row]:
    """Import ratios, the start of the command, and memory."""
    yield from _imports(2 if smoke else 15)
    yield from _command(1 if smoke else 15)
    yield from _weights(1_000 if smoke else 100_000)


def _imports(rounds: int) -> Iterator[Row]:
    best: dict[str, float] = {}
    modules = ["threading", "resilience", *(name for name in peers.LIBRARIES if name not in peers.missing())]
    for _ in range(rounds):
        for module in modules:
            took = of_process(IMPORT.format(module=module))
            best[module] = min(took, best.get(module, took))
    yield Row("size", "import resilience / import threading", best["resilience"] / best["threading"], goal=5.0)
    code = f"import sys, resilience; print(sum(name in sys.modules for name in {FORBIDDEN}))"
    yield Row("size", "heavy libraries loaded by it", of_process(code), "", goal=0)
    panel = "Importing (milliseconds)"
    for module in sorted(best, key=lambda module: best[module]):
        who = {"resilience": "ours", "threading": "floor"}.get(module, "peer")
        what = f"  import {module}"
        yield Row("size", what, best[module] * 1e3, "ms", panel=panel, label=f"import {module}", who=who)


def _command(rounds: int) -> Iterator[Row]:
    command = Path(sysconfig.get_path("scripts")) / "resilience"
    if not command.exists():
        print(f"left out: resilience --help ({command} is not installed)")
        return
    run: Callable[[], object] = lambda: subprocess.run([command, "--help"], capture_output=True, check=True)  # noqa: E731
    yield Row("size", "resilience --help", in_turn({"help": run}, rounds=rounds)["help"] * 1e3, "ms", goal=120.0)


def _weights(count: int) -> Iterator[Row]:
    """Bytes of each of many named breakers beside its name, its dict slot included, in a process of its own."""
    panel = "One named breaker (bytes)"
    for name, (setup, make) in BREAKERS.items():
        number = count if name == "ours" else min(count, 10_000)
        try:
            weight = of_process(WEIGH.format(setup=setup, make=make, count=number))
        except LookupError:
            continue
        if name == "ours":
            what = f"each of {count:,} named breakers"
            yield Row("size", what, weight, "B", goal=200.0, panel=panel, label="breaker")
        else:
            yield Row("size", f"peer: {name}", weight, "B", panel=panel, label=name, who="peer")
