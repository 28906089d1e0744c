"""Where agents are found: `PID-START.sock` in a directory of this user, where START is the start time of the process.

The start time tells a living process from another one that was given the number of a dead one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LONGEST = 100  # bytes of a socket's path: the kernel takes 107, some 103


class Place:
    """The files of one agent."""

    __slots__ = ("pid", "start", "stem")

    def __init__(self, folder: Path, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start
        self.stem = folder / f"{pid}-{start}"

    @property
    def socket(self) -> Path:
        """Where the agent answers."""
        return self.stem.with_suffix(".sock")

    @property
    def dump(self) -> Path:
        """Where the interpreter itself writes stacks, when it is asked to by signal."""
        return self.stem.with_suffix(".dump")

    @property
    def is_living(self) -> bool:
        """Whether the process that left these files is there."""
        return start_of(self.pid) == self.start

    def remove(self) -> None:
        """Removes the files, as far as they are there and ours to remove."""
        for path in (self.socket, self.dump):
            try:
                path.unlink()
            except OSError:
                pass


def start_of(pid: int) -> int | None:
    """The start time of a process as a number that only compares; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text[text.rindex(")") + 2 :].split()  # the name in brackets may hold anything
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        pass
    if os.path.exists("/proc/self/stat"):
        return None
    try:  # no /proc here
        import psutil

        return int(psutil.Process(pid).create_time() * 1000)
    except Exception:  # no such process, or nobody may look
        return None


def folders(environment: Mapping[str, str] | None = None) -> list[Path]:
    """The directories of agents, best first: the runtime directory, the state directory, one for temporary files."""
    env = os.environ if environment is None else environment
    found = []
    if env.get("XDG_RUNTIME_DIR"):
        found.append(Path(env["XDG_RUNTIME_DIR"]) / "resilience")
    home = env.get("XDG_STATE_HOME") or (os.path.join(env["HOME"], ".local", "state") if env.get("HOME") else "")
    if home:
        found.append(Path(home) / "resilience" / "agents")
    found.append(Path(env.get("TMPDIR") or "/tmp") / f"resilience-{os.getuid()}")
    return [folder for folder in found if folder.is_absolute()]


def make_place() -> Place:
    """The place of this process, in the first directory that can be had; files of the dead are removed there."""
    pid = os.getpid()
    trouble: OSError | None = None
    for folder in folders():
        place = Place(folder, pid, start_of(pid) or 0)
        if len(os.fsencode(place.socket)) > LONGEST:
            continue
        try:
            _make_private(folder)
        except OSError as error:
            trouble = error
            continue
        for other in places_in(folder):
            if not other.is_living:
                other.remove()
        return place
    raise OSError(f"no directory for the agent's socket: {trouble or 'all paths are too long'}")


def _make_private(folder: Path) -> None:
    """Makes the directory, or makes sure that it is ours and that nobody else may enter."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to")


def places_in(folder: Path) -> Iterator[Place]:
    """The places of all agents that have left files in a directory, living or not."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    seen = set()
    for name in names:
        stem, dot, kind = name.rpartition(".")
        pid, dash, start = stem.partition("-")
        if dot and dash and kind in ("sock", "dump") and pid.isdecimal() and start.isdecimal() and stem not in seen:
            seen.add(stem)
            yield Place(folder, int(pid), int(start))
