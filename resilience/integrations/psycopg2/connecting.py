"""Making a connection within a deadline: on a thread that can be left behind, as libpq's limit has whole seconds."""

from __future__ import annotations

import math
import multiprocessing
import threading
from typing import Any

import psycopg2
from psycopg2 import extensions

from ...workers.threads import ThreadWorkers
from .connection import ResilientConnection

CHECKED_EVERY = 500  # milliseconds, while a query runs
_connectors = ThreadWorkers("database connections", max_workers=32, max_abandoned=32)


class Making:
    """A connection on its way; closed on arrival when nobody waits for it any more."""

    def __init__(self, dsn: str, settings: dict[str, Any], left: float | None) -> None:
        self._dsn = dsn
        self._settings = dict(settings)
        if left is not None:  # so that an attempt that was left behind ends soon
            self._settings.setdefault("connect_timeout", max(2, math.ceil(left) + 1))
        self._lock = threading.Lock()
        self._is_wanted = True

    def run(self, seconds: float | None) -> ResilientConnection:
        """The connection, or its error, or `DeadlineExceeded`."""
        try:
            made: ResilientConnection = _connectors.call(self._make, (), None, seconds)
        except BaseException:
            with self._lock:
                self._is_wanted = False
            raise
        return made

    def _make(self) -> ResilientConnection | None:
        made: ResilientConnection
        made = psycopg2.connect(self._dsn, connection_factory=ResilientConnection, **self._settings)
        _mind_the_client(made)
        with self._lock:
            if self._is_wanted:
                made.prepare_watch()
                return made
        made.close()
        return None


def _mind_the_client(made: ResilientConnection) -> None:
    """Lets the server end a query whose client, a worker process, was killed (PostgreSQL 14 and newer can)."""
    if multiprocessing.parent_process() is None:
        return
    made.autocommit = True
    try:
        with extensions.cursor(made) as plain:
            plain.execute(f"SET client_connection_check_interval = {CHECKED_EVERY}")
    except psycopg2.Error:
        pass
    made.autocommit = False
