"""`resilience top`: what a running process is doing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from resilience.agent.client import Unreachable

from .. import exits
from ..durations import Duration
from ..output import emit, emit_json, emit_line, say

if TYPE_CHECKING:
    from .view import View

NONE_FOUND = "no process with an agent; start one with RESILIENCE_AGENT=1 in its environment"

EPILOG = """\b
Examples:
  RESILIENCE_AGENT=1 python job.py &    # the process to look at
  resilience top                        # every process with an agent
  resilience top 4711                   # live, until q
  resilience top 4711 --once --json
  resilience top 4711 --dump            # stacks, with age and time left of each operation

\b
Needs no ptrace and no privileges: the process answers on a socket of its user. `resilience collect` has the agent
by itself. Off a terminal it looks once.

\b
Exit codes: 0 seen; 69 there is no such process.
"""


@click.command(epilog=EPILOG)
@click.argument("pid", required=False, type=click.IntRange(1))
@click.option("--once", is_flag=True, help="Look once instead of again and again.")
@click.option("--dump", is_flag=True, help="The stacks of its operations, then of its other threads; once.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document; once.")
@click.option("--nl", is_flag=True, help="A JSON object a line, one each interval.")
@click.option("--interval", type=Duration(), default="1s", show_default=True, help="Between two looks.")
@click.option("--timeout", type=Duration(), default="2s", show_default=True, help="For its agent to answer.")
def top(pid: int | None, once: bool, dump: bool, as_json: bool, nl: bool, interval: float, timeout: float) -> int:
    """What a process is doing: operations with age and time left, breakers, rates, abandoned calls.

    Without PID: every process of yours that has an agent.
    """
    if as_json and nl:
        raise click.UsageError("--nl and --json are two formats for one standard output: choose one")
    from .view import View

    if pid is None:
        return _all(as_json, nl, timeout)
    try:
        view = View(pid, timeout)
        if nl and not once:
            return _stream(view, interval)
        if once or dump or as_json or nl or not sys.stdout.isatty():
            return _once(view, dump=dump, as_json=as_json, nl=nl)
        return _live(view, interval)
    except Unreachable as missing:
        say(f"resilience: {missing}")
        return exits.UNREACHABLE


def _all(as_json: bool, nl: bool, timeout: float) -> int:
    from .view import every_report
    from .words import listing

    reports = every_report(timeout)
    if as_json:
        emit_json(reports)
    elif nl:
        for seen in reports:
            emit_line(seen)
    elif reports:
        emit(listing(reports))
    else:
        say(f"resilience: {NONE_FOUND}")
    return exits.OK


def _once(view: View, *, dump: bool, as_json: bool, nl: bool) -> int:
    from .words import screen, stacks

    seen = view.look(stacks=dump)
    if as_json:
        emit_json(seen)
    elif nl:
        emit_line(seen)
    else:
        for line in stacks(seen) if dump and seen["agent"] != "none" else screen(seen):
            emit(line)
    if seen["hint"] and dump:
        say(f"resilience: {seen['hint']}")
    return exits.OK


def _stream(view: View, interval: float) -> int:
    from resilience.core.clock import SYSTEM

    is_read = emit_line(view.look())
    while is_read:
        SYSTEM.sleep(interval)
        try:
            is_read = emit_line(view.look())
        except Unreachable:  # it has ended, and so has this
            break
    return exits.OK


def _live(view: View, interval: float) -> int:
    from .screen import Screen
    from .words import screen, stacks

    dump = False
    with Screen() as terminal:
        while True:
            try:
                seen = view.look(stacks=dump)
            except Unreachable:
                break
            terminal.draw([*(stacks(seen) if dump else screen(seen)), "q quit   d stacks"])
            key = terminal.key(interval)
            if key == "q":
                return exits.OK
            if key == "d":
                dump = not dump
    say(f"resilience: process {view.pid} has ended")
    return exits.OK
