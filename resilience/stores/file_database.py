"""The SQLite file under a file store: opened with care, used one statement at a time."""

from __future__ import annotations

import os
import random
import sqlite3

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from .bell import Bell
from .place import boot_id, refuse_network_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORM = 0x72650001  # of the tables: kept in `user_version`; a file of another one is not touched
TABLES = (
    "CREATE TABLE IF NOT EXISTS state"
    " (key TEXT PRIMARY KEY, version INTEGER NOT NULL, turn INTEGER NOT NULL, value TEXT) WITHOUT ROWID",
    "CREATE UNIQUE INDEX IF NOT EXISTS turns ON state (turn)",
    "CREATE TABLE IF NOT EXISTS boots (id TEXT NOT NULL, base REAL NOT NULL, latest REAL NOT NULL)",
    f"PRAGMA user_version = {FORM}",
)
LONGEST_LOG = 20_000  # pages (80 MB) after which a writer empties the log itself, for want of anybody who listens
LONGEST_NAP = 0.001  # seconds between two tries for a file that somebody else is writing to


class Database:
    """An open file of ours. Raises `StoreUnavailable` for one that cannot be used. Not safe to share between threads.

    `base` is what has to be added to the monotonic clock for the store's time. `is_broken` after an error that is more
    than a busy file: open it anew.
    """

    def __init__(self, path: str, end: float) -> None:
        self.path = path
        self.base = 0.0
        self.is_broken = False
        self._bell: Bell | None = None
        self._connection: sqlite3.Connection | None = None
        refuse_network_place(path)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            _make(path)
            self.identity = _identity(path)
            if self.identity in _left_to_parent:
                raise StoreUnavailable(f"{path} was in use while this process was forked: it is of no use here")
            # Statements commit on their own; the lock of the store keeps the threads apart.
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            self._prepare(end)
            self._bell = Bell(path + "-bell")
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self.unavailable(error) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, end: float) -> None:
        execute = self.execute
        form = execute("PRAGMA user_version", (), end)[0][0]
        if not form and execute("SELECT count(*) FROM sqlite_master", (), end)[0][0]:
            form = execute("PRAGMA user_version", (), end)[0][0] or -1  # made meanwhile, both in one step; or no store
        if form and form != FORM:
            raise StoreUnavailable(f"{self.path} was made by another program or version: it is left alone")
        if not form:
            execute("PRAGMA journal_mode = WAL", (), end)
        execute("PRAGMA synchronous = NORMAL", (), end)  # with the log: whole after a power cut, fast before it
        execute(f"PRAGMA wal_autocheckpoint = {LONGEST_LOG}", (), end)  # it waits for the disk: not for calls
        here, now = boot_id(), SYSTEM.monotonic()
        if form == FORM and (row := execute("SELECT base FROM boots WHERE id = ?", (here,), end)):
            self.base = row[0][0]
            return
        execute("BEGIN IMMEDIATE", (), end)
        try:
            for statement in TABLES:
                execute(statement, (), end)
            self._begin_boot(here, now, end)
            execute("COMMIT", (), end)
        except BaseException:
            self._roll_back()
            raise

    def _begin_boot(self, here: str, now: float, end: float) -> None:
        """Lets the time go on from where the last boot has left it."""
        rows = self.execute("SELECT id, base, latest FROM boots", (), end)
        if rows and rows[0][0] == here:
            self.base = rows[0][1]
            return
        self.base = max(0.0, rows[0][2] - now) if rows else 0.0
        self.execute("DELETE FROM boots", (), end)
        self.execute("INSERT INTO boots VALUES (?, ?, ?)", (here, self.base, self.base + now), end)

    def now(self) -> float:
        """The store's time."""
        return SYSTEM.monotonic() + self.base

    def empty_log(self, end: float) -> None:
        """Brings the log into the file, and waits for the disk. It begins anew unless somebody writes meanwhile."""
        self.execute("PRAGMA wal_checkpoint(PASSIVE)", (), end)

    def note_time(self, end: float) -> None:
        """Writes the time down, from which the clock goes on after a reboot."""
        self.execute("UPDATE boots SET latest = ?", (self.now(),), end)

    def run(self, statement: str, values: tuple[object, ...], end: float) -> list[Any]:
        """The rows of one statement; raises `StoreUnavailable`."""
        try:
            return self.execute(statement, values, end)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def change(self, statement: str, values: tuple[object, ...], end: float) -> int:
        """How many rows one statement has changed; raises `StoreUnavailable`."""
        try:
            return self._cursor(statement, values, end).rowcount
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def execute(self, statement: str, values: tuple[object, ...], end: float) -> list[Any]:
        """The rows of one statement; one that finds the file busy tries again until `end`."""
        return self._cursor(statement, values, end).fetchall()

    def _failed(self, error: sqlite3.Error) -> StoreUnavailable:
        self._roll_back()
        self.is_broken = not _is_busy(error)
        return self.unavailable(error)

    def _cursor(self, statement: str, values: tuple[object, ...], end: float) -> sqlite3.Cursor:
        connection = self._connection
        assert connection is not None
        while True:
            try:
                return connection.execute(statement, values)
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or SYSTEM.monotonic() >= end:
                    raise
            SYSTEM.sleep(random.random() * LONGEST_NAP)

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.rollback()
            except sqlite3.Error:
                pass

    def ring(self) -> None:
        """Tells all who wait for changes that there is one."""
        if self._bell is not None:
            self._bell.ring()

    def is_current(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return _identity(self.path) == self.identity
        except OSError:
            return False

    def unavailable(self, error: Exception) -> StoreUnavailable:
        """What to raise for an error of SQLite or of the system."""
        return StoreUnavailable(f"{self.path}: {error}")

    def leave_to_parent(self) -> None:
        """In a forked child: gives the file up, since SQLite takes the locks of the parent for its own here."""
        _left_to_parent[self.identity] = self

    def close(self) -> None:
        """Closes the file. Never raises."""
        connection, self._connection = self._connection, None
        bell, self._bell = self._bell, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass
        if bell is not None:
            bell.close()


_left_to_parent: dict[tuple[int, int], Database] = {}  # never closed: that might end the locks of the parent


def _make(path: str) -> None:
    """Makes the file, for its owner only. One that is there is not opened: closing it would drop SQLite's locks."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)
