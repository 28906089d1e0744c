"""What is seen of a process, as text for people."""

from __future__ import annotations

import shlex
from typing import Any

from ..output import redacted, table

MIB = 1 << 20


def short(seconds: float | None) -> str:
    """A duration in a few characters: 850ms, 12.3s, 4m05s, 3h12m."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02}s"
    return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02}m"


def share(part: float | None, whole: float | None) -> str:
    """A share in per cent, `-` where there is none."""
    return "-" if part is None or not whole else f"{part / whole:.0%}"


def number(value: Any) -> str:
    """A number, `?` where nobody tells it."""
    return "?" if value is None else str(value)


def command_of(seen: dict[str, Any]) -> str:
    """The command line, without passwords, cut to a line."""
    words = seen.get("command") or []
    return " ".join(redacted(shlex.join(words)).split())[:100] if words else "?"


def screen(seen: dict[str, Any]) -> list[str]:
    """All that is seen of one process, line by line."""
    lines = [*_head(seen), ""]
    for part in (_operations, _breakers, _rates, _fan_outs, _workers, _pools, _alerts, _progress):
        lines += part(seen)
    if seen.get("hint"):
        lines += ["", seen["hint"]]
    return lines


def _head(seen: dict[str, Any]) -> list[str]:
    process = seen["process"]
    rss = "?" if process["rss"] is None else f"{process['rss'] / MIB:.0f} MiB"
    cpu = "?" if process["cpu"] is None else f"{process['cpu']:.0f} %"
    files = number(process["fds"]) + (f"/{process['max_fds']}" if process["max_fds"] else "")
    lines = [
        f"pid {seen['pid']}  {command_of(seen)}",
        f"up {short(process['up'])}  {process['state']}  cpu {cpu}  rss {rss}  threads {number(seen['threads'])}"
        f"  fds {files}  children {number(process['children'])}",
    ]
    if seen["operations"] is not None:
        oldest = seen["operations"][0]["age"] if seen["operations"] else None
        abandoned = sum((seen["abandoned"] or {}).values())
        text = f"operations {len(seen['operations'])} (oldest {short(oldest)})  abandoned {abandoned}"
        text += f"  alerts {len(seen['alerts'])}"
        if any(seen.get("degradation_mode") or ()):
            text += "  DEGRADATION MODE"
        lines.append(text)
    return lines


def _operations(seen: dict[str, Any]) -> list[str]:
    rows = [
        (entry["operation"], entry["operation_id"], short(entry["age"]), short(entry["time_left"]),
         number(entry["attempt"] or "-"), entry["phase"], entry["where"])
        for entry in seen["operations"] or ()
    ]  # fmt: skip
    return _table(("OPERATION", "ID", "AGE", "LEFT", "ATTEMPT", "PHASE", "WHERE"), rows)


def _breakers(seen: dict[str, Any]) -> list[str]:
    rows = []
    every = sorted((seen["breakers"] or {}).items(), key=lambda pair: (pair[1]["state"] == "closed", pair[0]))
    for name, entry in every:
        state = entry["state"]
        shown = state if state == "closed" else state.upper()
        rows.append(
            (name, shown, short(entry.get("age")), short(entry.get("retry_after")) if state != "closed" else "-",
             entry.get("successes", 0), entry.get("failures", 0), entry.get("rejected", 0),
             entry.get("last_error") or entry.get("reason") or "")
        )  # fmt: skip
    return _table(("BREAKER", "STATE", "FOR", "RETRY IN", "OK", "FAILED", "REJECTED", "LAST ERROR"), rows)


def _rates(seen: dict[str, Any]) -> list[str]:
    rows = []
    for name, figures in (seen["rates"] or {}).items():
        calls = figures["calls"]
        if not calls:
            continue
        rate = figures["throughput"]
        rows.append(
            (name, calls, "-" if rate is None else f"{rate:.1f}", share(figures["successes"], calls),
             share(figures["retries"], calls), share(figures["timeouts"], calls), figures["rejections"],
             short(figures["p50"]), short(figures["p95"]), short(figures["p99"]))
        )  # fmt: skip
    headers = ("CALLS OF", "CALLS", "PER S", "OK", "RETRIES", "TIMEOUTS", "REJECTED", "P50", "P95", "P99")
    return _table(headers, rows)


def _fan_outs(seen: dict[str, Any]) -> list[str]:
    rows = [
        (entry["operation"], entry["read"], entry["done"], entry["running"], entry["width"], entry["degraded"] or "-")
        for entry in seen["fan_outs"] or ()
    ]
    return _table(("FAN-OUT", "STARTED", "DONE", "RUNNING", "WIDTH", "DEGRADED"), rows)


def _workers(seen: dict[str, Any]) -> list[str]:
    rows = [
        (name, "yes" if entry["is_running"] else "NO", entry["error_count"])
        for name, entry in (seen["workers"] or {}).items()
    ]
    return _table(("WORKER", "RUNS", "ERRORS"), rows)


def _pools(seen: dict[str, Any]) -> list[str]:
    rows = [
        (name, entry["busy"], entry["idle"], entry["queued"], entry["abandoned"], entry["max_abandoned"])
        for name, entry in (seen["pools"] or {}).items()
    ]
    return _table(("THREADS OF", "BUSY", "IDLE", "QUEUED", "ABANDONED", "AT MOST"), rows)


def _alerts(seen: dict[str, Any]) -> list[str]:
    rows = [
        (alert["rule"], alert.get("operation") or alert.get("resource") or "-", f"{alert['value']:.3g}",
         f"{alert['threshold']:g}")
        for alert in seen["alerts"] or ()
    ]  # fmt: skip
    return _table(("ALERT", "OF", "VALUE", "THRESHOLD"), rows)


def _progress(seen: dict[str, Any]) -> list[str]:
    return [f"{name}: {entry['text']}" for name, entry in (seen.get("progress") or {}).items()]


def _table(headers: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [*table(headers, rows).splitlines(), ""] if rows else []


def stacks(seen: dict[str, Any]) -> list[str]:
    """The stacks: of each operation with its age and time left, then of the threads that run none."""
    if seen.get("dump"):
        return [*_head(seen), "", seen["dump"].rstrip()]
    lines = [*_head(seen), ""]
    shown = set()
    for entry in seen["operations"] or ():
        left = "no deadline" if entry["time_left"] is None else f"{short(entry['time_left'])} left"
        lines.append(
            f"{entry['operation']} ({entry['operation_id']}): {short(entry['age'])} old, {left}, {entry['phase']},"
            f" thread {entry['thread']!r}"
        )
        lines += [entry.get("stack", "").rstrip() or "  (its thread has ended)", ""]
        shown.add(entry["thread"])
    for name, text in (seen.get("stacks") or {}).items():
        if name not in shown:
            lines += [f"thread {name!r}, no operation of its own", text.rstrip(), ""]
    return lines


def listing(reports: list[dict[str, Any]]) -> str:
    """A line for each process with an agent."""
    rows = []
    for seen in reports:
        operations = seen["operations"]
        oldest = operations[0]["age"] if operations else None
        refusing = [name for name, entry in (seen["breakers"] or {}).items() if "open" in entry["state"]]
        count = "?" if operations is None else str(len(operations))
        rows.append(
            (seen["pid"], short(seen["process"]["up"]), count, short(oldest), len(refusing),
             sum((seen["abandoned"] or {}).values()), command_of(seen))
        )  # fmt: skip
    return table(("PID", "UP", "OPERATIONS", "OLDEST", "NOT CLOSED", "ABANDONED", "COMMAND"), rows)
