"""SIGINT and SIGTERM as something to wait for: no lock is taken in a handler, and nothing is raised into a wait."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While entered, the first SIGINT or SIGTERM makes `fd` readable and stays in `received`; a second one ends hard.

    A SIGINT that the process was started to ignore (a shell's `&`) stays ignored. Outside the main thread it does
    nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.fd, self._writer = os.pipe()
        self._previous: dict[int, Any] = {}
        self._previous_fd: int | None = None

    def __enter__(self) -> Signals:
        os.set_blocking(self._writer, False)
        if threading.current_thread() is not threading.main_thread():
            return self
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous_fd is not None:
            signal.set_wakeup_fd(self._previous_fd)
        os.close(self.fd)
        os.close(self._writer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
