"""`python -m benchmarks reclaim`: who ends what at the deadline, ours beside the peers that are installed.

Each cell is a fresh script with a deadline of 1 s, called from its main thread: seconds until the caller had control;
F when the call had ended a second later, L when it still ran; s when it left a query on a server or a child process
behind; x when the script was gone 3 s after the end of its main thread, X when not. "never": not within 4 s.
A cell that is late while the machine stood still (a sleep of 10 ms took 0.1 s longer) says nothing and is run again, at
most three times, whoever's it is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import reclaim_report as report
from .reclaim_cell import LIMIT, TAKES_AWARE, TOOLS
from .reclaim_kinds import BLIND

HERE = Path(__file__).resolve().parent
NEVER, SETTLE, EXIT = 4.0, 1.0, 3.0
TURNS, STANDSTILL = 4, 0.1  # runs of a cell at most; seconds that a sleep may take longer
NEEDS = {"pyresilience": "pyresilience", "pebble threads": "pebble", "pebble processes": "pebble"}


def is_alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    from resilience.workers import trees

    member = trees.look(pid)
    return member is not None and not member.is_zombie


class Witness:
    """Sleeps 10 ms at a time and notes when that took much longer: nobody keeps a deadline then."""

    def __init__(self) -> None:
        self.last = float("-inf")  # when the machine stood still last
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        before = time.monotonic()
        while not self._over.wait(0.01):
            now = time.monotonic()
            if now - before > 0.01 + STANDSTILL:
                self.last = now
            before = now

    def close(self) -> None:
        self._over.set()


class World:
    """The servers that the cells hang on; what is missing is None, and its kinds are skipped with the reason."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        from resilience.testing import FaultServer

        self.skipped: dict[str, str] = {}
        self.witness = Witness()
        self.repeated = 0
        stack.callback(self.witness.close)
        self.http = stack.enter_context(FaultServer()).url
        self.blackhole = self._full_backlog(stack)
        self.servers = self._servers()
        self.postgres = None
        if self.servers is not None:
            self.postgres = stack.enter_context(self.servers.Postgres()).dsn
        self.resolver = self._silent_resolver(stack)

    def _full_backlog(self, stack: contextlib.ExitStack) -> str:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def _servers(self) -> Any:
        from .drivers import _servers

        try:
            return _servers()
        except ImportError as error:
            for kind in ("redis_blpop", "redis_stop", "pg_sleep", "pg_stop"):
                self.skipped[kind] = f"no server: {error}"
            return None

    def _silent_resolver(self, stack: contextlib.ExitStack) -> str | None:
        """A resolver that never answers, seen by one cell only: a mount in a name space of its own."""
        try:
            silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            silent.bind(("127.0.0.9", 53))
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "resolv.conf"
            file.write_text("nameserver 127.0.0.9\noptions timeout:30 attempts:2\n")
            subprocess.run([*self.unshared(str(file)), "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.skipped["dns"] = f"no private resolver: {error}"
            return None
        return str(file)

    @staticmethod
    def unshared(file: str) -> list[str]:
        return ["unshare", "-m", "sh", "-c", f'mount --bind {file} /etc/resolv.conf && exec "$@"', "sh"]


class Cell:
    """One run of one kind under one tool."""

    def __init__(self, world: World, kind: str, tool: str) -> None:
        self.world, self.kind, self.tool = world, kind, tool
        self._reset()

    def _reset(self) -> None:
        self.back: float | None = None
        self.said = b""
        self.started = True
        self.died = self.stuck = self.left = False
        self.exits: bool | None = None

    def run(self) -> Cell:
        """Runs the script, again where the machine stood still and not the call."""
        for _ in range(TURNS):
            self._reset()
            begun = time.monotonic()
            self._run()
            if report.verdicts(self)[0] or self.world.witness.last < begun:
                break
            self.world.repeated += 1
        return self

    def _run(self) -> None:
        """Runs the script and looks at what is left of it."""
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            facts = {"folder": str(self.folder), "http": self.world.http, "blackhole": self.world.blackhole,
                     "postgres": self.world.postgres, "aware": self.tool in TAKES_AWARE}  # fmt: skip
            if self.kind.startswith("redis"):
                facts.update(self._redis(stack))
            command = [sys.executable, "-m", "benchmarks.reclaim_cell", self.kind, self.tool]
            if self.kind == "dns":
                command = self.world.unshared(str(self.world.resolver)) + command
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                cwd=HERE.parent, env={**os.environ, "RECLAIM": json.dumps(facts)}, start_new_session=True,
            )  # fmt: skip
            try:
                self._watch(process)
            except RuntimeError as error:
                self.started = False
                print(error, file=sys.stderr)
            finally:
                self._clean(process)

    def _redis(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        url = stack.enter_context(self.world.servers.Valkey()).url
        import redis

        with redis.Redis.from_url(url) as client:
            self.redis_pid = int(client.info("server")["process_id"])
        self.redis_url = url
        stack.callback(lambda: is_alive(self.redis_pid) and os.kill(self.redis_pid, signal.SIGCONT))
        return {"redis": url, "redis_pid": self.redis_pid}

    def _line(self, process: subprocess.Popen[bytes], patience: float) -> dict[str, Any] | None:
        """The next line of the script; None when it says nothing more in time."""
        assert process.stdout is not None
        end = time.monotonic() + patience
        while b"\n" not in self.said:  # two lines may come in one piece: no buffer that select() does not see
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(process.stdout.fileno(), 4096) if ready else b""
            if not piece:
                return None
            self.said += piece
        line, _, self.said = self.said.partition(b"\n")
        return json.loads(line)  # type: ignore[no-any-return]  # an object

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        if self._line(process, 60.0) is None:
            raise RuntimeError(f"{self.kind} under {self.tool} did not start")
        said = self._line(process, NEVER)
        if said is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            self.died = process.returncode is not None
            return
        self.back = said["back"]
        time.sleep(SETTLE)
        self.stuck = self._is_inside()
        self.left = self._has_left()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(EXIT)
            self.exits = True
        except subprocess.TimeoutExpired:
            self.exits = False

    def _is_inside(self) -> bool:
        try:
            return is_alive(int((self.folder / "inside").read_text()))
        except (OSError, ValueError):
            return False

    def _pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    def _has_left(self) -> bool:
        if self.kind == "subprocess":
            return any(map(is_alive, self._pids()))
        if self.kind == "redis_blpop":
            import redis

            with redis.Redis.from_url(self.redis_url) as client:
                return any(one.get("cmd") == "blpop" for one in client.client_list())
        if self.kind == "pg_sleep":
            import psycopg2

            with contextlib.closing(psycopg2.connect(self.world.postgres)) as connection:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%%' || %s",
                                   ("pg_sleep(600)",))  # fmt: skip
                    return bool(cursor.fetchall())
        return False

    def _clean(self, process: subprocess.Popen[bytes]) -> None:
        from resilience.workers import trees

        trees.end_tree(process.pid)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        backend = self.folder / "backend"
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if backend.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(backend.read_text()), signal.SIGCONT)
        if self.kind in ("pg_sleep", "pg_stop"):
            self._end_queries()

    def _end_queries(self) -> None:
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.world.postgres)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                           " AND query LIKE '%pg_sleep(600)%'")  # fmt: skip


def cells(world: World, kinds: list[str], tools: list[str], width: int) -> Iterator[Cell]:
    """The cells as they are done; those on PostgreSQL one after another, for each looks at the whole server."""
    todo = [Cell(world, kind, tool) for kind in kinds if kind not in world.skipped for tool in tools]
    apart = [cell for cell in todo if cell.kind.startswith("pg")]
    with ThreadPoolExecutor(width) as pool:
        chain = pool.submit(lambda: [cell.run() for cell in apart])
        yield from pool.map(Cell.run, [cell for cell in todo if cell not in apart])
        yield from chain.result()


def main(arguments: list[str]) -> int:
    """Runs the matrix; writes the table and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks reclaim", description=__doc__)
    parser.add_argument("--kind", action="append", choices=list(BLIND), metavar="KIND")
    parser.add_argument("--tool", action="append", choices=list(TOOLS), metavar="TOOL")
    parser.add_argument("--width", type=int, default=4, help="cells at a time")
    options = parser.parse_args(arguments)
    absent = {tool for tool, library in NEEDS.items() if importlib.util.find_spec(library) is None}
    tools = [tool for tool in options.tool or TOOLS if tool not in absent]
    kinds = options.kind or list(BLIND)
    with contextlib.ExitStack() as stack:
        world = World(stack)
        done = list(cells(world, kinds, tools, options.width))
    table = report.table(done, kinds, tools, world.skipped)
    if world.repeated:
        table += f"\n\n{world.repeated} cells were late while the machine stood still and were run again."
    print(table)
    for tool in sorted(absent):
        print(f"{tool}: not installed, left out")
    if options.kind is None and options.tool is None:
        (HERE / "reclaim.md").write_text(f"{__doc__}\n{table}\n", encoding="utf-8")
        report.plot(done, kinds, tools, HERE / "reclaim.png")
    return 0


__all__ = ["LIMIT", "Cell", "main"]
