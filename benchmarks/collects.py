"""Group `collect`: the main job against a bare pool with one session per thread, on a local server."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .measure import Row, wall

BARE = """
import sys, threading, requests
from concurrent.futures import ThreadPoolExecutor
local = threading.local()
def fetch(url):
    session = getattr(local, "session", None)
    if session is None:
        session = local.session = requests.Session()
    with session.get(url, timeout=10, stream=True) as answer:
        return sum(map(len, answer.iter_content(65536)))
urls = open(sys.argv[1]).read().split()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(fetch, urls))
"""


def collect_group(smoke: bool) -> Iterator[Row]:
    """Whole commands, in turn: `resilience collect` and the bare pool, on the same healthy server."""
    from resilience.testing import FaultServer

    count, rounds = (50, 1) if smoke else (2_000, 3)
    with FaultServer() as server, tempfile.TemporaryDirectory() as folder:
        urls = Path(folder) / "urls.txt"
        urls.write_text("".join(f"{server.url}/ok?{number}\n" for number in range(count)), encoding="utf-8")
        bare = [sys.executable, "-c", BARE, str(urls)]
        best_ours = best_bare = float("inf")
        for turn in range(rounds):
            ours = [sys.executable, "-m", "resilience_cli", "collect", str(urls), "--workers", "8", "--per-host", "8",
                    "--journal", str(Path(folder) / f"journal-{turn}.jsonl")]  # fmt: skip
            best_bare = min(best_bare, wall(lambda: subprocess.run(bare, check=True, capture_output=True)))
            best_ours = min(best_ours, wall(lambda ours=ours: subprocess.run(ours, check=True, capture_output=True)))
    what = f"{count:,} healthy URLs: throughput / bare pool with a session per thread"
    yield Row("collect", what, best_bare / best_ours, goal=0.9, at_least=True)
    yield Row("collect", "  ours", count / best_ours, "URL/s")


