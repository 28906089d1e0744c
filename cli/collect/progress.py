"""How far a run is: one line that is written over on a terminal, one line per 10 s elsewhere."""

from __future__ import annotations

import shutil
from collections import deque
from dataclasses import dataclass, field
from typing import TextIO

ON_TERMINAL = 0.2  # seconds between two lines
ELSEWHERE = 10.0
RATE_OVER = 5.0  # seconds that the rate is taken over


@dataclass(slots=True)
class Snapshot:
    """Where a run stands. `left` is the seconds until its deadline."""

    total: int
    ok: int
    failed: int
    in_flight: int
    waiting: int
    open_hosts: list[str] = field(default_factory=list)
    slowed: str = ""
    left: float | None = None


class Progress:
    """Shows snapshots on a stream. Used by one thread."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.is_terminal = not quiet and stream.isatty()
        self._stream = stream
        self._quiet = quiet
        self._shown = 0  # characters of the line that stands on the terminal
        self._last = float("-inf")
        self._done: deque[tuple[float, int]] = deque()

    @property
    def interval(self) -> float:
        """Seconds until it wants to be told again."""
        return ON_TERMINAL if self.is_terminal else 1.0

    def show(self, now: float, snapshot: Snapshot) -> None:
        """Shows where the run stands, if it is time to."""
        if self._last == float("-inf") and not self.is_terminal:
            self._last = now  # the first line comes after 10 s: a short run shows none
        self._done.append((now, snapshot.ok + snapshot.failed))
        while now - self._done[0][0] > RATE_OVER:
            self._done.popleft()
        if self._quiet or (not self.is_terminal and now - self._last < ELSEWHERE):
            return
        self._last = now
        text = line_of(snapshot, self._rate())
        if self.is_terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + text.ljust(self._shown))
            self._shown = len(text)
        else:
            self._write(text + "\n")

    def clear(self) -> None:
        """Takes the line off the terminal."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _rate(self) -> float:
        (begin, before), (end, after) = self._done[0], self._done[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it: the run goes on
            self._quiet = True


def line_of(snapshot: Snapshot, rate: float) -> str:
    """One line that says where a run stands."""
    done = snapshot.ok + snapshot.failed
    parts = [f"{done}/{snapshot.total}  ok {snapshot.ok}  failed {snapshot.failed}  in flight {snapshot.in_flight}"]
    if snapshot.waiting:
        parts[0] += f"  waiting {snapshot.waiting}"
    parts.append(f"{rate:.0f}/s")
    if snapshot.open_hosts:
        more = f" and {len(snapshot.open_hosts) - 2} more" if len(snapshot.open_hosts) > 2 else ""
        parts.append("breaker open: " + ", ".join(snapshot.open_hosts[:2]) + more)
    if snapshot.slowed:
        parts.append(snapshot.slowed)
    if snapshot.left is not None:
        parts.append(f"{max(0.0, snapshot.left):.0f} s left")
    return " | ".join(parts)
