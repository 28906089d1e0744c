"""Data on stdout, talk on stderr: JSON, lines, plain tables, and no password in either."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .streams import silence_stdout

# what an answer or a URL could tell the terminal to do: C0 and C1 controls but for tab and line feed
_UNPRINTABLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


class OutputError(Exception):
    """What was to be written cannot be: exit code 74."""


def emit(text: str) -> bool:
    """Writes a line for people to stdout; False where nobody reads it, which is no reason to end with another code."""
    return _write(text.translate(_UNPRINTABLE))


def emit_json(data: Any) -> bool:
    """Writes one JSON document to stdout; False where nobody reads it."""
    return _write(json.dumps(data, indent=2, default=str))


def emit_line(data: Any) -> bool:
    """Writes one JSON object on a line of its own to stdout; False where nobody reads it."""
    return _write(json.dumps(data, default=str))


def _write(text: str) -> bool:
    try:
        try:
            sys.stdout.write(text + "\n")
        except UnicodeEncodeError:  # a name that is no text, or a terminal without these letters
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        return False
    except OSError as error:
        silence_stdout()  # what is left in the buffer would fail once more at the end
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error
    return True


def one_format(as_json: bool, nl: bool) -> None:
    """Refuses both formats at once: they have one standard output."""
    if as_json and nl:
        import click

        raise click.UsageError("--nl and --json are two formats for one standard output: choose one")


def say(text: str, colour: str | None = None) -> None:
    """Tells the person at the terminal, on stderr, in a colour of `COLOURS`; a closed stderr is nobody's trouble."""
    shown = redacted(text).translate(_UNPRINTABLE)
    if colour is not None:
        shown = f"\x1b[{COLOURS[colour]}m{shown}\x1b[0m"
    try:
        print(shown, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def redacted(text: str) -> str:
    """The text without the passwords of its URLs."""
    if "@" not in text:
        return text
    import re

    return re.sub(r"(\w+://[^\s:/@?#]*):[^\s/?#]+@", r"\1:***@", text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of plain text; numbers are set to the right."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(header), *(len(row[column]) for row in cells)) if cells else len(header)
              for column, header in enumerate(headers)]  # fmt: skip
    numeric = [bool(cells) and all(_is_number(row[column]) for row in cells) for column in range(len(headers))]
    lines = [_line(headers, widths, numeric), *(_line(row, widths, numeric) for row in cells)]
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").isdigit()


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = [
        text.rjust(width) if right else text.ljust(width)
        for text, width, right in zip(row, widths, numeric, strict=True)
    ]
    return "  ".join(padded).rstrip()


def wants_colour(choice: str = "auto") -> bool:
    """Whether to colour stderr: the flag, then NO_COLOR, then whether it is a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty()
