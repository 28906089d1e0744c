"""Cursors of any class, whose exchanges with the server end at the deadline of their connection."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

if TYPE_CHECKING:
    from .connection import ResilientConnection
    from .limit import Limit

# Statements that may share a trip, and so an implicit transaction, with the setting of their timeout.
_SHARING = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN", "LOCK")

ENDING = ("ROLLBACK", "ABORT", "COMMIT", "END")  # what a failed transaction still understands


class Guarded:
    """What every cursor class is given on top."""

    connection: ResilientConnection
    name: str | None

    def execute(self, query: Any, vars: Any = None) -> None:
        connection = self.connection
        words = _first_words(query, connection)
        failed = connection.has_failed
        if failed:
            connection.refuse_if_failed(words)
        doing = words.partition(" ")[0] or "a statement"
        limit = connection.limit(doing)
        run = super().execute  # type: ignore[misc]  # of psycopg2's cursor
        if limit is None or failed:  # such a transaction takes no SET
            connection.watched(limit, doing, run, query, vars)
            connection.forget_transaction()
        elif self.name is not None or (connection.autocommit and not words.startswith(_SHARING)):
            self._in_trips_of_its_own(limit, doing, run, query, vars)
        else:
            body = self.mogrify(query, vars)  # type: ignore[attr-defined]  # of psycopg2's cursor
            connection.watched(limit, doing, run, connection.prefix(limit) + body)
            if doing in ENDING:  # as ROLLBACK TO takes back what was set since the savepoint, its own timeout too
                connection.forget_transaction()

    def _in_trips_of_its_own(self, limit: Limit, doing: str, run: Any, *args: Any, **kwargs: Any) -> Any:
        """For what cannot be sent together with another statement."""
        connection = self.connection
        connection.tell_limit(limit)
        try:
            return connection.watched(limit, doing, run, *args, **kwargs)
        finally:
            connection.forget_limit()

    def _guarded(self, doing: str, run: Any, *args: Any, **kwargs: Any) -> Any:
        self.connection.refuse_if_failed("")
        limit = self.connection.limit(doing)
        if limit is None:
            return self.connection.watched(None, doing, run, *args, **kwargs)
        return self._in_trips_of_its_own(limit, doing, run, *args, **kwargs)

    def executemany(self, query: Any, vars_list: Any) -> None:
        self._guarded("executemany", super().executemany, query, vars_list)  # type: ignore[misc]  # of psycopg2's

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        return self._guarded("callproc", super().callproc, *args, **kwargs)  # type: ignore[misc]  # of psycopg2's

    def copy_expert(self, *args: Any, **kwargs: Any) -> None:
        self._guarded("COPY", super().copy_expert, *args, **kwargs)  # type: ignore[misc]  # of psycopg2's

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        self._guarded("COPY", super().copy_from, *args, **kwargs)  # type: ignore[misc]  # of psycopg2's

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        self._guarded("COPY", super().copy_to, *args, **kwargs)  # type: ignore[misc]  # of psycopg2's

    # A named cursor lives on the server: it is asked for every row, and told of the end.

    def close(self) -> None:
        close = super().close  # type: ignore[misc]  # of psycopg2's cursor
        if self.name is None or self.connection.closed:
            close()
        else:
            self.connection.watched(self.connection.limit_of_cleaning(), "CLOSE", close)

    def fetchone(self) -> Any:
        fetch = super().fetchone  # type: ignore[misc]  # of psycopg2's cursor
        return fetch() if self.name is None else self._guarded("FETCH", fetch)

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        fetch = super().fetchmany  # type: ignore[misc]  # of psycopg2's cursor
        return fetch(*args, **kwargs) if self.name is None else self._guarded("FETCH", fetch, *args, **kwargs)

    def fetchall(self) -> Any:
        fetch = super().fetchall  # type: ignore[misc]  # of psycopg2's cursor
        return fetch() if self.name is None else self._guarded("FETCH", fetch)

    def scroll(self, *args: Any, **kwargs: Any) -> Any:
        move = super().scroll  # type: ignore[misc]  # of psycopg2's cursor
        return move(*args, **kwargs) if self.name is None else self._guarded("MOVE", move, *args, **kwargs)

    def __next__(self) -> Any:
        advance = super().__next__  # type: ignore[misc]  # of psycopg2's cursor
        return advance() if self.name is None else self._guarded("FETCH", advance)


@functools.cache
def guarded_class(asked: Any) -> Any:
    """The class `asked` with deadlines."""
    return asked if issubclass(asked, Guarded) else type(f"Guarded{asked.__name__}", (Guarded, asked), {})


def _first_words(query: Any, connection: Any) -> str:
    if query.__class__ is str:
        return str(query).lstrip()[:40].upper()
    if isinstance(query, sql.Composable):
        query = query.as_string(connection)
    if isinstance(query, bytes):
        query = query.lstrip()[:40].decode("latin-1")
    return str(query).lstrip()[:40].upper()
