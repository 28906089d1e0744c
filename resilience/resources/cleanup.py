"""Running clean-ups within a time limit, and what is said of what is open at the end."""

from __future__ import annotations

import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handles import Handle
    from .manager import ResourceManager


def run_cleanup(handle: Handle, timeout: float | None) -> str | None:
    """Runs the clean-up, on a thread of its own where it has a time limit; gives what went wrong as text."""
    from ..core.history import error_text

    cleanup, handle._cleanup = handle._cleanup, None
    if cleanup is None:
        return None
    failures: list[str] = []

    def attempt() -> None:
        try:
            cleanup()
        except BaseException as error:
            if timeout is None and not isinstance(error, Exception):
                raise
            failures.append(error_text(error))

    if timeout is None:
        attempt()
    else:
        thread = threading.Thread(target=attempt, name=f"resilience-cleanup-{handle.resource_id}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had, or the interpreter is on its way out
            attempt()
            return failures[0] if failures else None
        thread.join(timeout)
        if thread.is_alive():
            return f"still running after {timeout:g} s, left behind"
    return failures[0] if failures else None


def report_at_exit(manager: ResourceManager) -> None:
    import atexit

    reference = weakref.ref(manager)

    def report() -> None:
        living = reference()
        if living is not None:
            living.report_leaks_at_exit()

    atexit.register(report)
    weakref.finalize(manager, atexit.unregister, report).atexit = False
