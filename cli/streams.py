"""The standard streams where they are closed, full or gone."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def open_standard_streams() -> None:
    """Puts something in the place of standard streams that were closed, so that no file of ours becomes one of them.

    Reading such an input and writing such an output fails, as it does elsewhere; talk on stderr is nobody's.
    """
    streams = ((0, "stdin", "r", os.O_WRONLY), (1, "stdout", "w", os.O_RDONLY), (2, "stderr", "w", os.O_WRONLY))
    for number, name, mode, flags in streams:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
            stream = open(number, mode, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 # stays
            setattr(sys, name, stream)


def is_open_file(path: str | os.PathLike[str]) -> bool:
    """Whether the path is another name of an open file, such as /dev/stdout: it may be written to, never replaced."""
    return os.path.abspath(path).startswith(("/dev/", "/proc/")) and os.path.islink(path)


def is_unread() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    import select

    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False


def silence_stdout() -> None:
    """Lets everything written to stdout from now on go nowhere, with what is in its buffer."""
    _silence(sys.stdout)


def flush_stderr() -> None:
    """Writes what is left of the talk; where nobody can be told, the end of the interpreter has nothing left to say."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass
