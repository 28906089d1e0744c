"""Clients of an exchange: requests through `resilient_session`, or ccxt on such a session. One breaker per exchange."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

import requests

from resilience import ErrorRecoveryManager
from resilience.integrations.requests import resilient_session

LONGEST = 500  # candles of one answer


class Ticker(NamedTuple):
    """What a symbol cost at an exchange at a time (seconds since 1970)."""

    exchange: str
    symbol: str
    at: int
    price: Decimal


class Client(Protocol):
    """What the service needs of an exchange. Not to be shared between threads."""

    def symbols(self) -> list[str]:
        """The symbols that are traded."""

    def tickers(self, symbols: list[str]) -> list[Ticker]:
        """The latest price of each symbol."""

    def history(self, symbol: str, first: int, last: int) -> list[Ticker]:
        """The prices of the seconds from `first` to `last`, the first 500 of them."""

    def close(self) -> None:
        """Closes its connections."""


def session(manager: ErrorRecoveryManager, exchange: str, own: requests.Session | None = None) -> requests.Session:
    """A session whose requests are calls of `market_data`, behind the breaker `market_data:EXCHANGE`."""
    return resilient_session(manager, own, operation="market_data", key=lambda request: exchange)


class RequestsClient:
    """Speaks to the REST API itself."""

    def __init__(self, manager: ErrorRecoveryManager, exchange: str, url: str) -> None:
        self.exchange, self.url = exchange, url
        self.session = session(manager, exchange)

    def _get(self, path: str, **query: Any) -> Any:
        response = self.session.get(f"{self.url}/api/v3/{path}", params=query)
        response.raise_for_status()
        return response.json()

    def symbols(self) -> list[str]:
        listed = self._get("exchangeInfo")["symbols"]
        return [f"{market['baseAsset']}/{market['quoteAsset']}" for market in listed if market["status"] == "TRADING"]

    def tickers(self, symbols: list[str]) -> list[Ticker]:
        names = {symbol.replace("/", ""): symbol for symbol in symbols}
        return [
            Ticker(self.exchange, names[entry["symbol"]], entry["closeTime"] // 1000, Decimal(entry["lastPrice"]))
            for entry in self._get("ticker/24hr", symbols=json.dumps(list(names), separators=(",", ":")))
        ]

    def history(self, symbol: str, first: int, last: int) -> list[Ticker]:
        candles = self._get(
            "klines", symbol=symbol.replace("/", ""), interval="1s", startTime=first * 1000, endTime=last * 1000,
            limit=LONGEST,
        )  # fmt: skip
        return [Ticker(self.exchange, symbol, at // 1000, Decimal(close)) for at, _, _, _, close, *_ in candles]

    def close(self) -> None:
        self.session.close()


class CcxtClient:
    """The same through ccxt, which keeps its own session: it is made resilient in place."""

    def __init__(self, manager: ErrorRecoveryManager, exchange: str, url: str) -> None:
        try:
            import ccxt
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("--client ccxt needs: pip install 'resilience-toolkit[ccxt]'") from error
        self.exchange = exchange
        self.api = ccxt.binance({"enableRateLimit": False, "options": {"fetchMarkets": {"types": ["spot"]}}})
        self.api.urls["api"] = {**self.api.urls["api"], "public": f"{url}/api/v3"}
        session(manager, exchange, self.api.session)

    def symbols(self) -> list[str]:
        return list(self.api.load_markets(reload=True))

    def tickers(self, symbols: list[str]) -> list[Ticker]:
        found = self.api.fetch_tickers(symbols).values()
        return [self._ticker(entry["symbol"], entry["timestamp"], entry["last"]) for entry in found]

    def history(self, symbol: str, first: int, last: int) -> list[Ticker]:
        wanted = min(LONGEST, last - first + 1)
        candles = self.api.fetch_ohlcv(symbol, "1s", since=first * 1000, limit=wanted)
        return [self._ticker(symbol, at, close) for at, _, _, _, close, _ in candles]

    def close(self) -> None:
        self.api.session.close()

    def _ticker(self, symbol: str, milliseconds: int, price: float) -> Ticker:
        return Ticker(self.exchange, symbol, milliseconds // 1000, Decimal(str(price)))


CLIENTS: dict[str, type[RequestsClient] | type[CcxtClient]] = {"requests": RequestsClient, "ccxt": CcxtClient}
