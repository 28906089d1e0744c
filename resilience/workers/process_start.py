"""Starting worker processes: one lock around every start and every fork, and what multiprocessing forgets in a fork."""

from __future__ import annotations

# The first two take locks of their own at each fork, as we do below: whoever is registered last takes his first, and a
# start holds ours before it forks.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import sys
import threading
import weakref

from ..core.forks import living
from . import trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from typing import Any

    from .worker_process import WorkerProcess

START_METHODS = ("forkserver", "spawn", "fork")
_CHILD = "resilience.workers.process_child"

# Held while a process is started, and by whoever forks: no child is born in the middle of a start.
_starting = threading.RLock()

# Every worker process of this one: ended at exit, let go of in a forked child.
LIVING: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()
_at_exit = False


def start(method: str, target: Any, args: tuple[Any, ...], name: str) -> BaseProcess:
    """Starts `target(*args)` in a process of its own."""
    import multiprocessing

    context: Any = multiprocessing.get_context(method)
    with _starting:
        _end_all_at_exit()
        if method == "forkserver":
            _preload(context)
        process: BaseProcess = context.Process(target=target, args=args, name=name, daemon=True)
        process.start()
        return process


def _preload(context: Any) -> None:
    """Lets the fork server import our side once instead of each worker anew, where nobody chose a list of his own."""
    from multiprocessing import forkserver

    server: Any = getattr(forkserver, "_forkserver", None)
    if getattr(server, "_preload_modules", None) == ["__main__"] and getattr(server, "_forkserver_pid", 0) is None:
        context.set_forkserver_preload(["__main__", _CHILD])


def _end_all_at_exit() -> None:
    """Before multiprocessing's own end, which waits for workers that hang."""
    global _at_exit
    if not _at_exit:
        import atexit
        import multiprocessing.connection  # else imported in a wait, where a fork may catch it half done
        import multiprocessing.util  # noqa: F401  # its hook has to be registered first, to be called last

        _at_exit = True
        atexit.register(end_all)


def end_all() -> None:
    """Ends every worker process of this one, with all below them."""
    running = [worker for worker in living(LIVING) if worker.is_running]
    trees.end_trees([worker.pid for worker in running if worker.has_its_pid])
    for worker in running:
        worker.close()


def _before_fork() -> None:
    _starting.acquire()


def _after_fork_in_parent() -> None:
    _starting.release()


def _after_fork() -> None:
    global _starting  # a new one: where the fork is itself a start, ours is still held
    _starting = threading.RLock()
    for worker in list(LIVING):
        worker.disown()
    LIVING.clear()
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if getattr(server, "_forkserver_pid", None) is not None:  # it is our parent's: this process starts its own
        if server._forkserver_alive_fd is not None:
            os.close(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
