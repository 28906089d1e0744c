"""Fake exchanges on 127.0.0.1: they speak the part of Binance's public REST API that is needed here, and misbehave.

The price of a symbol changes each second and depends on exchange, symbol and second only, so that every row in the
database can be checked, and an exchange that was dead knows its history when it returns.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterable

from resilience import RetryPolicy
from resilience.testing import Connection, FaultServer, Request

LISTED = {
    "binance": ("BTC/USDT", "ETH/USDT", "SOL/USDT", "XRP/USDT", "ADA/USDT"),
    "kraken": ("BTC/USDT", "ETH/USDT", "ADA/USDT", "DOT/USDT"),
    "bybit": ("BTC/USDT", "SOL/USDT", "XRP/USDT", "DOGE/USDT"),
    "coinbase": ("BTC/USDT", "ETH/USDT", "SOL/USDT", "LTC/USDT"),
}
one_listing_at_a_time = threading.Lock()  # all of them have their listings from one provider, who serves one at a time


def price(exchange: str, symbol: str, second: int) -> str:
    """What a symbol costs at an exchange in a second."""
    return f"{100 + zlib.crc32(f'{exchange} {symbol} {second}'.encode()) / 1e6:.2f}"


class Exchange:
    """One exchange, which can die and return; `faults` is the share of its requests that go wrong.

    Its books: `requests` that came, `served` tickers and candles that went out whole, `spoiled` requests.
    """

    def __init__(self, name: str, *, faults: float = 0.0) -> None:
        self.name = name
        self.faults = faults
        self.requests = self.served = self.spoiled = 0
        self._symbols = {symbol.replace("/", ""): symbol for symbol in LISTED[name]}
        self._books = threading.Lock()
        self._server = FaultServer(behave=self._answer, seed=zlib.crc32(name.encode())).start()
        self.url = self._server.url

    def die(self) -> None:
        """From now on its port refuses connections; those that are open are cut."""
        self._server.close()

    def revive(self) -> None:
        """It serves again, at the same URL; another program may hold its port for a moment."""
        patient = RetryPolicy(max_retries=20, base_delay=0.1, backoff="constant", retry_on=OSError)
        self._server = patient.call(FaultServer, port=self._server.port, behave=self._answer).start()

    close = die

    def _answer(self, request: Request, connection: Connection) -> None:
        with self._books:
            self.requests += 1
        if self._server.draw() < self.faults:
            return self._spoil(connection)
        name = request.path.rpartition("/")[2]
        if name == "exchangeInfo":
            return self._list(connection)
        if name == "24hr":
            return self._send(connection, self._tickers(json.loads(request.query["symbols"])))
        if name == "klines":
            return self._send(connection, self._candles(request))
        return connection.answer(404, b"no such resource\n")

    def _spoil(self, connection: Connection) -> None:
        with self._books:
            self.spoiled += 1
        kind = int(4 * self._server.draw())
        if kind == 0:
            connection.answer(503, b"try again later\n")
        elif kind == 1:
            connection.answer(429, b"slow down\n", Retry_After="1")
        elif kind == 2:
            connection.reset()
        else:
            connection.pause(30.0)  # silence, until somebody loses patience

    def _list(self, connection: Connection) -> None:
        if not one_listing_at_a_time.acquire(blocking=not self.faults):
            return connection.answer(503, b"one at a time\n")
        try:
            connection.pause(0.1 if self.faults else 0.0)
            listed = [
                {"symbol": market, "status": "TRADING", "baseAsset": symbol[:-5], "quoteAsset": symbol[-4:]}
                for market, symbol in self._symbols.items()
            ]
            return connection.answer(200, json.dumps({"symbols": listed}).encode(), Content_Type="application/json")
        finally:
            one_listing_at_a_time.release()

    def _tickers(self, markets: Iterable[str]) -> list[object]:
        now = int(time.time())
        return [
            {"symbol": market, "lastPrice": price(self.name, self._symbols[market], now), "closeTime": now * 1000}
            for market in markets
        ]

    def _candles(self, request: Request) -> list[object]:
        symbol = self._symbols[request.query["symbol"]]
        first, end = int(request.query["startTime"]) // 1000, int(request.number("endTime", 1e15)) // 1000
        last = min(end, int(time.time()), first + int(request.number("limit", 500)) - 1)
        candles: list[object] = []
        for second in range(first, last + 1):
            cost = price(self.name, symbol, second)
            candles.append([second * 1000, cost, cost, cost, cost, "1.0", second * 1000 + 999])
        return candles

    def _send(self, connection: Connection, entries: list[object]) -> None:
        connection.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        with self._books:
            self.served += len(entries)
