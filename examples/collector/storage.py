"""Where the tickers go: the latest ones to Redis, which may be away, and all of them to PostgreSQL, once each."""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import redis

from resilience import ErrorRecoveryManager, OutcomeUnknown, ResilienceError
from resilience.integrations.psycopg2 import ResilientConnection, ResilientPool, run_transaction
from resilience.integrations.redis import resilient_redis

from .clients import Ticker

LISTING_AGE = 5  # seconds that a listing is good for
LOOK_BACK = 3600  # seconds in which holes are looked for

TABLE = """
CREATE TABLE IF NOT EXISTS tickers (
    exchange text, symbol text, at bigint, price numeric NOT NULL, run uuid NOT NULL, batch bigint NOT NULL,
    PRIMARY KEY (exchange, symbol, at))"""
INSERT = """
INSERT INTO tickers SELECT %s, new.symbol, new.at, new.price, %s, %s
FROM unnest(%s::text[], %s::bigint[], %s::numeric[]) AS new (symbol, at, price) ON CONFLICT DO NOTHING"""
HOLES = """
SELECT symbol, at + 1, next - 1 FROM (
    SELECT symbol, at, coalesce(lead(at) OVER (PARTITION BY symbol ORDER BY at), %s) AS next
    FROM tickers WHERE exchange = %s AND symbol = ANY(%s) AND at > %s) AS series
WHERE next > at + 1 ORDER BY at"""


class Cache:
    """Listings and latest prices in Redis. Its trouble is nobody else's: what it cannot say is asked elsewhere."""

    def __init__(self, url: str, manager: ErrorRecoveryManager) -> None:
        self._client = resilient_redis(url, manager)
        self._monitor = manager.monitor

    def listing(self, exchange: str, fetch: Callable[[], list[str]]) -> list[str]:
        """The symbols of an exchange: as remembered, else by `fetch`."""
        key = f"symbols:{exchange}"
        known = self._try(self._client.get, key)
        self._monitor.record_cache("symbols", hit=known is not None, miss=known is None)
        if known is not None:
            return list(json.loads(known))
        fetched = fetch()
        self._try(self._client.set, key, json.dumps(fetched), ex=LISTING_AGE)
        return fetched

    def publish(self, exchange: str, tickers: list[Ticker]) -> None:
        """Shows the latest price of each symbol to whoever reads the hash `latest:EXCHANGE`."""
        self._try(self._client.hset, f"latest:{exchange}", mapping={new.symbol: str(new.price) for new in tickers})

    def _try(self, command: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except (redis.RedisError, ResilienceError):  # counted and reported by the manager
            return None

    def close(self) -> None:
        self._client.close()


class Storage:
    """The table of tickers. Counts by exchange what it was given (`received`), what PostgreSQL has acknowledged as new
    (`stored`), and what was there already (`known`). Safe to share between threads.
    """

    def __init__(self, dsn: str, manager: ErrorRecoveryManager) -> None:
        self.run = str(uuid.uuid4())
        self.received: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self._books = threading.Lock()
        self._batches = itertools.count(1)
        self._unsure: list[tuple[str, int, int]] = []
        self._pool = ResilientPool(dsn, manager, minconn=1, maxconn=8)

    def prepare(self) -> None:
        """Makes the table where there is none; collectors that start together do it one by one."""
        self._query("SELECT pg_advisory_xact_lock(7117); " + TABLE)

    def save(self, exchange: str, tickers: list[Ticker]) -> None:
        """Stores what is new, all or nothing. When the answer to COMMIT is lost, `settle` finds out what came of it."""
        if not tickers:
            return
        with self._books:
            self.received[exchange] += len(tickers)
        batch = next(self._batches)
        columns = [list(column) for column in zip(*((new.symbol, new.at, new.price) for new in tickers), strict=True)]

        def insert(connection: ResilientConnection) -> int:
            with connection.cursor() as cursor:
                cursor.execute(INSERT, (exchange, self.run, batch, *columns))
                return int(cursor.rowcount)

        try:
            self._count(exchange, run_transaction(self._pool, insert), len(tickers))
        except OutcomeUnknown:
            self._unsure.append((exchange, batch, len(tickers)))
            raise

    def settle(self) -> None:
        """Counts the batches whose COMMIT was not answered, by looking."""
        while self._unsure:
            exchange, batch, size = unsure = self._unsure[0]
            [(new,)] = self._query("SELECT count(*) FROM tickers WHERE run = %s AND batch = %s", self.run, batch)
            self._count(exchange, new, size if new else 0)
            self._unsure.remove(unsure)

    def holes(self, exchange: str, symbols: list[str], until: int) -> list[tuple[str, int, int]]:
        """(symbol, first second, last second) of each gap before `until`, those of earlier runs included."""
        return self._query(HOLES, until, exchange, symbols, until - LOOK_BACK)

    def rows(self) -> list[tuple[str, str, int, Any]]:
        """Everything that this run has stored: exchange, symbol, second, price."""
        return self._query("SELECT exchange, symbol, at, price FROM tickers WHERE run = %s", self.run)

    def close(self) -> None:
        self._pool.close()

    def _count(self, exchange: str, new: int, sent: int) -> None:
        with self._books:
            self.stored[exchange] += new
            self.known[exchange] += sent - new

    def _query(self, statement: str, *parameters: Any) -> list[Any]:
        def ask(connection: ResilientConnection) -> list[Any]:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []

        return run_transaction(self._pool, ask)
