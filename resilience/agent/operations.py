"""The operations that run now: those that are tracked, and those seen on the stacks of the threads.

A call in the express lane, a lone `Timeout` or an item of a fan-out is entered in no list: that would cost each call.
It is found where it stands, by the frames of this toolkit and what they hold.
"""

from __future__ import annotations

import os
import threading
import traceback

from ..core.clock import SYSTEM
from ..core.context import OperationContext
from ..core.pipeline import Call
from ..core.stacks import OURS, with_frames
from ..workers.ledger import LEDGER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType
    from typing import Any

WAITS = {"context.py": "waiting", "clock.py": "waiting", "threads.py": "queued", "bulkhead.py": "queued",
         "gate.py": "queued"}  # fmt: skip


class Running:
    """One operation that runs: by context (the outermost that is it), or by what a frame holds."""

    __slots__ = ("age", "attempt", "ident", "kind", "left", "name", "phase", "thread", "timeout", "worker")

    def __init__(self, name: str, ident: str, thread: int | None, age: float | None) -> None:
        self.name = name
        self.ident = ident
        self.thread = thread  # that waits for it
        self.worker: int | None = None  # that runs it, where that is another one
        self.age = age
        self.left: float | None = None
        self.timeout: float | None = None
        self.attempt: int | None = None
        self.phase = ""


def running_operations(
    contexts: Iterable[tuple[OperationContext, int | None]], *, stacks: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every operation that runs as plain data; and with `stacks` the stack of each thread by its name."""
    tracked = list(contexts)
    return with_frames(lambda frames: _seen(frames, tracked, stacks))


def _seen(
    frames: dict[int, FrameType], tracked: list[tuple[OperationContext, int | None]], stacks: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    found: dict[Any, Running] = {}
    for context, thread in tracked:
        _note(found, context, context.worker or thread, on_worker=context.worker is not None)
    own = threading.get_ident()
    for ident, frame in frames.items():
        if ident != own:
            _look(found, ident, frame)
    names: dict[int | None, str] = {thread.ident: thread.name for thread in threading.enumerate()}
    lost = {(entry.operation, entry.thread) for entry in LEDGER.abandoned()}
    for running in found.values():
        if (running.name, names.get(running.worker, "")) in lost:
            running.phase, running.left = "abandoned", 0.0
    operations = [_as_dict(running, frames, names, stacks) for running in found.values()]
    texts = {}
    if stacks:
        texts = {
            names.get(ident, f"thread {ident}"): "".join(traceback.format_stack(frame))
            for ident, frame in frames.items()
            if ident != own
        }
    return operations, texts


def _note(found: dict[Any, Running], context: OperationContext, thread: int | None, *, on_worker: bool) -> None:
    """Enters the operation a context belongs to: an attempt is part of the call around it."""
    root = context
    while root.is_attempt and root.parent is not None and root.parent.operation == root.operation:
        root = root.parent
    running = found.get(id(root))
    if running is None:
        age = max(0.0, root.clock.monotonic() - root.started)
        running = found[id(root)] = Running(root.operation or "(deadline)", root.operation_id, thread, age)
        running.timeout = root.timeout
    if context.is_attempt or running.timeout is None:
        running.timeout = context.timeout
    left = context.remaining()
    if left is not None and (running.left is None or left < running.left):
        running.left = left
    running.attempt = max(running.attempt or 1, context.attempt)
    if on_worker:
        running.worker = thread


def _look(found: dict[Any, Running], thread: int, frame: FrameType) -> None:
    """Notes what the frames of this toolkit on one thread hold, innermost first."""
    standing = frame
    seen_inside = False  # an item of a fan-out with an operation of its own is that operation
    for current in _outward(frame):
        code = current.f_code
        if not code.co_filename.startswith(OURS):
            continue
        held = current.f_locals
        context, call = held.get("context"), held.get("call")
        if isinstance(context, OperationContext) and (context.operation or context.timeout is not None):
            _note(found, context, thread, on_worker=code.co_name == "_within")
            seen_inside = True
        elif "mark" in held and "entry" in held and "operation" in held:
            _note_lane(found, thread, current, held)
            seen_inside = True
        elif "mark" in held and "started" in held:  # a `Timeout`, in a pipeline or around a decorated function
            _note_limit(found, thread, current, held)
            seen_inside = True
        elif isinstance(call, Call) and call.context is None and call.name and code.co_name == "call":
            age = None if call.started is None else SYSTEM.monotonic() - call.started
            found.setdefault(id(call), Running(call.name, f"call-{id(call):x}", thread, age))
            seen_inside = True
        elif code.co_name == "_pull" and not seen_inside:
            _note_item(found, thread, held)
        elif code.co_name == "wrapper" or (code.co_filename.endswith("circuit_breaker.py") and code.co_name == "call"):
            breaker = held.get("breaker") or held.get("self")
            if not seen_inside and breaker is not None:
                found.setdefault(id(current), Running(str(breaker.name), f"breaker-{thread}", thread, None))
    del standing


def _outward(frame: FrameType) -> Iterator[FrameType]:
    following: FrameType | None = frame
    while following is not None:
        yield following
        following = following.f_back


def _note_lane(found: dict[Any, Running], thread: int, frame: FrameType, held: dict[str, Any]) -> None:
    """A call in the express lane: its entry holds all that a context would."""
    name, total, timeout, clock = held["entry"]
    age = max(0.0, clock.monotonic() - held["started"])
    running = found.setdefault(id(frame), Running(name, f"{name}-{thread}", thread, age))
    limits = [limit for limit in (total, timeout) if limit is not None]
    if limits:
        running.timeout = min(limits)
        running.left = max(0.0, running.timeout - age)


def _note_limit(found: dict[Any, Running], thread: int, frame: FrameType, held: dict[str, Any]) -> None:
    """A `Timeout` in the caller's thread: the limit of the operation around it, or one by itself."""
    limit, call = held.get("timeout") or held["self"], held.get("call")
    age = max(0.0, limit.clock.monotonic() - held["started"])
    around = None if call is None else found.get(id(call.context))
    running = around or found.setdefault(
        id(frame), Running(held.get("name") or limit.name or "(deadline)", f"limit-{thread}", thread, age)
    )
    left = max(0.0, limit.seconds - age)
    if running.left is None or left < running.left:
        running.timeout, running.left = limit.seconds, left
    running.attempt = max(running.attempt or 1, 1 if call is None else call.attempt)


def _note_item(found: dict[Any, Running], thread: int, held: dict[str, Any]) -> None:
    job, number = held.get("self"), held.get("number")
    holding = getattr(job, "holding", None)
    if not holding or number is None or holding[number] is None or "started" not in held:
        return
    name = getattr(job, "name", None) or "fan_out"
    index = holding[number][0]
    age = max(0.0, SYSTEM.monotonic() - held["started"])
    found[("item", id(job), index)] = Running(name, f"item {index}", thread, age)


def _as_dict(
    running: Running, frames: dict[int, FrameType], names: dict[int | None, str], stacks: bool
) -> dict[str, Any]:
    thread = running.worker or running.thread
    frame = None if thread is None else frames.get(thread)
    entry: dict[str, Any] = {
        "operation": running.name,
        "operation_id": running.ident,
        "age": running.age,
        "time_left": running.left,
        "timeout": running.timeout,
        "attempt": running.attempt,
        "phase": _phase(running, frame),
        "thread": names.get(thread, "" if thread is None else str(thread)),
        "where": _where(frame),
    }
    if stacks:
        entry["stack"] = "" if frame is None else "".join(traceback.format_stack(frame))
    return entry


def _phase(running: Running, frame: FrameType | None) -> str:
    """`queued` for a place or a thread, `waiting` for the next attempt, `abandoned` by its caller, else `running`."""
    if running.phase:
        return running.phase
    if frame is not None:
        inner = frame.f_code.co_filename
        if os.path.basename(inner) == "threading.py" and frame.f_back is not None:
            frame = frame.f_back if frame.f_back.f_code.co_filename != inner else frame.f_back.f_back or frame
            inner = frame.f_code.co_filename
        if inner.startswith(OURS):
            return WAITS.get(os.path.basename(inner), "running")
    return "running"


def _where(frame: FrameType | None) -> str:
    """The innermost line that is the program's own: neither ours nor the standard library's threading."""
    if frame is None:
        return ""
    for current in _outward(frame):
        name = current.f_code.co_filename
        if not name.startswith(OURS) and os.path.basename(name) != "threading.py":
            return f"{name}:{current.f_lineno} in {current.f_code.co_name}"
    return ""
