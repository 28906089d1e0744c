"""A terminal that is drawn again and again, until the person has seen enough."""

from __future__ import annotations

import os
import select
import shutil
import sys
from types import TracebackType
from typing import Any

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor


class Screen:
    """While entered, standard output is a screen to `draw` on and standard input gives single keys."""

    def __init__(self) -> None:
        self._settings: list[Any] | None = None

    def __enter__(self) -> Screen:
        if sys.stdin.isatty():
            import termios
            import tty

            self._settings = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        self._write(ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(LEAVE)
        if self._settings is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._settings)

    def draw(self, lines: list[str]) -> None:
        """Shows the lines, as many and as much of them as fit."""
        columns, rows = shutil.get_terminal_size()
        shown = [line[:columns] for line in lines[: rows - 1]]
        self._write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")

    def key(self, seconds: float) -> str:
        """The key pressed within so many seconds, or nothing."""
        if self._settings is None:
            select.select([], [], [], seconds)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return os.read(sys.stdin.fileno(), 1).decode("latin-1") if ready else ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
