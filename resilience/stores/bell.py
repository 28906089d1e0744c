"""A bell that all processes of one machine hear: whoever rings it wakes those who wait, within a millisecond.

A ring is a byte written to a file. On Linux the waiting ones are woken by inotify; elsewhere they look at the file's
time every few milliseconds. A ring that is missed is made good by whoever looks on its own every now and then.
"""

from __future__ import annotations

import io
import os
import select
import sys

from ..core.clock import SYSTEM
from ..core.forks import imported

IN_MODIFY = 0x2
IN_CLOEXEC = 0o2000000
IN_NONBLOCK = 0o4000
LOOK_EVERY = 0.01  # seconds, without inotify
PAUSE = 0.001  # seconds between two waits: those who ring all the time are not to wait for those who listen
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class Bell:
    """Rings: `ring()`. Not safe to share between threads."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, FLAGS, 0o600)

    def ring(self) -> None:
        """Wakes everybody; a bell that cannot be rung (a full disk) is heard later."""
        try:
            os.pwrite(self.file, b"!", 0)
        except OSError:
            pass

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self.file)


class Ear:
    """Hears a bell: `wait(seconds)`. For one thread; `wake()` and `close()` from any."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._watch: int | None = None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = io.FileIO(writer, "w")  # knows when it is closed: its number may be another file's
        try:
            self.listen_again()
        except BaseException:
            self.close()
            raise

    def listen_again(self) -> None:
        """Turns to the file that is there now; it is made where it is missing."""
        os.close(os.open(self._path, FLAGS, 0o600))
        watch, self._watch = self._watch, None
        if watch is not None:
            os.close(watch)
        self._watch = _inotify(self._path)
        self._last = os.stat(self._path).st_mtime_ns

    def wait(self, seconds: float) -> None:
        """Returns when the bell rings, at `wake()`, or after `seconds`; at once for rings since the last wait."""
        SYSTEM.sleep(PAUSE)
        if self._watch is None:
            self._look(seconds)
            return
        for file in _readable((self._watch, self._reader), seconds):
            os.read(file, 65536)

    def _look(self, seconds: float) -> None:
        end = SYSTEM.monotonic() + seconds
        while (left := end - SYSTEM.monotonic()) > 0:
            try:
                changed = os.stat(self._path).st_mtime_ns
            except OSError:
                changed = 0
            if changed != self._last:
                self._last = changed
                return
            if _readable((self._reader,), min(left, LOOK_EVERY)):
                os.read(self._reader, 65536)
                return

    def wake(self) -> None:
        """Ends the wait under way, or the next one."""
        try:
            self._writer.write(b"!")
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        """Lets go of everything; nobody may wait any more."""
        if self._watch is not None:
            os.close(self._watch)
        os.close(self._reader)
        self._writer.close()


def _readable(files: tuple[int, ...], seconds: float) -> list[int]:
    if hasattr(select, "poll"):  # select() knows no file above 1,024
        poll = select.poll()
        for file in files:
            poll.register(file, select.POLLIN)
        return [file for file, _ in poll.poll(seconds * 1000)]
    return list(select.select(files, (), (), seconds)[0])


def _inotify(path: str) -> int | None:
    """A file that becomes readable when `path` is written to; None where the system has no such thing."""
    if sys.platform != "linux":
        return None
    library = imported("ctypes").CDLL(None, use_errno=True)
    try:
        file: int = library.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    except AttributeError:
        return None
    if file < 0:
        return None
    if library.inotify_add_watch(file, os.fsencode(path), IN_MODIFY) < 0:
        os.close(file)
        return None
    return file
