"""What a dead or hung worker process tells: why it died, and where it hung."""

from __future__ import annotations

import linecache
import re
import signal

HINT_AT_START = (
    "; it died while starting. A script whose functions run in worker processes needs its own start under "
    '`if __name__ == "__main__":` (or start_method="fork")'
)
_CGROUP_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$', re.M)


def out_of_memory_kills() -> int | None:
    """How many processes of this control group the kernel has killed for want of memory; None where it is not told."""
    for path in _CGROUP_EVENTS:
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return None


def reason(code: int | None, ooms_before: int | None, memory_limit: int | None) -> str:
    """Why a process with this exit code ended, as words."""
    if code is None:
        return "it ended, nobody knows how: something else has taken its exit status"
    if code >= 0:
        return f"it left with exit code {code}, in the middle of the call"
    name = _signal_name(-code)
    words = f"killed by {name}"
    if -code == signal.SIGKILL:
        now = out_of_memory_kills()
        if now is not None and ooms_before is not None and now > ooms_before:
            return words + ": the kernel ran out of memory (oom_kill of the control group rose)"
        return words + " from outside: often the kernel's, for want of memory"
    if -code == signal.SIGALRM:
        return words + ": its own alarm, after a deadline that nobody enforced"
    if memory_limit is not None:
        words += f" under a memory limit of {memory_limit} bytes"
    return words


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def stack_from(dump: bytes) -> str:
    """The traceback of a worker's function out of what `faulthandler` wrote: most recent call last, with its lines."""
    frames = []
    for file, number, function in _FRAME.findall(dump.decode("utf-8", "replace")):
        if file.endswith("process_child.py"):  # from here outwards it is ours
            break
        source = linecache.getline(file, int(number)).strip() if number.isdigit() else ""
        frames.append(f'  File "{file}", line {number}, in {function}\n    {source or "?"}\n')
    return "".join(reversed(frames))
