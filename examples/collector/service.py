"""The collector itself: supervised workers that find symbols, collect tickers, fill gaps and watch over the others."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from resilience import DeadlineExceeded, ErrorRecoveryManager, RetryPolicy, WorkerGroup, deadline, fan_out, sleep

from .clients import Client
from .storage import Cache, Storage

MIN_EXCHANGES = 2  # a symbol is collected when it is traded on so many
EVERY = 1.0  # seconds from one ticker to the next
FRESH = 2.0  # seconds that are left to the tickers before they are called missing
SLOWEST = 2.0  # seconds between two attempts at an exchange that fails


class Service:
    """Collects from every exchange what is traded on at least two of them.

    `connect` makes a client of an exchange; each kind of worker has clients of its own, for they are not shared between
    threads. The breaker of an exchange is shared all the same: it belongs to the manager, and to its store.
    """

    def __init__(
        self, manager: ErrorRecoveryManager, exchanges: Mapping[str, str], cache: Cache, storage: Storage,
        connect: Callable[[ErrorRecoveryManager, str, str], Client],
    ) -> None:  # fmt: skip
        self.manager, self.cache, self.storage = manager, cache, storage
        self.exchanges = tuple(exchanges)
        self.listed: dict[str, list[str]] = {}
        self.wanted: dict[str, list[str]] = {}
        self.filled: Counter[str] = Counter()  # seconds of gaps by exchange
        self.fallbacks = 0  # discoveries that went on one exchange at a time
        self.lowest_score = 100.0
        self._ended: int | None = None  # when the series end
        self._listing, self._latest, self._past = (
            {name: connect(manager, name, url) for name, url in exchanges.items()} for _ in range(3)
        )

    def workers(self) -> WorkerGroup:
        """The workers, not yet started: one per exchange, and three for all of them."""
        group = WorkerGroup(self.manager, name="collector")
        group.add("symbols", self.discover, 2 * EVERY)
        group.add("backfill", self.backfill, 2 * EVERY)
        group.add("health", self.watch, EVERY)
        for name in self.exchanges:
            self.manager.protect(f"tickers {name}", critical=True)  # its error rate may raise the alarm
            group.add(f"tickers {name}", partial(self.collect, name), EVERY,
                      max_errors=20, max_interval=SLOWEST, restart_after=SLOWEST)  # fmt: skip
        return group

    def warm_up(self, patience: float) -> None:
        """Waits until every exchange has delivered something, for at most `patience` seconds."""
        with contextlib.suppress(DeadlineExceeded), deadline(patience):
            while not all(self.storage.stored[name] for name in self.exchanges):
                sleep(0.05)

    def discover(self) -> None:
        """Which symbols are traded where: all exchanges at once, one after the other when half of them fail."""
        found = fan_out(self._list, self.exchanges, operation="symbol_fetch", manager=self.manager)
        self.fallbacks += found.degraded is not None
        self.listed.update({item.item: item.value for item in found.items if item.ok})  # else what it last listed
        traded = Counter(symbol for symbols in self.listed.values() for symbol in symbols)
        for name, symbols in self.listed.items():
            self.wanted[name] = [symbol for symbol in symbols if traded[symbol] >= MIN_EXCHANGES]
        if not self.listed:
            found.raise_for_errors()

    def _list(self, exchange: str) -> list[str]:
        return self.cache.listing(exchange, self._listing[exchange].symbols)

    def collect(self, exchange: str) -> None:
        """The latest tickers of one exchange, to PostgreSQL and then to the cache."""
        symbols = self.wanted.get(exchange)
        if not symbols:
            return
        tickers = self._latest[exchange].tickers(symbols)
        self.storage.save(exchange, tickers)
        self.cache.publish(exchange, tickers)

    def backfill(self) -> None:
        """Fills the gaps in the table - of an outage, of a missed second, of an earlier run - from the exchanges."""
        self.storage.settle()
        fan_out(self._fill, self.exchanges, operation="backfill", manager=self.manager)

    def _fill(self, exchange: str) -> None:
        for symbol, first, last in self.holes(exchange):
            past = self._past[exchange].history(symbol, first, last)
            self.storage.save(exchange, past)
            self.filled[exchange] += len(past)

    def finish(self, patience: float) -> None:
        """Fills what gaps are left once the workers have ended, within `patience` seconds."""
        self._ended = int(time.time())
        until_none_is_left = RetryPolicy(max_retries=None, base_delay=0.5, backoff="constant", retry_on_result=bool)
        with contextlib.suppress(DeadlineExceeded), deadline(patience):
            until_none_is_left.call(self._holes_after_backfill)

    def _holes_after_backfill(self) -> int:
        self.backfill()
        return sum(len(self.holes(name)) for name in self.exchanges)

    def holes(self, exchange: str) -> list[tuple[str, int, int]]:
        """The gaps in the series of an exchange: symbol, first and last second."""
        until = self._ended or int(time.time() - FRESH)
        return self.storage.holes(exchange, self.wanted.get(exchange, []), until)

    def close(self) -> None:
        """Closes the clients."""
        for clients in (self._listing, self._latest, self._past):
            for client in clients.values():
                client.close()

    def watch(self) -> None:
        """Judges the alerts, and keeps the lowest health score."""
        self.manager.alerts.evaluate()
        self.lowest_score = min(self.lowest_score, self.manager.monitor.report()["health"]["score"])
