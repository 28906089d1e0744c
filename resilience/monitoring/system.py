"""What this process uses, held against what it may use. What cannot be read is None, never a guess.

On Linux the figures come from /proc directly, so that a look costs a fraction of a millisecond and loads no library;
elsewhere, and for what /proc does not tell, psutil is asked.
"""

from __future__ import annotations

import os
import threading

from ..core.clock import SYSTEM
from ..core.forks import imported
from .limits import read_limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LIMITS_GOOD_FOR = 60.0  # seconds until the cgroup's files are read again; rlimits are read each time
SHORTEST_LOOK = 0.01  # seconds: the share of a core over less than this says nothing


class SystemReader:
    """Reads this process's usage. Safe to use from any thread; right in a forked child as well."""

    def __init__(self) -> None:
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._process: Any = None
        self._since = SYSTEM.monotonic()
        self._spent = _cpu_seconds()
        self._cpu: float | None = None
        self.limits = read_limits()
        self._limits_read = self._since

    def read(self) -> dict[str, Any]:
        """cpu (per cent of one core since the last reading), rss (bytes), threads, fds, children and the limits.

        `threads` are Python's, `os_threads` all of the process.
        """
        now = self._look_again()
        with self._lock:
            cpu = self._cpu_held(now)
        process = self._own_process()
        return {
            "cpu": cpu,
            **self._own_use(),
            "threads": threading.active_count(),
            "children": _ask(lambda: len(process.children(recursive=True))),
            "limits": self.limits.as_dict(),
        }

    def usage(self, reading: dict[str, Any] | None = None) -> dict[str, float | None]:
        """The share (0 to 1 and above) of each limit in use: memory, fds, threads; None where unknown or unlimited.

        Without a `reading` only what this takes is read. `memory` is the larger share of two limits: resident memory
        of the cgroup's (or the machine's), and address space of RLIMIT_AS.
        """
        if reading is None:
            self._look_again()
            reading = self._own_use()
        limits = self.limits
        memory = _share(reading["rss"], limits.memory)
        space = _share(reading.get("address_space"), limits.address_space)
        known = [share for share in (memory, space) if share is not None]
        return {
            "memory": max(known, default=None),
            "fds": _share(reading["fds"], limits.fds),
            "threads": _share(reading["os_threads"], limits.threads),
        }

    def _look_again(self) -> float:
        """Brings the limits up to date; gives the time."""
        if self._pid != os.getpid():
            self._fresh()
        now = SYSTEM.monotonic()
        if now - self._limits_read > LIMITS_GOOD_FOR:
            self.limits = read_limits()
            self._limits_read = now
        self.limits.look_again()
        return now

    def _cpu_held(self, now: float) -> float | None:
        past = now - self._since
        if past >= SHORTEST_LOOK:
            spent = _cpu_seconds()
            self._cpu = max(0.0, 100.0 * (spent - self._spent) / past)
            self._since, self._spent = now, spent
        return self._cpu

    def _own_process(self) -> Any:
        if self._process is None:
            try:
                self._process = imported("psutil").Process()
            except Exception:  # psutil is absent or may not look: what only it knows stays unknown
                pass
        return self._process

    def _own_use(self) -> dict[str, int | None]:
        try:
            with open("/proc/self/stat", "rb") as file:
                stat = file.read()
            fields = stat[stat.rindex(b")") + 2 :].split()
            return {
                "rss": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
                "address_space": int(fields[20]),
                "os_threads": int(fields[17]),
                "fds": len(os.listdir("/proc/self/fd")) - 1,  # less the one that lists them
            }
        except (OSError, ValueError, IndexError):
            pass
        process = self._own_process()
        return {
            "rss": _ask(lambda: process.memory_info().rss),
            "address_space": _ask(lambda: process.memory_info().vms),
            "os_threads": _ask(lambda: process.num_threads()),
            "fds": _ask(lambda: process.num_fds()),
        }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _share(used: float | None, limit: float | None) -> float | None:
    return used / limit if used is not None and limit else None


def _ask(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception:  # AccessDenied, a platform without the figure, no psutil: unknown
        return None
