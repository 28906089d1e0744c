"""A server as a child process: on a free port of 127.0.0.1, in a temporary folder, gone with whoever started it."""

from __future__ import annotations

import os
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


class ServerProcess:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_to_all(path: Path) -> bool:
    """Whether another user may pass through all folders down to `path`."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _room_for(uid: int) -> Path:
    """A folder for temporary files that the user of the server can reach."""
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    if uid < 0:
        return candidates[0]
    return next((folder for folder in candidates if folder.is_dir() and open_to_all(folder)), candidates[0])
