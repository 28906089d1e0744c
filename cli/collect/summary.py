"""What a run comes to: counts, a table per host, failures grouped by cause, and the exit code they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import exits

if TYPE_CHECKING:
    from .hosts import Host
    from .job import Job

ROWS = 20  # hosts shown; those with trouble first
CAUSES = 20
HOSTS_NAMED = 3  # for each cause
FINAL_CATEGORIES = ("permanent", "logic")

MEANINGS = {
    exits.OK: "all done",
    exits.NO: "done, with permanent failures",
    exits.OUTPUT: "output cannot be written",
    exits.TRANSIENT: "worth running again",
    exits.TIMED_OUT: "out of time",
    exits.INTERRUPTED: "interrupted",
    exits.TERMINATED: "terminated",
}


@dataclass(slots=True)
class Cause:
    """Failures of one kind: how many on which host, and one URL to look at."""

    category: str
    text: str
    example: str
    hosts: Counter[str] = field(default_factory=Counter)

    def where(self) -> str:
        """The hosts, the worst first."""
        names = [name for name, _ in self.hosts.most_common(HOSTS_NAMED)]
        more = len(self.hosts) - len(names)
        return ", ".join(names) + (f" and {more} more hosts" if more else "")


@dataclass(slots=True)
class Tally:
    """The failures of one run, one by one as they come, and of earlier runs where they still stand."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    is_permanent: bool = False
    is_transient: bool = False
    causes: dict[tuple[str, str], Cause] = field(default_factory=dict)  # by category and text

    def succeeded(self) -> None:
        """One item is done."""
        self.ok += 1

    def fell(self, category: str, host: str, cause: str, url: str) -> None:
        """One item has failed for this run."""
        self.failed += 1
        if category in FINAL_CATEGORIES:
            self.is_permanent = True
        else:
            self.is_transient = True
        self.causes.setdefault((category, cause), Cause(category, cause, url)).hosts[host] += 1


def host_table(hosts: Iterable[Host], names: dict[str, str] | None = None) -> list[str]:
    """The table per host, those with failures first; `names` shows some under another name."""
    chosen = sorted(hosts, key=lambda host: (host.failed == 0, -host.tries if host.failed == 0 else -host.failed))
    shown, rest = chosen[:ROWS], chosen[ROWS:]
    rows = [("HOST", "OK", "FAIL", "TRIES", "BREAKER", "NOTE")]
    for host in shown:
        name = (names or {}).get(host.name, host.name)
        rows.append((name, str(host.ok), str(host.failed), str(host.tries), _breaker(host), _note(host)))
    lines = columns(rows)
    if rest:
        ok, failed = sum(host.ok for host in rest), sum(host.failed for host in rest)
        lines.append(f"and {len(rest)} more hosts: {ok} ok, {failed} failed")
    return lines


def columns(rows: Sequence[tuple[str, str, str, str, str, str]]) -> list[str]:
    """Rows of equal columns, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  "
        f"{row[4]:<{widths[4]}}  {row[5]}".rstrip()
        for row in rows
    ]


def _breaker(host: Host) -> str:
    state = str(host.breaker.state)
    if state == "open":
        return "OPEN"
    return " -> ".join(host.states) or state


def _note(host: Host) -> str:
    notes = []
    if host.last_error and host.failed:
        notes.append(host.last_error)
    if host.untried:
        notes.append(f"{host.untried} not even tried")
    if host.moved:
        notes.append(f"{host.moved} redirected to other hosts")
    retries = host.tries - host.moved - (host.ok + host.failed - host.untried)
    if retries > 0:
        notes.append(f"{retries} tried again")
    if host.too_long is not None:
        notes.append(f"asks to wait {host.too_long:.0f} s (Retry-After)")
    elif host.waited:
        notes.append(f"waited {host.waited:.1f} s as told (Retry-After)")
    return "; ".join(notes)


def cause_lines(tally: Tally) -> list[str]:
    """The failures by cause, the most frequent first."""
    causes = sorted(tally.causes.values(), key=lambda cause: -cause.hosts.total())
    lines = [
        f"{cause.hosts.total():>6}  {cause.category:<9}  {cause.text}  on {cause.where()}, e.g. {cause.example}"
        for cause in causes[:CAUSES]
    ]
    more = len(causes) - len(lines)
    return [*lines, f"and {more} more causes (see the journal)"] if more else lines


def end_lines(job: Job) -> list[str]:
    """What is said when a run has ended: the table, the causes, the counts and what the exit code means."""
    lines = host_table(job.hosts) if job.hosts else []
    if causes := cause_lines(job.tally):
        lines += ["failures by cause:", *(f"  {line}" for line in causes)]
    return [*lines, verdict(job)]


def verdict(job: Job) -> str:
    """One line: how much is done, in which time, and what that means."""
    tally = job.tally
    parts = [f"{job.skipped} skipped (done or final before)"] if job.skipped else []
    parts.append(f"{tally.ok}/{tally.total - job.skipped} ok in {job.took:.1f} s")
    failed = tally.failed - job.skipped_failed
    if failed:
        parts.append(f"{failed} failed ({_kinds(tally)})")
    if job.unfinished:
        parts.append(f"{job.unfinished} not finished")
    if job.listing.duplicates:
        parts.append(f"{job.listing.duplicates} duplicate line{'s' if job.listing.duplicates > 1 else ''}")
    if job.pace.times_slowed:
        parts.append(f"slowed down to one at a time {job.pace.times_slowed}x ({job.pace.reason})")
    return f"{', '.join(parts)} - exit code {job.code}: {MEANINGS[job.code]}"


def _kinds(tally: Tally) -> str:
    if tally.is_permanent and tally.is_transient:
        return "some for good"
    return "all permanent" if tally.is_permanent else "all transient"
