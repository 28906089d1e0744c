"""What can be seen of a process: its agent's report, and what the operating system says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilience.agent.client import Unreachable, agents, ask, dump, place_of
from resilience.core.clock import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.agent.places import Place

HOW_TO_GET_MORE = "start it with RESILIENCE_AGENT=1 in its environment to see operations, breakers and stacks"
CPU_OVER = 0.1  # seconds that the use of the processor is measured over
UNSEEN = ("operations", "breakers", "rates", "abandoned", "alerts", "fan_outs", "workers", "pools")


class View:
    """Looks at one process, again and again. Raises `Unreachable` (reason "dead") when it is not there."""

    def __init__(self, pid: int, timeout: float) -> None:
        import psutil

        self.pid = pid
        self._timeout = timeout
        try:
            self._process = psutil.Process(pid)
            self._process.cpu_percent(None)  # the first call only sets the starting point
        except psutil.NoSuchProcess:
            raise Unreachable(f"no process {pid}", "dead") from None
        except psutil.Error:
            pass
        self._since = SYSTEM.monotonic()

    def look(self, *, stacks: bool = False) -> dict[str, Any]:
        """Everything as plain data; what nobody tells is None."""
        seen: dict[str, Any] = {"pid": self.pid, "agent": "answered", "hint": None}
        try:
            place = place_of(self.pid)
            seen.update(ask(place, "stacks" if stacks else "report", self._timeout))
        except Unreachable as missing:
            if missing.reason == "dead":
                raise
            seen["agent"] = "none" if missing.reason == "no agent" else "silent"
            seen["hint"] = f"{missing}: {HOW_TO_GET_MORE if seen['agent'] == 'none' else 'try --dump'}"
            seen.update(dict.fromkeys(UNSEEN))
            if stacks and seen["agent"] == "silent":
                seen["hint"] = f"{missing}; its interpreter wrote these stacks, without ages"
                seen["dump"] = self._dumped(place)
        seen["process"] = self._from_outside()
        if seen.get("threads") is None:
            seen["threads"] = seen["process"]["threads"]
        if seen.get("command") is None:
            seen["command"] = seen["process"]["command"]
        return seen

    def _dumped(self, place: Place) -> str | None:
        try:
            return dump(place)
        except (Unreachable, OSError):
            return None

    def _from_outside(self) -> dict[str, Any]:
        """What the operating system says; None where it does not tell."""
        import psutil

        process = self._process
        if (early := CPU_OVER - (SYSTEM.monotonic() - self._since)) > 0:
            SYSTEM.sleep(early)
        figures: dict[str, Any] = {}
        questions: dict[str, Callable[[], Any]] = {
            "command": process.cmdline,
            "state": process.status,
            "up": lambda: SYSTEM.time() - process.create_time(),
            "cpu": lambda: process.cpu_percent(None),
            "rss": lambda: process.memory_info().rss,
            "threads": process.num_threads,
            "fds": process.num_fds,
            "max_fds": lambda: process.rlimit(psutil.RLIMIT_NOFILE)[0],
            "children": lambda: len(process.children(recursive=True)),
        }
        for name, question in questions.items():
            try:
                figures[name] = question()
            except (psutil.Error, AttributeError, OSError, ValueError):
                figures[name] = None
        if not process.is_running() or figures["state"] == "zombie":
            raise Unreachable(f"no process {self.pid}", "dead")
        return figures


def every_report(timeout: float) -> list[dict[str, Any]]:
    """The reports of all processes with an agent; those that do not answer say so."""
    reports = []
    for place in agents():
        try:
            reports.append(View(place.pid, timeout).look())
        except Unreachable:  # ended meanwhile
            continue
    return reports
