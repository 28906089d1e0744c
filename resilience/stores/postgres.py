"""The store in PostgreSQL: for the processes of many machines that have a database anyway.

One table; a change is one statement that takes the row's lock, compares the version, sets and notifies. News come by
LISTEN; behind a pooler, which may lose them or give them to somebody else, by looking four times a second. Nothing here
needs a session, so that a pooler in transaction mode works (PgBouncer: https://www.pgbouncer.org/features.html).
"""

from __future__ import annotations

import os
import select

import psycopg2
import psycopg2.extensions

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from .distant import DRIFT, DistantStore
from .port import PATIENCE, redacted, time_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .swap import Seen

TABLE = "resilience_state_1"  # the number is that of this form
LOOK_EVERY = 0.25  # seconds, where nothing notifies us
PAUSE = 0.005  # seconds between two looks: where news come all the time, looking is not to be all that the server does
SAFETY_LOOK = 2.0  # seconds between looks where something does
OVERLAP = 5.0  # seconds a look goes back before the last one: transactions do not end in the order they began in
NOW = "extract(epoch from clock_timestamp())::float8"
MAKE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
  key text COLLATE "C" PRIMARY KEY, version bigint NOT NULL, changed float8 NOT NULL, value text)
"""
FETCH = f"SELECT (SELECT row_to_json(s) FROM (SELECT version, value FROM {TABLE} WHERE key = %s) s), {NOW}"
TELL = f"SELECT done.version, {NOW}, pg_notify('{TABLE}', done.version::text) FROM done"
NOT_DONE = f"SELECT NULL, {NOW}, NULL WHERE NOT EXISTS (SELECT 1 FROM done)"
INSERT = f"""
WITH done AS (INSERT INTO {TABLE} SELECT %(key)s, ({NOW} * 1e6)::bigint, {NOW}, %(text)s
              WHERE abs({NOW} - %(guess)s) < {DRIFT} ON CONFLICT DO NOTHING RETURNING version)
{TELL} UNION ALL {NOT_DONE}
"""
UPDATE = f"""
WITH done AS (UPDATE {TABLE} SET value = %(text)s, version = version + 1, changed = {NOW}
              WHERE key = %(key)s AND version = %(version)s AND abs({NOW} - %(guess)s) < {DRIFT} RETURNING version)
{TELL} UNION ALL {NOT_DONE}
"""
CHANGED = f"SELECT key, version, value FROM {TABLE} WHERE changed >= %s"


class PostgresStore(DistantStore):
    """`postgresql://user:password@host/database`, with the parameters of libpq. Its time is the server's.

    The table is made at the first use. A change takes one round trip, or three when another process has changed the
    key meanwhile.
    """

    # -- commands ----------------------------------------------------------------------------------------------------

    def _run_held(self, end: float, statement: str, values: Any = None) -> list[tuple[Any, ...]]:
        """The rows of a statement; a connection that has not delivered them in time is not used again."""
        try:
            if self._connection is None:
                self._connection = connect(self.url, end)
            return run(self._connection, statement, values, end)
        except psycopg2.errors.UndefinedTable:
            self._make_table_held(end)
            return self._run_held(end, statement, values)
        except psycopg2.Error as error:
            connection = self._connection
            if connection is not None and (connection.closed or not isinstance(error, psycopg2.errors.QueryCanceled)):
                self._stop_held()
            raise StoreUnavailable(f"{redacted(self.url)}: {str(error).strip()}") from error
        except BaseException:
            self._stop_held()
            raise

    def _make_table_held(self, end: float) -> None:
        try:
            run(self._connection, MAKE, None, end)
        except psycopg2.IntegrityError:
            pass  # somebody else was faster

    def _fetch_held(self, key: str, end: float) -> Seen:
        began = SYSTEM.monotonic()
        [(row, now)] = self._run_held(end, FETCH, (key,))
        self._note_time(now, began)
        return (0, None) if row is None else (row["version"], row["value"])

    def _swap_held(self, key: str, seen: Seen, text: str | None, end: float) -> Seen | None:
        values = {"key": key, "text": text, "version": seen[0], "guess": self._now_held(end)}
        began = SYSTEM.monotonic()
        version, now, _ = self._run_held(end, UPDATE if seen[0] else INSERT, values)[0]
        self._note_time(now, began)
        return None if version is None else (version, text)

    def _keys_held(self, prefix: str, end: float) -> list[str]:
        rows = self._run_held(
            end, f"SELECT key FROM {TABLE} WHERE value IS NOT NULL AND starts_with(key, %s)", (prefix,)
        )
        return [key for (key,) in rows]

    def _stop_held(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- news --------------------------------------------------------------------------------------------------------

    def _open_ear(self) -> Ear:
        end = SYSTEM.monotonic() + PATIENCE
        try:
            connection = connect(self.url, end)
            try:
                if is_pooled(connection, end):
                    connection.close()
                else:
                    run(connection, f"LISTEN {TABLE}", None, end)
            except BaseException:
                connection.close()
                raise
        except psycopg2.Error as error:
            raise StoreUnavailable(f"{redacted(self.url)}: {str(error).strip()}") from error
        return Ear(connection)

    def _tell_news(self, ear: Ear) -> None:
        if not ear.is_due():
            return
        with self._turn(PATIENCE) as end:
            rows = self._run_held(end, CHANGED, (ear.since,))
            ear.since = self._now_held(end) - OVERLAP
        for key, version, text in rows:
            self._told(key, (version, text))

    # -- life --------------------------------------------------------------------------------------------------------

    def _leave(self, connection: Any) -> None:
        if not connection.closed:
            mute(connection.fileno())


class Ear:
    """A connection that listens; or, behind a pooler, a closed one: then it is time to look every `LOOK_EVERY`."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.since = 0.0
        self._is_pooled = bool(connection.closed)
        self._look_at = self._looked_at = self._ask_at = float("-inf")

    def is_due(self) -> bool:
        """Whether it is time to look at what has changed; then the next look is put off."""
        now = SYSTEM.monotonic()
        if now < self._look_at:
            return False
        self._looked_at = now
        self._look_at = now + (LOOK_EVERY if self._is_pooled else SAFETY_LOOK)
        return True

    def wait(self, seconds: float) -> None:
        """Returns when there may be something new; raises when the connection does not live any more."""
        now = SYSTEM.monotonic()
        seconds = min(seconds, max(0.0, self._look_at - now))
        if self._is_pooled:
            SYSTEM.sleep(seconds)
            return
        if now >= self._ask_at:
            self._ask_at = now + SAFETY_LOOK
            run(self.connection, "SELECT 1", None, now + PATIENCE)
        if wait_for_news(self.connection, seconds):
            self._look_at = min(self._look_at, max(now, self._looked_at + PAUSE))

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()


def is_pooled(connection: Any, end: float) -> bool:
    """Whether there is a pooler in between: it names itself as the other end, not the process that answers."""
    [(answering,)] = run(connection, "SELECT pg_backend_pid()", None, end)
    return bool(answering != connection.get_backend_pid())


def connect(url: str, end: float) -> Any:
    """A connection that never blocks; raises `psycopg2.Error` or `StoreUnavailable`."""
    link = psycopg2.connect(url, async_=1, application_name="resilience")
    try:
        wait(link, end)
    except BaseException:
        link.close()
        raise
    return link


def wait(link: Any, end: float) -> None:
    """Lets the connection do what it has to, until `end` at most."""
    while (state := link.poll()) != psycopg2.extensions.POLL_OK:
        reads = state == psycopg2.extensions.POLL_READ
        if not ready(link.fileno(), reads, time_left(end)):
            raise StoreUnavailable("the database did not answer in time")


def run(link: Any, statement: str, values: Any, end: float) -> list[tuple[Any, ...]]:
    """The rows of a statement."""
    with link.cursor() as cursor:
        cursor.execute(statement, values)
        wait(link, end)
        return [] if cursor.description is None else cursor.fetchall()


def wait_for_news(link: Any, seconds: float) -> bool:
    """Whether a notification came; returns after `seconds` without one."""
    if not link.notifies and ready(link.fileno(), True, seconds):
        link.poll()
    came = bool(link.notifies)
    link.notifies.clear()
    return came


def ready(file: int, reads: bool, seconds: float) -> bool:
    """Whether the file can be read from (or written to) within so many seconds."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(file, select.POLLIN if reads else select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
    found = select.select([file] if reads else [], [] if reads else [file], [], seconds)
    return any(found)


def mute(file: int) -> None:
    """Turns an open file into one that leads nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, file)
    os.close(nowhere)
