"""What runs came to, added up: operations, errors by group, alerts; from any number of journals and accounts."""

from __future__ import annotations

import re
from typing import Any

from resilience.monitoring.accounts import counts_of
from resilience.monitoring.error_report import normalised
from resilience.monitoring.histogram import Histogram

from ..collect.answer import NO_ANSWER

SUMMED = ("calls", "successes", "failures", "retries", "timeouts", "rejections", "fallbacks", "cancelled")
OUT_OF_TIME = rf"tim(ed? ?out|e limit)|deadline|^{NO_ANSWER}"  # in the error of a record
SHARES = (0.50, 0.95, 0.99)


class Figures:
    """The sum of all that was read."""

    def __init__(self) -> None:
        self.sources: list[dict[str, Any]] = []
        self._operations: dict[str, dict[str, int]] = {}
        self._durations: dict[str, Histogram] = {}
        self._groups: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self._alerts: list[dict[str, Any]] = []

    # -- reading -------------------------------------------------------------------------------------------------

    def add_journal(self, path: str, records: list[dict[str, Any] | None]) -> None:
        """Adds the final records of a journal of `collect`; each host is an operation."""
        finals = [record for record in records if record is not None and isinstance(record.get("ok"), bool)]
        for record in finals:
            self._add_final(record)
        last = {str(record.get("key", record.get("url"))): record["ok"] for record in finals}
        self.sources.append(
            {"journal": path, "records": len(finals), "items": len(last), "ok": sum(last.values()),
             "torn": sum(record is None for record in records)}
        )  # fmt: skip

    def _add_final(self, record: dict[str, Any]) -> None:
        host = str(record.get("host") or "(no host)")
        attempts = record.get("attempts")
        tried = attempts if isinstance(attempts, int) else 0
        error = str(record.get("error") or "")
        counts = self._counts_of(host)
        counts["calls"] += 1
        if not tried:  # refused by its breaker, or out of time: nothing was sent
            counts["rejections"] += 1
        else:
            counts["successes" if record["ok"] else "failures"] += 1
            counts["retries"] += tried - 1
            counts["timeouts"] += not record["ok"] and bool(re.search(OUT_OF_TIME, error, re.I))
            if isinstance(elapsed := record.get("elapsed_s"), (int, float)):
                self._durations[host].add(elapsed)
        if not record["ok"]:
            at = record.get("at") if isinstance(record.get("at"), (int, float)) else None
            category = str(record.get("category") or "transient")
            kind = str(record["status"]) if record.get("status") else error.partition(":")[0].partition(" ")[0]
            self._group(category, kind, normalised(error), host, 1, at, at, str(record.get("url", "")))

    def add_account(self, key: str, account: dict[str, Any]) -> None:
        """Adds what a manager left in a store."""
        for name, figures in account.get("operations", {}).items():
            counts = self._counts_of(name)
            for counter in SUMMED:
                counts[counter] += int(figures.get(counter) or 0)
            self._durations[name].merge(counts_of(account, name))
        errors = account.get("errors", {})
        for group in errors.get("groups", ()):
            self._group(
                group["category"], group["type"], group["message"], group["where"], group["count"],
                group["first_seen"], group["last_seen"], group["sample"],
            )  # fmt: skip
        origin = {"process": f"{account.get('host')}:{account.get('pid')}"}
        self._alerts += [{**alert, **origin} for alert in account.get("alerts", ())]
        told = ("host", "pid", "program", "began", "written", "ended", "breakers")
        self.sources.append({"account": key, **{name: account.get(name) for name in told}})

    def _counts_of(self, name: str) -> dict[str, int]:
        self._durations.setdefault(name, Histogram())
        return self._operations.setdefault(name, dict.fromkeys(SUMMED, 0))

    def _group(
        self, category: str, kind: str, message: str, where: str, count: int, first: Any, last: Any, sample: str
    ) -> None:
        group = self._groups.setdefault(
            (category, kind, message, where), {"count": 0, "first_seen": first, "last_seen": last, "sample": sample}
        )
        group["count"] += count
        group["first_seen"] = min((at for at in (group["first_seen"], first) if at is not None), default=None)
        group["last_seen"] = max((at for at in (group["last_seen"], last) if at is not None), default=None)

    # -- showing -------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data: sources, operations, errors (errors, total, groups), alerts."""
        operations = {}
        for name, counts in sorted(self._operations.items()):
            finished = counts["successes"] + counts["failures"]
            p50, p95, p99 = self._durations[name].percentiles(SHARES)
            rate = counts["successes"] / finished if finished else None
            operations[name] = {**counts, "success_rate": rate, "p50": p50, "p95": p95, "p99": p99}
        groups = [
            {"category": category, "type": kind, "message": message, "where": where, **group}
            for (category, kind, message, where), group in self._groups.items()
        ]
        groups.sort(key=lambda group: -group["count"])
        errors = sum(group["count"] for group in groups)
        total = max(errors, sum(counts["calls"] for counts in self._operations.values()))
        return {
            "sources": self.sources,
            "operations": operations,
            "errors": {"errors": errors, "total": total, "groups": groups},
            "alerts": sorted(self._alerts, key=lambda alert: (not alert.get("firing"), alert.get("since") or 0.0)),
        }
