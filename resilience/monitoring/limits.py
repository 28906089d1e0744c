"""What this process may use: cgroup limits, rlimits and what the machine has.

In a container the machine's memory says nothing: the limit that will end the process is its cgroup's.
"""

from __future__ import annotations

import os
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED_V1 = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


class Limits:
    """What the process may use: bytes of memory and address space, cores, open files, threads; None: no limit."""

    __slots__ = ("address_space", "cpus", "fds", "memory", "pids", "threads")

    def __init__(
        self,
        memory: int | None = None,
        cpus: float | None = None,
        fds: int | None = None,
        threads: int | None = None,
        address_space: int | None = None,
    ) -> None:
        self.memory = memory
        self.cpus = cpus
        self.fds = fds
        self.threads = threads
        self.address_space = address_space
        self.pids = threads  # the part of `threads` that cgroups set

    def look_again(self) -> None:
        """Reads the rlimits again: a program may move its own while it runs."""
        self.fds = _rlimit("RLIMIT_NOFILE")
        self.address_space = _rlimit("RLIMIT_AS")
        self.threads = _least([_rlimit("RLIMIT_NPROC"), self.pids])

    def as_dict(self) -> dict[str, Any]:
        """The limits as plain data."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "pids"}


def read_limits(root: Path = CGROUP, own: Path = Path("/proc/self/cgroup")) -> Limits:
    """The tightest limits of the process's cgroups (version 2 or 1), its rlimits and the machine's memory."""
    limits = Limits()
    memory = [_physical_memory()]
    pids: list[int | None] = []
    quotas = []
    for folder in _cgroup_folders(root, own):
        memory += [_number(folder / "memory.max"), _number(folder / "memory.limit_in_bytes")]
        pids.append(_number(folder / "pids.max"))
        quotas.append(_cpu_quota(folder))
    limits.memory = _least(value for value in memory if value is None or value < UNLIMITED_V1)
    limits.pids = _least(pids)
    limits.cpus = _least([*quotas, float(os.cpu_count() or 1)])
    limits.look_again()
    return limits


def _cgroup_folders(root: Path, own: Path) -> list[Path]:
    """The process's cgroup folders and all above them: a limit of any of them binds."""
    folders = []
    try:
        lines = own.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.count(":") < 2:  # a sandbox may show anything there
            continue
        _, controllers, path = line.split(":", 2)
        mounts = [root] if not controllers else [root / name for name in {controllers, *controllers.split(",")}]
        for mount in mounts:
            place = mount / path.lstrip("/")
            folders += [place, *(above for above in place.parents if above.is_relative_to(mount))]
    return list(dict.fromkeys([*folders, root]))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
        return None if text == "max" else int(text)
    except (OSError, ValueError):
        return None


def _cpu_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_v1, period_v1 = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota_v1 / period_v1 if quota_v1 and period_v1 and quota_v1 > 0 else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _rlimit(name: str) -> int | None:
    try:
        import resource

        soft = resource.getrlimit(getattr(resource, name))[0]
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    return None if soft in (-1, resource.RLIM_INFINITY) else int(soft)


def _least(values: Any) -> Any:
    return min((value for value in values if value is not None), default=None)
