"""What came of a run: the books of service, database and exchanges side by side, and whether they agree."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

from .exchange import price
from .service import Service
from .stage import Stage


def make_report(
    service: Service, stage: Stage, seen: dict[str, Any], alerts: list[str], seconds: float
) -> dict[str, Any]:
    """Everything as plain data; `problems` is empty when nothing was lost and the books agree.

    `seen` is what the monitor saw while the workers still ran.
    """
    status = service.manager.status()
    rows = service.storage.rows()
    return {
        "seconds": round(seconds, 1),
        "symbols": sorted({symbol for symbols in service.wanted.values() for symbol in symbols}),
        "exchanges": {name: _books(name, service, stage, rows, status) for name in service.exchanges},
        "fallbacks": service.fallbacks,
        "cache": seen["caches"].get("symbols", {}),
        "workers": seen["workers"],
        "health": {**seen["health"], "lowest": min(service.lowest_score, seen["health"]["score"])},
        "operations": status["operations"],
        "alerts": alerts,
        "errors": status["errors"],
        "problems": _problems(service, stage, rows),
    }


def _books(
    name: str, service: Service, stage: Stage, rows: list[Any], status: dict[str, Any]
) -> dict[str, Any]:
    exchange, storage = stage.exchanges[name], service.storage
    breaker = status["breakers"].get(f"market_data:{name}", {})
    return {
        "requests": exchange.requests,
        "spoiled": exchange.spoiled,
        "served": exchange.served,
        "received": storage.received[name],
        "stored": storage.stored[name],
        "known": storage.known[name],
        "backfilled": service.filled[name],
        "rows": sum(row[0] == name for row in rows),
        "holes": sum(last - first + 1 for _, first, last in service.holes(name)),
        "breaker": breaker.get("state"),
        "rejected": breaker.get("rejected", 0),
    }


def _problems(service: Service, stage: Stage, rows: list[Any]) -> list[str]:
    """What does not agree, in words."""
    storage, found = service.storage, []
    in_table = Counter(row[0] for row in rows)
    for name, exchange in stage.exchanges.items():
        stored, received = storage.stored[name], storage.received[name]
        if stored != in_table[name]:
            found.append(f"{name}: {stored} tickers were acknowledged, {in_table[name]} are in PostgreSQL")
        if received > exchange.served:
            found.append(f"{name}: {received} tickers were received, {exchange.served} were served")
        if stored + storage.known[name] > received:
            found.append(f"{name}: more tickers were written than received")
        holes = service.holes(name)
        if holes:
            found.append(f"{name}: {len(holes)} gaps were not filled")
    wrong = [row for row in rows if row[3] != Decimal(price(*row[:3]))]
    if wrong:
        found.append(f"{len(wrong)} prices are not those of the exchange, such as {wrong[0]}")
    return found


COLUMNS = ("requests", "spoiled", "served", "received", "stored", "known", "backfilled", "rows", "holes", "rejected")
SHOWN, WIDTH = 6, 120  # groups of errors, characters of a line


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    cache, health, groups = report["cache"], report["health"], report["errors"]["groups"]
    running = sum(worker["is_running"] for worker in report["workers"].values())
    lines = [
        f"{report['seconds']} s; on two or more exchanges: {', '.join(report['symbols'])}",
        "",
        f"{'':<10}" + "".join(f"{column:>11}" for column in COLUMNS) + "  breaker",
    ]
    for name, books in report["exchanges"].items():
        figures = "".join(f"{books[column]:>11}" for column in COLUMNS)
        lines.append(f"{name:<10}{figures}  {books['breaker']}")
    lines += [
        "",
        f"cache      {cache.get('hits', 0)} hits, {cache.get('misses', 0)} misses",
        f"fallbacks  {report['fallbacks']} times the listings were fetched one exchange at a time",
        f"workers    {running} of {len(report['workers'])} running",
        f"health     {health['score']} of 100, {health['lowest']} at the lowest",
        *(f"           less {reason['points']}: {reason['reason']}" for reason in health["deductions"]),
        f"alerts     {'; '.join(report['alerts']) or 'none'}",
        f"errors     {len(groups)} kinds" + (", the most frequent:" if groups else ""),
        *(_line_of(group) for group in groups[:SHOWN]),
        "",
        *(report["problems"] or ["nothing was lost: exchanges, collector and PostgreSQL agree"]),
    ]
    return "\n".join(lines)


def _line_of(group: dict[str, Any]) -> str:
    text = f"{group['count']:>7} x {group['where']}: {group['type']}: {group['message']}"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
