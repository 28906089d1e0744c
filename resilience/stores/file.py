"""The store in a file: for the processes of one machine, with no server.

SQLite keeps the data (write-ahead log, one atomic statement a change), a bell beside it tells of changes. kill -9 loses
nothing; a power cut may lose the last changes, the file stays whole. Not for network file systems, whose locks and
mapped files cannot be relied upon: opening one there is refused.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from ..core.clock import SYSTEM
from ..core.errors import ConfigError, StoreUnavailable
from .bell import Ear
from .file_database import Database
from .port import PATIENCE
from .swap import SwapStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .swap import Seen

NEXT_TURN = "(SELECT coalesce(max(turn), 0) + 1 FROM state)"
INSERT = f"INSERT OR IGNORE INTO state VALUES (?, ?, {NEXT_TURN}, ?)"
UPDATE = f"UPDATE state SET value = ?, version = ?, turn = {NEXT_TURN} WHERE key = ? AND version = ?"
LAST_TURN = "SELECT coalesce(max(turn), 0) FROM state"
NEWS = "SELECT turn, key, version, value FROM state WHERE turn > ? ORDER BY turn"
LOOK_EVERY = 0.5  # seconds between two looks whether the path still leads to the file that is open
NOTE_EVERY = 10.0  # seconds between two notes of the time
EMPTY_EVERY = 500  # changes after which who listens empties the log
EMPTY_AGAIN = 50  # changes after which it tries again, when somebody has written meanwhile


class FileStore(SwapStore):
    """`file:///path/state`: made at its first use, for its owner only, with its folder where that is missing.

    Its time is the machine's monotonic clock; after a reboot it goes on from where it was. Raises `ConfigError` for a
    path that is not absolute and, when it is used, for one on a network file system.
    """

    is_local = is_near = True

    def __init__(self, url: str) -> None:
        self.path = _path_of(url)
        self._database: Database | None = None
        self._heard: tuple[Database, int] | None = None  # which opening of the file, and up to which turn
        self._look_at = float("-inf")
        self._noted = float("-inf")
        self._emptied = 0  # the log, at which turn
        self._is_held_for_fork = False
        super().__init__(url)

    def _open_held(self, end: float) -> Database:
        if (now := SYSTEM.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_EVERY
            if self._database is not None and (self._database.is_broken or not self._database.is_current()):
                self._stop_held()
        if self._database is None:
            self._database = Database(self.path, end)
            self._seen = {}
        return self._database

    def _fetch_held(self, key: str, end: float) -> Seen:
        rows = self._open_held(end).run("SELECT version, value FROM state WHERE key = ?", (key,), end)
        return rows[0] if rows else (0, None)

    def _swap_held(self, key: str, seen: Seen, text: str | None, end: float) -> Seen | None:
        database = self._open_held(end)
        if seen[0]:
            version = seen[0] + 1
            done = database.change(UPDATE, (text, version, key, seen[0]), end)
        else:
            version = int(SYSTEM.time() * 1e6)  # so that a file made anew never repeats a version
            done = database.change(INSERT, (key, version, text), end)
        if not done:
            return None
        database.ring()
        return version, text

    def _now_held(self, end: float) -> float:
        return self._open_held(end).now()

    def guess_now(self) -> float | None:
        database = self._database
        return None if database is None else database.now()

    def _keys_held(self, prefix: str, end: float) -> list[str]:
        rows = self._open_held(end).run("SELECT key FROM state WHERE value IS NOT NULL", (), end)
        return [key for (key,) in rows if key.startswith(prefix)]

    def _stop_held(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    # -- news --------------------------------------------------------------------------------------------------------

    def _open_ear(self) -> Ear:
        with self._turn(PATIENCE) as end:
            database = self._open_held(end)
            if self._heard is None:
                self._heard = database, database.run(LAST_TURN, (), end)[0][0]
        try:
            return Ear(self.path + "-bell")
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def _tell_news(self, ear: Ear) -> None:
        """Tells what others have written; all of it when the file was opened anew, since it may be another one."""
        gone: set[str] = set()
        with self._turn(PATIENCE) as end:
            database = self._open_held(end)
            heard, last = self._heard or (None, 0)
            if database is not heard:
                gone, last = set(self._told_versions), 0
                self._told_versions = {}
                ear.listen_again()
            rows = database.run(NEWS, (last,), end)
            if SYSTEM.monotonic() - self._noted > NOTE_EVERY:
                self._noted = SYSTEM.monotonic()
                database.note_time(end)
        last = rows[-1][0] if rows else last
        self._heard = database, last
        for _, key, version, text in rows:
            self._told(key, (version, text))
        for key in gone.difference(row[1] for row in rows):
            self._subscriptions.tell(key, None)
        if abs(last - self._emptied) >= EMPTY_EVERY:
            self._empty_log(last)

    def _empty_log(self, turn: int) -> None:
        self._emptied = turn - EMPTY_EVERY + EMPTY_AGAIN
        with self._turn(PATIENCE) as end:
            database = self._open_held(end)
            database.empty_log(end)
            if database.run(LAST_TURN, (), end)[0][0] == turn:
                self._emptied = turn

    # -- life --------------------------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._database is not None or self._thread is not None

    def _end(self) -> None:
        super()._end()
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.wake()

    def before_fork(self) -> None:
        """Closes the file: SQLite's books of its locks would be wrong in the child, see `leave_to_parent`."""
        self._is_held_for_fork = self._lock.acquire(timeout=PATIENCE)
        if self._is_held_for_fork:
            self._stop_held()

    def after_fork(self, in_child: bool) -> None:
        if not in_child:
            if self._is_held_for_fork:
                self._lock.release()
            return
        if self._database is not None:  # somebody was using it for too long
            self._database.leave_to_parent()
            self._database = None
        self._fresh()
        ear, self._ear, self._thread, self._heard = self._ear, None, None, None
        if ear is not None:
            ear.close()


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not os.path.isabs(path) or path.endswith("/"):
        raise ConfigError(f"{url!r} names no file: expected file:///absolute/path", key="store", value=url)
    return os.path.normpath(path)
