"""`resilience doctor`: what ails a running process, by the specification's troubleshooting lists."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from resilience.agent.client import Unreachable

from .. import exits
from ..durations import Duration
from ..output import emit, emit_json, emit_line, one_format, redacted, say
from .top import NONE_FOUND

if TYPE_CHECKING:
    from .checks import Check

CONNECT_WITHIN = 1.0  # seconds

EPILOG = """\b
Examples:
  resilience doctor 4711
  resilience doctor                  # every process with an agent
  resilience doctor 4711 --json

\b
It only looks: nothing in the process is changed. An open breaker named host:port is connected to once.

\b
Exit codes: 0 nothing found; 1 a fault is named; 69 no such process, or none with an agent.
"""


@click.command(epilog=EPILOG)
@click.argument("pid", required=False, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option("--nl", is_flag=True, help="A JSON object a line: one for each check.")
@click.option("-q", "--quiet", is_flag=True, help="Only what is wrong.")
@click.option("--timeout", type=Duration(), default="2s", show_default=True, help="For its agent to answer.")
def doctor(pid: int | None, as_json: bool, nl: bool, quiet: bool, timeout: float) -> int:
    """What ails a process: breaker stuck open, retry storm, leak, blocking call, pool exhausted, clock skew.

    The four troubleshooting lists of the specification as checks, the measured value beside each. Without PID: every
    process of yours that has an agent.
    """
    from .checks import BAD, all_checks
    from .view import View, every_report

    one_format(as_json, nl)
    try:
        reports = every_report(timeout) if pid is None else [View(pid, timeout).look(stacks=True)]
        if not reports:
            raise Unreachable(NONE_FOUND, "no agent")
        if all(seen["agent"] == "none" for seen in reports):
            raise Unreachable(str(reports[0]["hint"]), "no agent")
    except Unreachable as missing:
        say(f"resilience: {missing}")
        return exits.UNREACHABLE
    found = [(seen, all_checks(seen, connect)) for seen in reports]
    if as_json:
        documents = [_document(seen, checks) for seen, checks in found]
        emit_json(documents[0] if pid is not None else documents)
    elif nl:
        for seen, checks in found:
            for check in checks:
                emit_line({"pid": seen["pid"], **check.as_dict()})
    else:
        for seen, checks in found:
            _print(seen, checks, quiet)
    return exits.NO if any(check.verdict == BAD for _, checks in found for check in checks) else exits.OK


def _document(seen: dict[str, Any], checks: list[Check]) -> dict[str, Any]:
    faults = list(dict.fromkeys(check.fault for check in checks if check.fault))
    return {"pid": seen["pid"], "faults": faults, "checks": [check.as_dict() for check in checks]}


def _print(seen: dict[str, Any], checks: list[Check], quiet: bool) -> None:
    from .words import command_of

    emit(f"pid {seen['pid']}  {command_of(seen)}")
    heading = None
    for check in checks:
        if quiet and check.verdict == "ok":
            continue
        if check.list != heading:
            heading = check.list
            emit(f"\n{heading}")
        named = f"{check.fault}: " if check.fault else ""
        emit(f"  {check.verdict:<8}{check.item}: {redacted(named + check.measured)}")
        if check.advice and check.verdict != "ok":
            emit(f"          -> {check.advice}")
    faults = list(dict.fromkeys(check.fault for check in checks if check.fault))
    emit("\n" + (f"found: {', '.join(faults)}" if faults else "nothing found"))


def connect(name: str) -> str | None:
    """Connects once to what a breaker is named after, where that is host:port or a URL; says what came of it."""
    import socket

    from resilience.core.clock import SYSTEM

    address = _address(name)
    if address is None:
        return None
    began = SYSTEM.monotonic()
    try:
        socket.create_connection(address, CONNECT_WITHIN).close()
    except OSError as error:
        return f"no connection: {error.strerror or error} after {SYSTEM.monotonic() - began:.3f} s"
    return f"connected in {(SYSTEM.monotonic() - began) * 1000:.1f} ms"


def _address(name: str) -> tuple[str, int] | None:
    from urllib.parse import urlsplit

    if "://" in name:
        try:
            parts = urlsplit(name)
            port = parts.port or {"http": 80, "https": 443, "redis": 6379, "postgresql": 5432}.get(parts.scheme)
        except ValueError:
            return None
        return (parts.hostname, port) if parts.hostname and port else None
    match = re.fullmatch(r"\[?([^\s/\]]+)\]?:(\d{1,5})", name)
    return (match[1], int(match[2])) if match and int(match[2]) < 65536 else None
