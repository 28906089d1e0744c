"""The troubleshooting lists of the specification as checks: each with what was measured, pure functions of a report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from resilience.monitoring.alerts import MIN_CALLS, THRESHOLDS

from .words import share, short

OK, WARN, BAD, UNKNOWN = "ok", "warn", "bad", "unknown"
STUCK_AFTER = 3.0  # times its own timeout without having closed
TIGHT = 0.8  # of a timeout, used by one call in a hundred
TOO_LONG = 60.0  # seconds for an operation that has no deadline at all
SKEW = 1.0  # seconds

STUCK_OPEN, STORM, LEAK = "breaker stuck open", "retry storm", "resource leak"
BLOCKED, EXHAUSTED, SKEWED = "blocking call", "pool exhausted", "clock skew"

BREAKERS, RETRIES, LEAKS = "Circuit Breaker Stuck Open", "High Retry Rates", "Resource Leaks"
TIMEOUTS, CLOCKS = "Timeout Issues", "Clocks"


@dataclass(frozen=True, slots=True)
class Check:
    """One question, its answer and what was measured; `fault` names what a bad answer means, `advice` what to do."""

    list: str
    item: str
    verdict: str
    measured: str
    fault: str | None = None
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The check as plain data."""
        return asdict(self)


def all_checks(seen: dict[str, Any], connect: Callable[[str], str | None]) -> list[Check]:
    """Every check on one report. `connect(name)` tries a breaker named host:port; its words, None where it cannot."""
    if seen["agent"] != "answered":
        return [_unanswered(seen)]
    return [
        *_service_health(seen), *_connectivity(seen, connect), *_error_log(seen),
        *_retry_rates(seen), *_contention(seen), *_retry_policies(seen),
        *_usage(seen), *_leaks(seen), *_threads(seen),
        *_timeout_settings(seen), *_blocking(seen), *_performance(seen),
        *_clocks(seen),
    ]  # fmt: skip


def _unanswered(seen: dict[str, Any]) -> Check:
    item = "Check for blocking operations"
    state = seen["process"]["state"]
    if seen["agent"] == "none":
        return Check(TIMEOUTS, item, UNKNOWN, f"{seen['hint']}; the process is {state}")
    if state == "stopped":
        return Check(TIMEOUTS, item, BAD, "the process is stopped (SIGSTOP)", BLOCKED, f"kill -CONT {seen['pid']}")
    where = _first_frames(seen.get("dump"))
    measured = f"the agent did not answer: a C call holds the GIL, {where}" if where else str(seen["hint"])
    return Check(TIMEOUTS, item, BAD, measured, BLOCKED, 'give that call isolation="process": only a kill ends it')


def _first_frames(dump: str | None) -> str:
    """Where the thread stands that took the signal, or the last one shown: the main thread."""
    parts = re.split(r"^(?=Thread 0x|Current thread 0x)", dump or "", flags=re.M)
    chosen = next((part for part in parts if part.startswith("Current")), parts[-1])
    frames = [line.strip() for line in chosen.splitlines() if line.strip().startswith("File ")]
    return "; called from ".join(frames[:2])


def _found(name: str, item: str, checks: list[Check], fine: str) -> Iterator[Check]:
    """The checks that found something; one that says what is fine where none did."""
    yield from checks or [Check(name, item, OK, fine)]


# -- 1. Circuit Breaker Stuck Open ---------------------------------------------------------------------------------


def _service_health(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Check service health"
    found = []
    for name, entry in seen["breakers"].items():
        if entry["state"] in ("closed", "disabled", "metrics_only"):
            continue
        stuck, why = _is_stuck(entry)
        measured = f"{name!r} is {entry['state']}, not closed for {short(entry['not_closed_for'])}{why}"
        measured += f"; {entry['failures_in_a_row']} failures in a row, {entry['rejected']} calls refused"
        advice = f"resilience breakers reset {name!r} once the service answers" if stuck else ""
        verdict = BAD if stuck else WARN
        found.append(Check(BREAKERS, item, verdict, measured, STUCK_OPEN if stuck else None, advice))
    yield from _found(BREAKERS, item, found, f"{len(seen['breakers'])} breakers, all closed")


def _is_stuck(entry: dict[str, Any]) -> tuple[bool, str]:
    """Whether a breaker will not come back by itself, and why it is thought so."""
    timeout, long = entry.get("timeout"), entry.get("not_closed_for") or 0.0
    if entry["state"] == "forced_open" and entry["retry_after"] is None:
        return True, f", forced open without an end ({entry['reason']})"
    if long > THRESHOLDS["breaker_open"]:
        return True, f" (alert: {THRESHOLDS['breaker_open']:g} s)"
    if timeout and long >= STUCK_AFTER * timeout:
        return True, f", {long / timeout:.0f} times its timeout of {short(timeout)}"
    return False, f" (timeout {short(timeout)})"


def _connectivity(seen: dict[str, Any], connect: Callable[[str], str | None]) -> Iterator[Check]:
    item = "Verify network connectivity"
    found = []
    for name, entry in seen["breakers"].items():
        if entry["state"] in ("open", "half_open", "forced_open") and (words := connect(name)) is not None:
            answered = words.startswith("connected")
            found.append(Check(BREAKERS, item, OK if answered else WARN, f"{name}: {words}"))
    yield from _found(BREAKERS, item, found, "no open breaker is named after a host:port to connect to")


def _error_log(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Review error logs for root cause"
    groups = sorted((group for report in seen["errors"] for group in report["groups"]), key=lambda g: -g["count"])
    last = {name: entry["last_error"] for name, entry in seen["breakers"].items() if entry.get("last_error")}
    found = [
        Check(BREAKERS, item, WARN, f"{group['count']}x {group['category']} {group['type']}: {group['message']}"
              + (f" at {group['where']}" if group["where"] else ""))
        for group in groups[:3]
    ]  # fmt: skip
    if not found:
        found = [Check(BREAKERS, item, WARN, f"last error at {name!r}: {error}") for name, error in last.items()][:3]
    yield from _found(BREAKERS, item, found, "no errors")


# -- 2. High Retry Rates --------------------------------------------------------------------------------------------


def _retry_rates(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Monitor service performance"
    found = []
    for name, figures in seen["rates"].items():
        recent = figures["recent"]
        calls, retries = recent.get("calls", 0), recent.get("retries", 0)
        if calls and retries > THRESHOLDS["retry_rate"] * calls:
            measured = (
                f"{name!r}: {retries} retries for {calls} calls in five minutes ({share(retries, calls)},"
                f" threshold {THRESHOLDS['retry_rate']:.0%}); {share(recent['failures'], calls)} failed,"
                f" p95 {short(figures['p95'])}"
            )
            sure = calls >= MIN_CALLS
            advice = "a RetryBudget bounds what retries add; a breaker stops them while the service is down"
            found.append(Check(RETRIES, item, BAD if sure else WARN, measured, STORM if sure else None, advice))
    fine = f"no operation above {THRESHOLDS['retry_rate']:.0%} retries a call in five minutes"
    yield from _found(RETRIES, item, found, fine)


def _contention(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Check for resource contention"
    found = [Check(RETRIES, item, BAD, words, EXHAUSTED, advice) for words, advice in _exhausted(seen)]
    yield from _found(RETRIES, item, found, f"{len(seen['pools'])} sets of threads, none full")


def _exhausted(seen: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, pool in seen["pools"].items():
        if pool["abandoned"] and pool["abandoned"] >= pool["max_abandoned"]:
            yield (f"threads of {name!r}: {pool['abandoned']} of {pool['max_abandoned']} abandoned calls, every further"
                   " call is refused", "find what they hang in: resilience top PID --dump")  # fmt: skip
        elif pool["busy"] >= pool["max_workers"] and pool["queued"]:
            yield (f"threads of {name!r}: {pool['busy']} of {pool['max_workers']} busy, {pool['queued']} calls queued",
                   "shorten the calls or limit who may start them")  # fmt: skip
    for name, guard in seen["guards"].items():
        slots = guard.get("bulkhead")
        if slots and slots["in_flight"] >= slots["max_concurrent"]:
            taken = f"{slots['in_flight']} of {slots['max_concurrent']} slots taken, {slots['queued']} calls wait"
            yield f"bulkhead of {name!r}: {taken}", "a slot is held as long as its call runs, abandoned or not"
    for stats in seen["resources"]:
        for kind, counters in stats.items():
            if counters["limit"] and counters["current_active"] >= counters["limit"]:
                yield (f"{kind}: {counters['current_active']} of {counters['limit']} registered", "close what is idle")


def _retry_policies(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Review retry policy configuration"
    found = []
    for name, guard in seen["guards"].items():
        if guard["max_retries"] is None and guard["total"] is None:
            found.append(Check(RETRIES, item, WARN, f"{name!r}: retries without a limit and without a total deadline"))
    attempts = [f"{name} {guard['max_retries'] + 1} x {short(guard['timeout'])}"
                for name, guard in seen["guards"].items() if guard["max_retries"] is not None]  # fmt: skip
    yield from _found(RETRIES, item, found, f"calls at most: {', '.join(attempts) or 'no operation used so far'}")


# -- 3. Resource Leaks ----------------------------------------------------------------------------------------------


def _usage(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Monitor resource usage metrics"
    shares = {name: used for usage in seen["usage"] for name, used in usage.items() if used is not None}
    process = seen["process"]
    if process["fds"] is not None and process["max_fds"]:
        shares["fds"] = process["fds"] / process["max_fds"]
    limit = THRESHOLDS["resource_usage"]
    found = [
        Check(LEAKS, item, BAD, f"{name}: {used:.0%} of the limit in use (threshold {limit:.0%})", LEAK)
        for name, used in shares.items() if used > limit
    ]  # fmt: skip
    fine = ", ".join(f"{name} {used:.0%}" for name, used in sorted(shares.items())) + " of their limits"
    yield from _found(LEAKS, item, found, fine if shares else "no limit is known")


def _leaks(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Check for missing cleanup code"
    counted = sum(counters["leaks_detected"] for stats in seen["resources"] for counters in stats.values())
    failed = sum(counters["cleanup_errors"] for stats in seen["resources"] for counters in stats.values())
    active = sum(counters["current_active"] for stats in seen["resources"] for counters in stats.values())
    found = [
        Check(LEAKS, item, BAD,
              f"{leak['type']} {leak['id']!r}, opened at {leak['opened_at']}, {short(leak['age'])} ago", LEAK,
              "close it with `with`, or say long_lived=True")
        for leak in seen.get("leaks", ())[:5]
    ]  # fmt: skip
    if counted and not found:
        found = [Check(LEAKS, item, BAD, f"{counted} resources leaked", LEAK)]
    if failed:
        found.append(Check(LEAKS, item, WARN, f"{failed} clean-ups failed"))
    yield from _found(LEAKS, item, found, f"{active} registered now, 0 leaked")


def _threads(seen: dict[str, Any]) -> Iterator[Check]:
    lost = sum(seen["abandoned"].values())
    measured = f"{seen['threads']} threads, {lost} of them run abandoned calls"
    yield Check(LEAKS, "Review thread counts (goroutines)", WARN if lost else OK, measured)


# -- 4. Timeout Issues ----------------------------------------------------------------------------------------------


def _timeout_settings(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Review timeout configurations"
    found = []
    for name, figures in seen["rates"].items():
        recent, limit = figures["recent"], (seen["guards"].get(name) or {}).get("timeout")
        calls, late = recent.get("calls", 0), recent.get("timeouts", 0)
        if calls >= MIN_CALLS and late > THRESHOLDS["timeout_rate"] * calls:
            measured = f"{name!r}: {late} of {calls} calls timed out ({share(late, calls)}) at {short(limit)}"
            found.append(Check(TIMEOUTS, item, BAD, measured, None, "raise it, or make the service faster"))
        elif limit and calls >= MIN_CALLS and (figures["p99"] or 0.0) > TIGHT * limit:
            measured = f"{name!r}: p99 {short(figures['p99'])} of a timeout of {short(limit)}"
            found.append(Check(TIMEOUTS, item, WARN, measured))
    settings = [f"{name} {short(guard['timeout'])}" for name, guard in seen["guards"].items()]
    yield from _found(TIMEOUTS, item, found, ", ".join(settings) or "no operation used so far")


def _blocking(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Check for blocking operations"
    found = []
    for entry in seen["operations"]:
        over = entry["time_left"] == 0.0 and entry["age"] is not None
        endless = entry["time_left"] is None and (entry["age"] or 0.0) > TOO_LONG and entry["phase"] != "queued"
        if entry["phase"] == "abandoned" or over or endless:
            limit = "without a deadline" if endless else f"its time was {short(entry['timeout'])}"
            measured = (f"{entry['operation']!r} has run for {short(entry['age'])}, {limit}, {entry['phase']},"
                        f" at {entry['where']}")  # fmt: skip
            advice = 'a socket timeout, or isolation="process", ends it'
            found.append(Check(TIMEOUTS, item, BAD, measured, BLOCKED, advice))
    oldest = max((entry["age"] or 0.0 for entry in seen["operations"]), default=0.0)
    fine = f"{len(seen['operations'])} operations run, the oldest for {short(oldest)}, all within their time"
    yield from _found(TIMEOUTS, item, found, fine)


def _performance(seen: dict[str, Any]) -> Iterator[Check]:
    timed = [(figures["p99"], name, figures) for name, figures in seen["rates"].items() if figures["p99"] is not None]
    if not timed:
        yield Check(TIMEOUTS, "Monitor operation performance", OK, "no call has ended so far")
        return
    _, name, figures = max(timed, key=lambda entry: entry[0])
    times = f"p50 {short(figures['p50'])}, p99 {short(figures['p99'])}"
    measured = f"slowest is {name!r}: {times}, {figures['calls']} calls"
    yield Check(TIMEOUTS, "Monitor operation performance", OK, measured)


# -- and the clocks all of it is measured by -------------------------------------------------------------------------


def _clocks(seen: dict[str, Any]) -> Iterator[Check]:
    item = "Compare the clocks"
    found = []
    advice = "records, Retry-After dates and certificates are read by it; durations are not"
    jumped = seen["clock"]["jumped"]
    if abs(jumped) > SKEW:
        found.append(
            Check(CLOCKS, item, BAD, f"the wall clock was set by {jumped:+.1f} s while it ran", SKEWED, advice)
        )
    for clock in seen["clocks"]:
        if abs(clock["ahead"]) > SKEW:
            measured = f"a manager's {clock['kind']} is {clock['ahead']:+.1f} s off the machine's"
            found.append(Check(CLOCKS, item, BAD, measured, SKEWED, advice))
    yield from _found(CLOCKS, item, found, f"within {max(abs(jumped), 0.001):.3f} s of each other")
