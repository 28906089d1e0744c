"""The worker process's side: it takes calls from a socket and runs them in its main thread.

It does not outlive its parent. Three things end it besides the parent's SIGKILL: the life line, a socket whose other
end only the parent holds, on which the kernel kills the whole process group when the parent is gone (no interpreter
lock is needed for that); its own SIGALRM shortly after the deadline of a call; and the end of the line of calls.
"""

from __future__ import annotations

import contextvars
import faulthandler
import os
import pickle
import signal
import socket
import sys
import threading

from ..core import ambient
from ..core.carried import restored
from ..core.clock import SYSTEM
from ..core.entries import enter_lane
from ..core.history import add_note
from . import trees
from .envelope import cannot_send, pack_error, pack_value
from .wire import CALL, ERROR, HELLO, LEAVING, NOT_LOADED, VALUE, frame, receive, send_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ALARM_GRACE = 0.5  # seconds after the deadline at which a worker whose parent did not end it ends itself
STACK_SIGNAL: int = getattr(signal, "SIGRTMAX", signal.SIGUSR2) - (3 if hasattr(signal, "SIGRTMAX") else 0)


class ChildSettings:
    """What a worker process is told when it starts; `task` is a call that reached it by fork, not by the line."""

    __slots__ = ("max_rss", "memory_limit", "name", "task")

    def __init__(self, name: str, memory_limit: int | None, max_rss: int | None, task: Any = None) -> None:
        self.name = name
        self.memory_limit = memory_limit
        self.max_rss = max_rss
        self.task = task


class _Child:
    """One worker process from the inside."""

    def __init__(self, line: socket.socket, settings: ChildSettings) -> None:
        self.line = line
        self.settings = settings
        self.pid = os.getpid()
        self.where = f"worker process {self.pid} of {settings.name!r}"
        self.no_memory = pack_error(MemoryError(self._out_of_memory()), self.where)
        self.leaving = False
        self.owners: tuple[bytes, Any] = (b"", None)

    def _out_of_memory(self) -> str:
        limit = self.settings.memory_limit
        return "out of memory" if limit is None else f"over its memory limit of {limit} bytes"

    def serve(self) -> None:
        """Answers calls until the line ends."""
        send_all(self.line, frame(HELLO, b""))
        while True:
            got = receive(self.line)
            if got is None:
                return
            kind, payload = got
            if kind == CALL:
                self._answer(payload)

    def _answer(self, payload: bytes) -> None:
        try:
            if payload:
                fn, args, kwargs, surroundings = pickle.loads(payload)
            else:
                fn, args, kwargs, surroundings = self.settings.task
        except MemoryError:
            kind, answer = ERROR, self.no_memory
        except BaseException as error:
            kind, answer = NOT_LOADED, pack_error(cannot_send(_name_in(payload), error), self.where)
        else:
            facts, end, owners = surroundings
            _arm(end)
            kind, answer = self._run(fn, args, kwargs, facts, owners)
            if os.getpid() != self.pid:  # the function forked and its child came back here
                os._exit(0)
            _arm(None)
        del payload
        self._flush()
        if self.settings.max_rss is not None and _resident() > self.settings.max_rss:
            self.leaving = True
        send_all(self.line, frame(kind | (LEAVING if self.leaving else 0), answer))

    def _run(self, fn: Any, args: Any, kwargs: Any, facts: Any, owners: bytes) -> tuple[int, bytes]:
        try:
            value = contextvars.Context().run(self._within, facts, owners, fn, args, kwargs)
            return VALUE, pack_value(fn, value)
        except MemoryError as error:
            self.leaving = True  # what it holds is not ours to know
            add_note(error, self._out_of_memory())
            return ERROR, self._packed(error)
        except BaseException as error:
            return ERROR, self._packed(error)

    def _packed(self, error: BaseException) -> bytes:
        try:
            trace = error.__traceback__
            for _ in range(2):  # the frames of ours before the function's own
                trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
            return pack_error(error.with_traceback(trace), self.where)
        except MemoryError:
            return self.no_memory

    def _within(self, facts: Any, owners: bytes, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        context = restored(facts)
        enter_lane(context)
        if owners:
            ambient.retry_owner.set(self._owners_from(owners))
        return fn(*args, **kwargs)

    def _owners_from(self, data: bytes) -> Any:
        """The policies around the call over there, as `retry_owner` holds them."""
        if self.owners[0] != data:
            link: Any = None
            for policy in reversed(pickle.loads(data)):
                link = (policy, link)
            self.owners = data, link
        return self.owners[1]

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass


def _name_in(payload: bytes) -> str:
    """The function of a call that did not load, as far as its bytes tell."""
    import pickletools

    words = []
    try:
        for opcode, argument, _ in pickletools.genops(payload[:4096]):
            if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE"):
                words.append(str(argument))
            if len(words) == 2:
                break
    except Exception:
        pass
    return ".".join(words) or "a call"


def _resident() -> int:
    """Resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _arm(end: float | None) -> None:
    """Sets the alarm that ends this process after `end` (monotonic) when its parent does not, or takes it back."""
    if end is None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(0.0, end - SYSTEM.monotonic()) + ALARM_GRACE)


def _die_with_parent(life: socket.socket) -> None:
    """Lets the kernel kill this process group when the parent's end of the life line is gone."""
    try:
        import fcntl

        fcntl.fcntl(life.fileno(), fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life.fileno(), fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life.fileno(), fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    except (AttributeError, OSError):  # not Linux: a thread looks, which an extension may hold up
        threading.Thread(target=_watch_life, args=(life,), name="resilience-life-line", daemon=True).start()
        return
    try:
        gone = not life.recv(1)
    except BlockingIOError:
        gone = False
    if gone:
        os._exit(1)


def _watch_life(life: socket.socket) -> None:
    life.setblocking(True)
    try:
        life.recv(1)
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _limit_memory(limit: int | None) -> None:
    if limit is not None:
        import resource

        limit = min(limit, sys.maxsize)  # the kernel counts no further
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main(line: socket.socket, life: socket.socket, settings: ChildSettings) -> None:
    """The life of a worker process."""
    import multiprocessing

    os.setpgid(0, 0)
    _die_with_parent(life)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    trees.become_subreaper()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # tasks may have children
    line.setblocking(True)
    faulthandler.register(STACK_SIGNAL, file=line.fileno(), all_threads=False, chain=False)
    child = _Child(line, settings)
    _limit_memory(settings.memory_limit)
    try:
        child.serve()
    finally:
        if os.getpid() == child.pid:
            trees.end_descendants()
            os.killpg(child.pid, signal.SIGKILL)
