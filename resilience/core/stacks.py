"""Where threads are: their stacks as text, taken without stopping the interpreter for good.

Before CPython 3.11.9 a garbage collection inside `sys._current_frames()` can block the whole process against a thread
that just starts (gh-106883); 3.10 keeps that fault. In all of 3.11 one inside `frame.f_back` lets the thread run on
whose frames are looked at, and the frame that is asked for may be gone then: the process dies of SIGSEGV. Before 3.12,
where a collection waits for the next bytecode, the collector rests for the length of the look.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback

from .forks import STACKS, held_across_forks
from .signature import WRAPPERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import TypeVar

    T = TypeVar("T")

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep, WRAPPERS  # how our files' names begin
_collector_is_risky = sys.version_info < (3, 12)
_looking = threading.RLock()  # reentrant: a signal handler may look, or fork, in the middle


def stacks_of(idents: Iterable[int]) -> dict[int, str]:
    """The stacks of these threads by their ident, as text; a thread that has ended is missing."""
    return with_frames(
        lambda frames: {ident: "".join(traceback.format_stack(frames[ident])) for ident in idents if ident in frames}
    )


def with_frames(look: Callable[[dict[int, FrameType]], T]) -> T:
    """What `look(frames)` gives for the innermost frames of all threads by their ident; it keeps none of them."""
    if not _collector_is_risky:
        return _look(look)
    with _looking:
        was_enabled = gc.isenabled()
        try:
            gc.disable()
            return _look(look)
        finally:
            if was_enabled:
                gc.enable()


def _look(look: Callable[[dict[int, FrameType]], T]) -> T:
    frames = sys._current_frames()
    try:
        return look(frames)
    finally:
        frames.clear()  # our own frame is among them


if _collector_is_risky:
    held_across_forks(STACKS, _looking.acquire, _looking.release)  # no child is born with its collector off
