"""The journal of a collection: what has been done, one JSON object a line, so that a run can be stopped at any moment.

A *final* record has a boolean `ok`; there is one per item and run. `started` records (requests that must not be made
twice), `breaker`, `pause` and `run` records have none. Each record is one write to a file opened for appending, under a
lock that is gone with its holder: several threads and processes never mix their lines, see each other's before they
write (a success is the last word on its item, and a line that another left torn is ended first), and nothing is kept
back in this process: what was written survives its death. A line that is no JSON object (torn by a crash or a full
disk) is skipped by the reader.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resilience.core.clock import SYSTEM

from .. import output
from ..streams import is_open_file

CHUNK = 1 << 20
MOVING, LOOK_EVERY = 1.0, 0.005  # seconds that a run which moves the file away has for it
ROUNDS = 20  # times that it may have been moved away meanwhile


class OutputError(output.OutputError):
    """A place where results go that cannot be written; the command ends with 74."""

    def __init__(self, what: str, path: object, error: OSError) -> None:
        super().__init__(f"cannot write {what} {path}: {error.strerror or error}")
        self.errno = error.errno


class NotAJournal(Exception):
    """The file has content that no journal has: it is left alone."""


@dataclass(slots=True)
class Past:
    """What earlier runs left: the last final record of each item, what was under way, which breakers were open."""

    finals: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)  # requests that may have been made, and of which no end is known
    open_hosts: set[str] = field(default_factory=set)
    pauses: dict[str, tuple[float, float]] = field(default_factory=dict)  # by host: when it asked, for how many seconds
    skipped: int = 0  # lines that are no records
    size: int = 0  # bytes that were read
    file: tuple[int, int] | None = None  # device and inode of what was read

    def done(self) -> set[str]:
        """The keys of the items that are done."""
        return {key for key, record in self.finals.items() if record["ok"]}

    def pause(self, host: str, now: float) -> float:
        """Seconds that `host` still wants peace for at the wall clock's `now`; a clock set back makes them no more."""
        at, wait = self.pauses.get(host, (now, 0.0))
        return max(0.0, min(wait, at + wait - now))

    def add(self, record: dict[str, Any]) -> None:
        """Folds one record in; a success is never taken back by a later failure."""
        key = record.get("key", record.get("url"))
        ok = record.get("ok")
        if isinstance(key, str) and isinstance(ok, bool):
            self.started.discard(key)
            if ok or not self.finals.get(key, {}).get("ok"):
                self.finals[key] = record
        elif record.get("event") == "started" and isinstance(key, str):
            self.started.add(key)
        elif record.get("event") == "breaker" and isinstance(record.get("host"), str):
            (self.open_hosts.discard if record.get("state") == "closed" else self.open_hosts.add)(record["host"])
        elif record.get("event") == "pause" and isinstance(record.get("host"), str):
            at, wait = record.get("at"), record.get("wait_s")
            if isinstance(at, (int, float)) and isinstance(wait, (int, float)):
                self.pauses[record["host"]] = at, wait


def read_records(path: str | Path) -> Iterator[dict[str, Any] | None]:
    """The records of a journal in their order, None for each line that is none. Raises `OSError`."""
    with open(path, "rb") as lines:
        yield from records_of(lines)


def records_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """The records of the lines that are not blank, None for each that is none."""
    return (parse(line) for line in lines if line.strip())


def parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # torn, not UTF-8, a number of 5,000 digits, or no end of brackets
        return None
    return record if isinstance(record, dict) else None


def read_past(path: str | Path) -> Past:
    """What the journal at `path` says; nothing where there is no file. Raises `OSError`, `NotAJournal`."""
    past = Past()
    lines = records = 0
    if not os.path.isfile(path):  # none yet; or a device, and one such as /dev/full has no end to read
        return past
    found = os.stat(path)
    past.size, past.file = found.st_size, (found.st_dev, found.st_ino)
    for record in read_records(path):
        lines += 1
        if record is None:
            past.skipped += 1
        elif isinstance(record.get("ok"), bool) or "event" in record:
            records += 1
            past.add(record)
    if lines and not records and not _is_first_record_torn(path):
        raise NotAJournal(f"{path} is not a journal: none of its {lines} lines is a record of one")
    return past


def _is_first_record_torn(path: str | Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(CHUNK)
    return start.startswith(b'{"event"') and b"\n" not in start


class Journal:
    """A journal opened for appending; `write` may be called from any thread. Raises `OutputError`.

    `anew` moves a file with content to *.previous, unless another run writes to it (`is_shared`): all that do hold a
    shared `flock`. `past` is what was read of the file before.
    """

    def __init__(self, path: str | Path, *, anew: bool = False, past: Past | None = None) -> None:
        self.path = Path(path)
        self.moved_to: Path | None = None
        self.is_shared = False
        self._writing = threading.Lock()
        self._torn = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._enter(anew and not is_open_file(self.path))
            found = os.fstat(self._file)
        except OSError as error:
            raise OutputError("the journal", self.path, error) from error
        self._is_file = stat.S_ISREG(found.st_mode)
        if past is not None and past.file != (found.st_dev, found.st_ino):
            past = None  # what was read has been moved away
        self._known = 0 if past is None else past.size  # bytes of the file whose records are in `_done`
        self._done = set() if past is None else past.done()
        self._is_new_to_us = True

    def _enter(self, anew: bool) -> int:
        """The file at `path`, shared; runs that start at once may move it away between any two lines here."""
        for rounds_left in range(ROUNDS, 0, -1):
            file = _open(self.path)
            try:
                self.is_shared = not _lock(file, fcntl.LOCK_EX)
                is_to_go = anew and not self.is_shared and self.moved_to is None and _is_used(file)
                if is_to_go and _is_at(file, self.path):
                    self.moved_to = self.path.with_name(self.path.name + ".previous")
                    os.replace(self.path, self.moved_to)
                else:
                    _share(file)
                    if _is_at(file, self.path) or rounds_left == 1:
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        raise AssertionError("the last round returns")

    def write(self, record: dict[str, Any]) -> str:
        """Appends one record, with one write; returns its line. Once this returns the record survives `kill -9`.

        The end of an item that is done already, by another run on the same journal, is not written.
        """
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            with self._writing:
                if not self._is_file:
                    self._append_held(line)
                    return line
                _lock_content(self._file, fcntl.LOCK_EX)
                try:
                    self._catch_up_held()
                    if not (isinstance(record.get("ok"), bool) and record.get("key") in self._done):
                        self._append_held(line)
                        _note_done(self._done, record)
                finally:
                    _lock_content(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise OutputError("the journal", self.path, error) from error
        return line

    def _append_held(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace")
        if self._torn:  # the next record starts on a line of its own
            data = b"\n" + data
        written = os.write(self._file, data)
        self._known += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(28, "No space left for the whole record")

    def _catch_up_held(self) -> None:
        """Reads what others have written since."""
        size = os.fstat(self._file).st_size
        if size == self._known and not self._is_new_to_us:
            return
        self._is_new_to_us = False
        start = max(0, min(self._known, size) - 1)  # one byte more: whether the last line we know of was whole
        news = _read(self._file, start, size)
        self._torn = bool(news) and not news.endswith(b"\n")
        for other in records_of(news.splitlines()):
            if other is not None:
                _note_done(self._done, other)
        self._known = size

    def sync(self) -> None:
        """Has the disk keep what was written, where the file has one."""
        try:
            os.fsync(self._file)
        except OSError:  # a pipe, a terminal: nothing to keep
            pass


def _read(file: int, start: int, end: int) -> bytes:
    data = bytearray()
    while start + len(data) < end and (chunk := os.pread(file, min(CHUNK, end - start - len(data)), start + len(data))):
        data += chunk
    return bytes(data)


def _note_done(done: set[str], record: dict[str, Any]) -> None:
    key = record.get("key", record.get("url"))
    if record.get("ok") is True and isinstance(key, str):
        done.add(key)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_used(file: int) -> bool:
    found = os.fstat(file)
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _share(file: int) -> None:
    """Takes the lock that all who write hold; waits for one who is moving the file away, though not for ever."""
    end = SYSTEM.monotonic() + MOVING
    while _lock(file, fcntl.LOCK_SH) is False and SYSTEM.monotonic() < end:
        SYSTEM.sleep(LOOK_EVERY)


def _lock(file: int, kind: int) -> bool | None:
    """Whether it is ours now: False where another run holds it, None where the file system has no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lock_content(file: int, kind: int) -> None:
    try:
        fcntl.lockf(file, kind)
    except OSError:  # a file system without locks: writes are whole all the same
        pass
