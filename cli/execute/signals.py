"""Signals that ask `exec` to end, and its command with it."""

from __future__ import annotations

import signal
from typing import Any

TELLING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(SystemExit):
    """A signal asked `exec` itself to end. Wherever it is raised, it is an exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Signals:
    """While in use SIGTERM, SIGINT and SIGHUP are noted, and wake what waits for the command.

    A SIGINT or SIGHUP that the process was started to ignore stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in TELLING:
            if number != signal.SIGTERM and signal.getsignal(number) == signal.SIG_IGN:  # nohup; a shell's `&`
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.received is None:
            self.received = number
            if not self._is_held:
                raise Interrupted(number)

    def hold(self) -> None:
        """Only notes signals until `release()`: while something starts that could not be ended yet."""
        self._is_held = True

    def release(self) -> None:
        """Raises `Interrupted` for a signal that came meanwhile."""
        self._is_held = False
        if self.received is not None:
            raise Interrupted(self.received)

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
