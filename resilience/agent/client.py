"""How another process is asked: which agents there are, what they report, and stacks where none of them can answer.

Every question ends in bounded time, with an answer or with `Unreachable` that says why.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from ..core.clock import SYSTEM
from .places import folders, places_in, start_of
from .server import dump_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .places import Place

SETTLED = 0.1  # seconds without growth after which a dump is taken for whole
POLL = 0.02


class Unreachable(Exception):
    """`reason` is "dead" (no such process), "no agent", or "silent" (there is one, and it did not answer in time)."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def agents() -> list[Place]:
    """Every living process of this user that has an agent; files of dead ones are removed."""
    found: dict[int, Place] = {}
    for folder in folders():
        for place in places_in(folder):
            if not place.is_living:
                place.remove()
            elif place.socket.exists():
                found.setdefault(place.pid, place)
    return sorted(found.values(), key=lambda place: place.start)


def place_of(pid: int) -> Place:
    """Where the agent of this process is; raises `Unreachable`."""
    start = start_of(pid)
    if start is None:
        raise Unreachable(f"no process {pid}", "dead")
    for folder in [*folders(), *_folders_of(pid)]:
        for place in places_in(folder):
            if place.pid == pid and place.start == start:
                return place
    raise Unreachable(f"no agent in process {pid}", "no agent")


def _folders_of(pid: int) -> Iterator[Path]:
    """The directories as the process itself sees them, where its environment may be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    yield from folders({os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs})


def ask(place: Place, request: str = "report", timeout: float = 2.0) -> dict[str, Any]:
    """What the agent answers, within `timeout` seconds; raises `Unreachable`."""
    end = SYSTEM.monotonic() + timeout
    parts = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(place.socket))
            connection.sendall(request.encode() + b"\n")
            while data := connection.recv(1 << 16):
                parts.append(data)
                connection.settimeout(max(0.001, end - SYSTEM.monotonic()))
        answer = json.loads(b"".join(parts))
    except (ConnectionRefusedError, FileNotFoundError):
        raise Unreachable(f"no agent in process {place.pid} any more", "no agent") from None
    except (OSError, ValueError) as error:
        why = "did not answer" if isinstance(error, (TimeoutError, ValueError)) else str(error)
        raise Unreachable(f"the agent of process {place.pid} {why} within {timeout:g} s", "silent") from error
    if not isinstance(answer, dict):
        raise Unreachable(f"the agent of process {place.pid} sent something else than a report", "silent")
    return answer


def dump(place: Place, timeout: float = 2.0) -> str:
    """The stacks of all threads, written by the interpreter itself: also where a C call holds the GIL.

    Raises `Unreachable` where the process has not prepared for it: the signal would end it then.
    """
    if not place.dump.exists() or not _catches(place.pid, dump_signal()):
        raise Unreachable(f"process {place.pid} cannot be asked for its stacks", "no agent")
    before = place.dump.stat().st_size
    end = SYSTEM.monotonic() + timeout
    os.kill(place.pid, dump_signal())
    size, changed = before, SYSTEM.monotonic()
    while SYSTEM.monotonic() < end:
        SYSTEM.sleep(POLL)
        now_size = place.dump.stat().st_size
        if now_size != size:
            size, changed = now_size, SYSTEM.monotonic()
        elif size > before and SYSTEM.monotonic() - changed >= SETTLED:
            break
    with place.dump.open("rb") as file:
        file.seek(before)
        text = file.read().decode("utf-8", "replace")
    if not text:
        raise Unreachable(f"process {place.pid} wrote no stacks within {timeout:g} s: is it stopped?", "silent")
    return text


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal: without one it would die of it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
