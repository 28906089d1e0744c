"""A store of each kind, and what can happen to it: each of `faults` is a context manager that does it and undoes it.

`away` is the one that hangs, `empty()` takes out what is in it.
"""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import psycopg2
import redis

from resilience.stores.postgres import TABLE
from resilience.stores.redis import CHANNEL, STATE
from resilience.testing import DeadPort

HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM state")
print("held", flush=True)
time.sleep(600)
"""


class FilePlace:
    """A file store; with `room` (bytes of a small file system of its own) it can be full."""

    def __init__(self, folder, room=0):
        self.folder = folder / "store"
        self.folder.mkdir()
        self.path = self.folder / "state"
        self.url = f"file://{self.path}"
        self.faults = [self.held, self.deleted, self.garbage, self.overwritten, self.read_only]
        if room:
            self.faults.append(self.full)

    @contextlib.contextmanager
    def held(self):
        """Another process is stopped in the middle of a change, and killed."""
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, self.path], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            yield
        finally:
            holder.kill()
            holder.communicate()

    away = held

    @contextlib.contextmanager
    def deleted(self):
        self.empty()
        yield

    @contextlib.contextmanager
    def garbage(self):
        """Something else is in the place of each file, until somebody deletes it."""
        for path in list(self.folder.iterdir()):
            other = self.folder / "other"
            other.write_bytes(os.urandom(20_000))
            other.replace(path)
        yield
        self.empty()

    @contextlib.contextmanager
    def overwritten(self):
        """Somebody writes into the files that are open."""
        for path in list(self.folder.iterdir()):
            if not path.name.endswith("shm"):
                with open(path, "r+b") as file:
                    file.write(os.urandom(max(path.stat().st_size, 1)))
        yield
        self.empty()

    def empty(self):
        for path in self.folder.iterdir():
            path.unlink()

    @contextlib.contextmanager
    def read_only(self):
        """The folder is replaced by one that nobody may write to, nor to the file in it."""
        away = self.folder.with_name("away")
        backup = self.folder.with_name("backup")
        source, copy = sqlite3.connect(self.path), sqlite3.connect(backup)
        source.backup(copy)
        source.close()
        copy.close()
        self.folder.rename(away)
        self.folder.mkdir()
        shutil.move(backup, self.path)
        self.path.chmod(0o400)
        self.folder.chmod(0o500)
        yield
        self.folder.chmod(0o700)
        shutil.rmtree(self.folder)
        away.rename(self.folder)

    @contextlib.contextmanager
    def full(self):
        """The disk is full to the last byte."""
        ballast = self.folder / "ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        ballast.unlink()


class RedisPlace:
    """A server of the Redis protocol."""

    def __init__(self, server):
        self.server = server
        self.url = server.url
        self.faults = [self.killed, self.stopped, self.flushed, self.garbage, self.read_only, self.full]

    def command(self, *words):
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*words)

    @contextlib.contextmanager
    def killed(self):
        self.server.kill()
        yield
        self.server.restart()

    @contextlib.contextmanager
    def stopped(self):
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.process.send_signal(signal.SIGCONT)

    away = stopped

    def empty(self):
        self.command("FLUSHALL")

    @contextlib.contextmanager
    def flushed(self):
        self.empty()
        yield

    @contextlib.contextmanager
    def garbage(self):
        """In all fields, in the news, and then in the place of all."""
        for field in self.command("HKEYS", STATE):
            self.command("HSET", STATE, field, b"\x00\xff{")
        self.command("PUBLISH", f"{CHANNEL}:0", "nonsense")
        yield
        self.command("DEL", STATE)
        self.command("SET", STATE, "a text")

    @contextlib.contextmanager
    def read_only(self):
        with DeadPort() as dead:
            self.command("REPLICAOF", "127.0.0.1", dead.port)
            yield
            self.command("REPLICAOF", "NO", "ONE")

    @contextlib.contextmanager
    def full(self):
        self.command("CONFIG", "SET", "maxmemory", "1")
        yield
        self.command("CONFIG", "SET", "maxmemory", "64mb")


class PostgresPlace:
    """A PostgreSQL."""

    def __init__(self, server):
        self.server = server
        self.url = server.dsn
        self.faults = [self.killed, self.stopped, self.emptied, self.dropped, self.garbage, self.read_only]

    def execute(self, *statements):
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            for statement in statements:
                connection.cursor().execute(statement)
        finally:
            connection.close()

    def _send(self, number):
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self):
        return [self.server.postmaster, *self.server.backends()]

    @contextlib.contextmanager
    def killed(self):
        """The postmaster with all its clients' processes."""
        self._send(signal.SIGKILL)
        yield
        self.server.restart()

    @contextlib.contextmanager
    def stopped(self):
        self._send(signal.SIGSTOP)
        try:
            yield
        finally:
            self._send(signal.SIGCONT)

    away = stopped

    def empty(self):
        self.execute(f"TRUNCATE {TABLE}")

    @contextlib.contextmanager
    def emptied(self):
        self.empty()
        yield

    @contextlib.contextmanager
    def dropped(self):
        self.execute(f"DROP TABLE {TABLE}")
        yield

    @contextlib.contextmanager
    def garbage(self):
        self.execute(f"UPDATE {TABLE} SET value = 'nonsense {{'")
        yield

    @contextlib.contextmanager
    def read_only(self):
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'resilience'"
        self.execute("ALTER DATABASE postgres SET default_transaction_read_only = on", cut)
        yield
        self.execute("SET default_transaction_read_only = off",
                     "ALTER DATABASE postgres RESET default_transaction_read_only", cut)  # fmt: skip
