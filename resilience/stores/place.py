"""What a file store has to know of the machine: its boot, and whether a path lies on a network file system."""

from __future__ import annotations

import os
import sys

from ..core.errors import ConfigError

NETWORK_KINDS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs",
     "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.rclone")
)  # fmt: skip


def boot_id() -> str:
    """What names this boot of the machine; "" where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return _boot_time()


def _boot_time() -> str:
    if sys.platform != "darwin":
        return ""
    import subprocess

    try:
        return subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def refuse_network_place(path: str) -> None:
    """Raises `ConfigError` for a path on a network file system, as far as the system tells (Linux)."""
    kind = kind_of_place(path, _mounts())
    if kind in NETWORK_KINDS:
        raise ConfigError(
            f"{path} lies on {kind}, a network file system, whose locks a file store cannot rely upon: "
            "use a local folder, redis:// or postgresql://",
            key="store",
            value=path,
        )


def kind_of_place(path: str, mounts: str) -> str:
    """The kind of file system a path is on, by the text of /proc/mounts; "" when that does not say."""
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").rstrip("/")
        if (place == point or place.startswith(point + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _mounts() -> str:
    try:
        with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
