"""The verb `exec`: one command with attempts, a time limit for its whole tree, a breaker and a lock."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .. import exits
from ..durations import Duration
from ..names import Name
from ..output import say
from ..shared_store import HELP
from ..streams import silence_stdout

if TYPE_CHECKING:
    from .child import Ending
    from .guard import Guard, Lock
    from .signals import Signals

EPILOG = """\b
Examples:
  resilience exec --timeout 30s -- restic backup /home
  resilience exec --attempts 4 --breaker backup -- restic backup /home
  resilience exec --lock mirror --quiet-on-success --timeout 10m -- ./mirror     # for cron
  resilience exec --attempts 5 --retry-on-exit 1,75 --report-file run.json -- ./job

\b
Exit codes: the command's own; 75 not started (breaker open, lock held); 124 timed out; 126 not executable; 127 not
found; 128+n killed by signal n; 130 and 143 interrupted; 2 usage; 74 a lock, the report or the output of the command
cannot be written; 78 configuration.
At its time limit, or at SIGTERM, the whole tree of the command is ended: SIGTERM, and half a second later SIGKILL.
"""
NEVER_RETRIED = (exits.OK, exits.NOT_EXECUTABLE, exits.NOT_FOUND)


class ExitCodes(click.ParamType):  # type: ignore[type-arg]  # generic in stubs only
    """Exit codes: 1,75 or 1-99,124."""

    name = "codes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[int]:
        """The set of them; a malformed one is a usage error."""
        if isinstance(value, frozenset):
            return value
        codes: set[int] = set()
        for part in value.split(","):
            first, mark, last = part.strip().partition("-")
            try:
                span = range(int(first), int(last if mark else first) + 1)
            except ValueError:
                span = range(0)
            if not span or span[0] < 0 or span[-1] > 255:
                self.fail(f"{value!r} names no exit codes, as 1,75 or 1-99,124 do", param, ctx)
            codes.update(span)
        return frozenset(codes)


@click.command(
    name="exec", epilog=EPILOG, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
@click.option("--attempts", type=click.IntRange(1), default=1, show_default=True, help="Runs at most.")
@click.option("--timeout", type=Duration(), help="For each run: then its whole tree is ended.")
@click.option("--retry-on-exit", type=ExitCodes(), help="Repeat these only: 1,75 or 1-99. Else all but 0, 126, 127.")
@click.option("--delay", type=Duration(), default="1s", show_default=True, help="Before the first repeat; doubles.")
@click.option("--max-delay", type=Duration(), default="1m", show_default=True, help="Between two runs at most.")
@click.option(
    "--breaker", metavar="NAME", type=Name(), help="Count failures under this name, and do not start while it is open."
)
@click.option("--lock", metavar="NAME", type=Name(), help="Do not start while another command runs under this name.")
@click.option("--store", metavar="URL", help=HELP)
@click.option("--quiet-on-success", is_flag=True, help="Show the output of a run only when it failed.")
@click.option("--report-file", metavar="FILE", type=click.Path(dir_okay=False), help="How it went, as JSON.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(**asked: Any) -> int:
    """Run a command with attempts, a time limit, a breaker and a lock.

    Everything after -- is the command.
    """
    from .guard import Guard, Lock, Refused, warn_of_store
    from .signals import Interrupted, Signals

    warn_of_store()
    signals = Signals()
    run = Run(asked, signals)
    lock: Lock | None = None
    with signals:
        try:
            if asked["lock"]:
                lock = Lock(asked["lock"])
            guard = Guard(asked["breaker"], asked["store"])
            try:
                code = run.all(guard, lock)
            finally:
                guard.close()
        except Refused as refused:
            say(f"resilience: {refused}")
            run.refused = str(refused)
            code = exits.TRANSIENT
        except Interrupted as interrupted:
            code = 128 + interrupted.number
    if signals.received is not None:
        code = 128 + signals.received
    if lock is not None:
        lock.release()
    run.report(code)
    return code


class Run:
    """All runs of one command, up to the exit code."""

    def __init__(self, asked: dict[str, Any], signals: Signals) -> None:
        self.asked = asked
        self._signals = signals
        self.endings: list[Ending] = []
        self.refused: str | None = None

    def all(self, guard: Guard, lock: Lock | None) -> int:
        """Runs it until it succeeds, may not be repeated or no attempt is left; the exit code."""
        from resilience.core.clock import SYSTEM

        from .guard import Refused

        attempts = self.asked["attempts"]
        delay, most = self.asked["delay"], self.asked["max_delay"]
        while True:
            try:
                guard.admit()
            except Refused as refused:
                if not self.endings:
                    raise
                say(f"resilience: {refused}, attempt {len(self.endings) + 1}/{attempts}")
                return self.endings[-1].code
            ending = self._once(guard, lock)
            if not self._is_repeated(ending):
                return ending.code
            pause, delay = _jittered(min(delay, most)), delay * 2
            say(f"resilience: attempt {len(self.endings)}/{attempts} {_told(ending)} - next try in {pause:.1f} s")
            SYSTEM.sleep(pause)

    def _once(self, guard: Guard, lock: Lock | None) -> Ending:
        from .child import run

        quiet = self.asked["quiet_on_success"]
        timeout, variables = self._time()
        ending = run(
            self.asked["command"], timeout, self._signals, capture=quiet, variables=variables,
            started=None if lock is None else lock.note,
        )  # fmt: skip
        self.endings.append(ending)
        guard.learn(ending)
        if ending.code != 0:
            for file, stream in zip(ending.output, (sys.stdout, sys.stderr), strict=False):
                _copy(file, stream)
        for file in ending.output:
            file.close()
        if ending.how == "not started":
            say(f"resilience: {ending.message}")
        return ending

    def _time(self) -> tuple[float | None, dict[str, str]]:
        """The time limit of one run, and what the command is told of it."""
        from resilience.core.ambient import remaining
        from resilience.core.carried import ATTEMPT_VARIABLE
        from resilience.core.context import DEADLINE_VARIABLE

        told = {ATTEMPT_VARIABLE: str(len(self.endings) + 1)}
        limits = [limit for limit in (self.asked["timeout"], remaining()) if limit is not None]
        if not limits:
            return None, told
        return min(limits), {**told, DEADLINE_VARIABLE: f"{max(0.0, min(limits)):.3f}"}

    def _is_repeated(self, ending: Ending) -> bool:
        attempts, codes = self.asked["attempts"], self.asked["retry_on_exit"]
        is_last = len(self.endings) >= attempts
        if ending.code != 0 and is_last and (attempts > 1 or ending.how == "timeout"):
            say(f"resilience: attempt {len(self.endings)}/{attempts} {_told(ending)}")
        if is_last or ending.code in NEVER_RETRIED:
            return False
        return codes is None or ending.code in codes

    def report(self, code: int) -> None:
        """Writes the report, if one was asked for."""
        path = self.asked["report_file"]
        if path is None:
            return
        import json

        from ..output import OutputError

        runs = [
            {
                "attempt": number,
                "exit": one.code,
                "outcome": one.how,
                "duration_s": round(one.took, 3),
                "ended": one.ended,
            }
            for number, one in enumerate(self.endings, 1)
        ]  # fmt: skip
        outcome = "refused" if self.refused and not runs else runs[-1]["outcome"] if runs else "interrupted"
        if code in (exits.INTERRUPTED, exits.TERMINATED) and (not runs or runs[-1]["exit"] != code):
            outcome = "interrupted"
        report = {"command": list(self.asked["command"]), "exit": code, "outcome": outcome, "attempts": runs,
                  "breaker": self.asked["breaker"], "lock": self.asked["lock"], "refused": self.refused}  # fmt: skip
        try:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=2)
                file.write("\n")
        except OSError as error:
            raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error


def _jittered(delay: float) -> float:
    import random

    return delay * random.uniform(0.5, 1.0)


def _told(ending: Ending) -> str:
    if ending.how == "timeout":
        return f"timed out after {ending.took:.1f} s - {ending.ended} process{'es' * (ending.ended != 1)} ended"
    if ending.how == "signal":
        return f"was killed by {ending.message}"
    return f"ended with exit {ending.code}"


def _copy(file: Any, stream: Any) -> None:
    """Writes what a run has said to our own stream. Where nobody reads that, the exit code says enough."""
    import shutil

    file.seek(0)
    try:
        stream.flush()
        shutil.copyfileobj(file, stream.buffer)
        stream.flush()
    except OSError as error:
        if stream is sys.stdout:
            if not isinstance(error, BrokenPipeError):
                raise
            silence_stdout()
