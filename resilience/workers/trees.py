"""Process trees: found before anything is signalled, frozen so that nothing escapes, and ended together.

A child that was put into a session of its own (`setsid`) leaves the process group, and one whose parent has died leaves
the tree: it is then init's. So the tree is walked *before* a signal is sent, and a process that calls
`become_subreaper()` first keeps even the orphans below itself. Do that in a process made for the purpose (a worker, a
wrapper around one command), never in a user's own: it would inherit zombies that it does not know of.

For a wrapper around one command: `become_subreaper()`, start the command with `start_new_session=True`,
`signal_tree(pid, SIGTERM)` where a soft end is wanted, `end_tree(pid)` at the deadline, and `end_descendants()` last,
for what the command left behind. All of them give how many processes were reached.
"""

from __future__ import annotations

import os
import signal
import sys

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 50  # walks until a tree that keeps forking counts as frozen

_PROC = "/proc" if os.path.exists("/proc/self/stat") else None
_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Member:
    """A process as it was seen: a pid alone may be another process by now, pid and start time may not."""

    __slots__ = ("parent", "pid", "started", "state")

    def __init__(self, pid: int, parent: int, state: str, started: str) -> None:
        self.pid = pid
        self.parent = parent
        self.state = state
        self.started = started

    @property
    def is_zombie(self) -> bool:
        """Whether it has ended and only waits to be reaped."""
        return self.state in "ZX"

    def send(self, number: int) -> bool:
        """Signals the process if it is still the same one; False when it has ended."""
        now = look(self.pid)
        if now is None or now.started != self.started or now.is_zombie:
            return False
        try:
            os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        now = look(self.pid)
        return now is not None and now.started == self.started and not now.is_zombie

    def __repr__(self) -> str:
        return f"Member(pid={self.pid}, parent={self.parent}, state={self.state!r})"


def look(pid: int) -> Member | None:
    """The process with this pid, None when there is none."""
    if _PROC is None:
        return _look_with_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return Member(pid, int(fields[1]), fields[0].decode(), fields[19].decode())


def _look_with_psutil(pid: int) -> Member | None:
    import psutil

    try:
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "R"
        return Member(pid, process.ppid(), state, repr(process.create_time()))
    except psutil.Error:
        return None


def _all_pids() -> Iterable[int]:
    if _PROC is None:
        import psutil

        return psutil.pids()
    return (int(name) for name in os.listdir(_PROC) if name.isdigit())


def descendants(pid: int) -> list[Member]:
    """The living processes below `pid`, parents before their children; zombies are left out."""
    return below((pid,))


def below(pids: Iterable[int]) -> list[Member]:
    """The living processes below all of these, found in one walk."""
    children_of = _listed_children if _LISTS_CHILDREN else _children_by_parent()
    found: list[Member] = []
    waiting = list(pids)
    seen = set(waiting)
    while waiting:
        for member in children_of(waiting.pop(0)):
            if member.pid not in seen:
                seen.add(member.pid)
                waiting.append(member.pid)
                if not member.is_zombie:
                    found.append(member)
    return found


def _listed_children(pid: int) -> Iterable[Member]:
    """The children of a process as Linux lists them, for certain all of them once it is stopped (proc(5))."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                listed = file.read().split()
        except OSError:
            continue
        yield from filter(None, (look(int(child)) for child in listed))


def _children_by_parent() -> Callable[[int], Iterable[Member]]:
    """Who the children of a process are, from a look at every process there is."""
    children: dict[int, list[Member]] = {}
    for pid in _all_pids():
        member = look(pid)
        if member is not None:
            children.setdefault(member.parent, []).append(member)
    return lambda parent: children.get(parent, ())


def _freeze(walk: Callable[[], list[Member]]) -> list[Member]:
    """Stops a tree until a walk finds nobody new: a stopped process starts no others."""
    stopped: dict[tuple[int, str], Member] = {}
    for _ in range(ROUNDS):
        fresh = [member for member in walk() if (member.pid, member.started) not in stopped]
        for member in fresh:
            stopped[member.pid, member.started] = member
            member.send(signal.SIGSTOP)
        if not fresh:
            break
    return list(stopped.values())


def end_tree(pid: int, *, group: bool = True) -> int:
    """Ends `pid` and everything below it with SIGKILL; with `group` also its process group, when it leads one.

    Stopped processes, those that ignore signals and children in sessions of their own end as well. Returns at once:
    the kernel may need some milliseconds more, and who started `pid` has to reap it (see `wait_until_gone`). Gives how
    many processes were told to end.
    """
    return end_trees((pid,), group=group)


def end_trees(pids: Iterable[int], *, group: bool = True) -> int:
    """`end_tree` for several processes at once: the walks are shared."""
    seen = [look(pid) for pid in pids]
    roots = [root for root in seen if root is not None and not root.is_zombie]
    members = _freeze(lambda: roots + below(root.pid for root in roots)) if roots else []
    if group:
        for pid in pids:
            _end_group(pid)
    for member in reversed(members):  # the roots last: until then they keep their children
        member.send(signal.SIGKILL)
    return len(members)


def _end_group(pid: int) -> None:
    if pid > 1 and pid != os.getpgrp():
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def signal_tree(pid: int, number: int) -> int:
    """Sends a signal to `pid` and everything below it, parents first; gives how many processes it has reached."""
    root = look(pid)
    members = descendants(pid) if root is None else [root, *descendants(pid)]
    return sum(member.send(number) for member in members)


def end_descendants() -> int:
    """Ends everything below this process, and reaps what became its child; gives how many were told to end.

    For a process that is about to leave: it takes the exit status of children that others may still ask for.
    """
    members = _freeze(lambda: descendants(os.getpid()))
    for member in members:
        member.send(signal.SIGKILL)
    wait_until_gone(members)
    reap_children()
    return len(members)


def wait_until_gone(members: Iterable[Member], timeout: float = 1.0) -> bool:
    """Waits up to `timeout` seconds until none of them runs any more; False when one still does."""
    end = SYSTEM.monotonic() + timeout
    pause = 0.0005
    while any(member.is_alive() for member in members):
        if SYSTEM.monotonic() >= end:
            return False
        SYSTEM.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def reap_children() -> int:
    """Takes away the zombies among this process's children; gives how many."""
    count = 0
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return count
        if pid == 0:
            return count
        count += 1


def become_subreaper() -> bool:
    """Makes this process the parent of every orphan below it; False where the system has no such thing (not Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    return bool(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
