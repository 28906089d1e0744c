"""Python itself: bugs, memory, threads, pickling, queues and executors; the builtin errors of the system."""

from __future__ import annotations

from . import os_errors
from .rows import BUG, BUG_ANSWERED, NO_ROOM, NO_ROOM_UNKNOWN, PARTIAL, UNKNOWN, T, table, verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

_SHUTTING_DOWN: Row = (T, False, "not_sent")

# RuntimeError and Exception have no row: they say nothing about what happened.
BUILTINS: dict[str, Row] = {
    "NameError": BUG,
    "AssertionError": BUG,
    "LookupError": BUG,
    "NotImplementedError": BUG,
    "ValueError": BUG,
    "UnicodeError": BUG,
    "ArithmeticError": BUG,
    "ImportError": BUG,
    "SyntaxError": BUG,
    "RecursionError": BUG,
    "BufferError": BUG,
    "ReferenceError": BUG,
    "SystemError": BUG,
    "StopIteration": BUG,
    "StopAsyncIteration": BUG,
    "Warning": BUG,  # raised where warnings are errors
    "EOFError": PARTIAL,
    "MemoryError": NO_ROOM_UNKNOWN,
    "PythonFinalizationError": _SHUTTING_DOWN,
}

FUTURES: dict[str, Row] = {
    "CancelledError": (T, False, "not_sent"),
    "TimeoutError": UNKNOWN,
    "InvalidStateError": BUG,
    "BrokenExecutor": NO_ROOM_UNKNOWN,  # a pool has lost a process, most often to the kernel's want of memory
}

_NO_THREADS = verdict(NO_ROOM, "python:can't start new thread")
_ENDING = verdict(_SHUTTING_DOWN, "python:shutdown")
_UNPICKLABLE = verdict(BUG, "pickle:unpicklable")
_RUNTIME = {
    "can't start new thread": _NO_THREADS,
    "can't create new thread at interpreter shutdown": _ENDING,
    "cannot schedule new futures after shutdown": _ENDING,
    "cannot schedule new futures after interpreter shutdown": _ENDING,
}


def _runtime(error: Any) -> Classification | None:
    args = error.args
    return _RUNTIME.get(args[0]) if args else None


def _pickling(error: Any) -> Classification | None:
    """Pickle tells in the words of a TypeError or an AttributeError that it cannot."""
    args = error.args
    if args and isinstance(args[0], str) and args[0].lower().startswith(("cannot pickle", "can't pickle", "can't get")):
        return _UNPICKLABLE
    return None


TABLE: Table = {
    **table("builtins", "python", BUILTINS),
    **table("builtins", "python", {"TypeError": BUG, "AttributeError": BUG}, _pickling),
    "builtins.RuntimeError": (_runtime, None),
    **os_errors.BUILTINS,
    **table("json.decoder", "json", {"JSONDecodeError": BUG_ANSWERED}),
    **table("_pickle", "pickle", {"PicklingError": BUG, "UnpicklingError": BUG_ANSWERED, "PickleError": BUG}),
    **table("pickle", "pickle", {"PicklingError": BUG, "UnpicklingError": BUG_ANSWERED, "PickleError": BUG}),
    **table("queue", "queue", {"Full": NO_ROOM, "Empty": UNKNOWN, "ShutDown": _SHUTTING_DOWN}),
    **table("_queue", "queue", {"Empty": UNKNOWN}),
    **table("concurrent.futures._base", "concurrent.futures", FUTURES),
    **table(
        "asyncio.exceptions",
        "asyncio",
        {"TimeoutError": UNKNOWN, "InvalidStateError": BUG, "IncompleteReadError": PARTIAL},
    ),
    **table("threading", "threading", {"BrokenBarrierError": UNKNOWN}),
    **table("multiprocessing.context", "multiprocessing", {"TimeoutError": UNKNOWN, "AuthenticationError": BUG}),
    **table("multiprocessing.pool", "multiprocessing", {"MaybeEncodingError": BUG}),
}
