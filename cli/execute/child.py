"""One run of a command: in a session of its own, with its whole tree ended at the time limit or at a signal."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from resilience.core.clock import SYSTEM
from resilience.workers.trees import become_subreaper, end_descendants, end_tree, reap_children, signal_tree

from .. import exits
from .signals import Interrupted, Signals

SOFT = 0.5  # seconds that a tree has after SIGTERM


@dataclass(slots=True)
class Ending:
    """How one run ended. `how`: "ok", "exit", "signal", "timeout", "not started" or "interrupted"."""

    code: int
    how: str
    took: float = 0.0
    ended: int = 0  # processes that had to be ended
    message: str = ""
    output: list[IO[bytes]] = field(default_factory=list)


def run(
    command: Sequence[str],
    timeout: float | None,
    signals: Signals,
    *,
    capture: bool = False,
    variables: dict[str, str] | None = None,
    started: Callable[[int], object] | None = None,
) -> Ending:
    """Runs the command once, telling `started` its pid; raises `Interrupted` at a signal, with nothing of it left."""
    began = SYSTEM.monotonic()
    become_subreaper()
    files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)] if capture else []  # noqa: SIM115 - returned
    out, err = files if capture else (None, None)
    signals.hold()
    try:
        process = _start(
            command, stdout=out, stderr=err, start_new_session=True, env={**os.environ, **(variables or {})}
        )
    except OSError as error:
        signals.release()
        code = exits.NOT_FOUND if isinstance(error, FileNotFoundError) else exits.NOT_EXECUTABLE
        return Ending(code, "not started", message=f"{command[0]}: {error.strerror}", output=files)
    try:
        signals.release()
        if started is not None:
            started(process.pid)
        return _await(process, timeout, began, files)
    except Interrupted as interrupted:
        _end(process, interrupted.number)
        raise
    except BaseException:
        end_tree(process.pid)
        end_descendants()
        process.wait()
        raise


def _start(command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
    """Starts it; a script without a `#!` line in the shell, as execvp(3) does and so every shell and `timeout`."""
    try:
        return subprocess.Popen(command, **settings)
    except OSError as error:
        script = shutil.which(command[0]) or command[0]
        if error.errno != errno.ENOEXEC or _is_binary(script):
            raise
    return subprocess.Popen(["/bin/sh", script, *command[1:]], **settings)


def _is_binary(path: str) -> bool:
    """Whether it is a program for another machine rather than a script: the test that shells make."""
    with open(path, "rb") as file:
        return b"\0" in file.read(256)


def _await(process: subprocess.Popen[bytes], timeout: float | None, began: float, files: list[IO[bytes]]) -> Ending:
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        ended = _end(process, signal.SIGTERM)
        return Ending(exits.TIMED_OUT, "timeout", SYSTEM.monotonic() - began, ended, output=files)
    took = SYSTEM.monotonic() - began
    if code < 0:
        return Ending(128 - code, "signal", took, message=_name(-code), output=files)
    return Ending(code, "exit" if code else "ok", took, output=files)


def _end(process: subprocess.Popen[bytes], number: int) -> int:
    """Ends the whole tree, softly first; how many processes that were."""
    told = signal_tree(process.pid, number)
    try:
        process.wait(SOFT)
    except (subprocess.TimeoutExpired, Interrupted):
        pass
    end_tree(process.pid)
    end_descendants()
    process.wait()
    reap_children()
    return told


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
