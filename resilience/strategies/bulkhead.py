"""Bulkhead: at most so many calls at once; the others wait their turn for a while, or are refused."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import deque

from ..core import ambient, lifecycle
from ..core.clock import SYSTEM
from ..core.errors import (
    BulkheadFullError,
    OperationCancelled,
    ShutdownInProgress,
    require_count,
    require_seconds,
)
from ..core.forks import living
from ..core.pipeline import refuse_async, refuse_awaitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    from ..core.clock import Clock
    from ..core.events import EventStream
    from ..core.pipeline import Call
    from ..rules.pressure import Pressure
    from ..stores.port import Store
    from ..workers.throttle import Throttle
    from .bulkhead_shared import Order, SharedSlots

    P = ParamSpec("P")
    R = TypeVar("R")


class Bulkhead:
    """`max_concurrent` calls at once; up to `max_queue` more wait, first come first served, `max_wait` seconds at most.

    Refuses with `BulkheadFullError`. A slot is held as long as the body runs, also when its caller has given up.
    Use it as `.call`, decorator, `with` block or strategy. Safe to share between threads.

    With a `store` (or the URL of one) that holds for all processes that use the name there: each leases the slots it
    needs. Slots of a process that dies or hangs are others' after 5 s. While the store is away each process has all
    `max_concurrent` for itself. Every process goes by its own `max_concurrent`; give all of them the same.
    """

    def __init__(
        self,
        name: str,
        max_concurrent: int,
        max_queue: int = 0,
        max_wait: float = 0.0,
        *,
        clock: Clock | None = None,
        events: EventStream | None = None,
        store: Store | str | None = None,
    ) -> None:
        require_count("max_concurrent", max_concurrent)
        require_count("max_queue", max_queue, minimum=0)
        require_seconds("max_wait", max_wait)
        self.name = name
        self.full_width = max_concurrent
        self.max_concurrent = max_concurrent  # less than that while a limit of the process is near
        self._throttle: Throttle | None = None
        self._reason = ""
        self.max_queue = max_queue
        self.max_wait = max_wait
        self.clock = clock or SYSTEM
        self.events = events
        self.shared: SharedSlots | None = None
        self._fresh()
        if store is not None:
            self.shared = _shared(store, self)
        _all.add(self)

    def _fresh(self) -> None:
        self._lock = threading.RLock()  # a wait begun in a cancelled operation is woken from inside
        self._changed = threading.Condition(self._lock)
        self.queue: deque[object] = deque()
        self.in_flight = 0
        self.abandoned = 0
        if self.shared is not None:
            self.shared.fresh()

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return len(self.queue)

    def acquire(self) -> None:
        """Takes a slot, waiting for it as long as allowed; raises `BulkheadFullError` or what ends the wait."""
        if self._throttle is not None:
            self._throttle.look()
        has_slot = False
        try:
            if self.shared is not None:
                has_slot = self.shared.enter()
            if not has_slot:
                with self._lock:
                    if not self.enters_held():
                        self._wait_held()
                        self.in_flight += 1
                    has_slot = True
        except BaseException:
            if has_slot:  # a Ctrl-C on the way out
                self.release()
            raise

    def _wait_held(self) -> None:
        if len(self.queue) >= self.max_queue or self.max_wait == 0:
            raise self._full_held()
        turn = object()
        self.queue.append(turn)
        try:
            self._await_turn_held(turn)
        finally:
            self.queue.remove(turn)
            self._changed.notify_all()

    @property
    def waits(self) -> bool:
        """Whether a call that finds no slot waits for one."""
        return self.max_queue > 0 and self.max_wait > 0

    def enters_held(self) -> bool:
        """Takes a slot if one is free for a call that has not waited."""
        if self.queue or not self._has_room_held():
            return False
        self.in_flight += 1
        return True

    def _has_room_held(self) -> bool:
        most = self.max_concurrent
        return self.in_flight < (most if self.shared is None else self.shared.width_held(most))

    def wake_queue(self) -> None:
        """Lets those look again who wait for a slot, here and in other processes, after one was given back."""
        if not self.queue and self.shared is None:
            return
        with self._lock:
            due = None if self.shared is None else self.shared.settle_held()
            self._changed.notify_all()
        self._hand_in(due)

    def _await_turn_held(self, turn: object) -> None:
        operation = ambient.current()
        end = self.clock.monotonic() + self.max_wait
        woken = [operation.on_cancel(self._wake)] if operation is not None else []
        woken.append(lifecycle.on_shutdown(self._wake_soon))
        try:
            while not self._has_room_held() or self.queue[0] is not turn:
                if lifecycle.stopping():
                    raise ShutdownInProgress(f"shutdown in progress, {self.name!r} was not started")
                left = end - self.clock.monotonic()
                if operation is not None:
                    if operation.cancelled:
                        raise OperationCancelled(name=self.name, reason=operation.reason)
                    remaining = operation.remaining()
                    if remaining is not None and remaining < left:
                        left = remaining
                        if left <= 0:
                            raise operation.deadline_error("queued")
                if left <= 0:
                    raise self._full_held()
                self.clock.wait(self._changed, left)
        finally:
            for forget in woken:
                forget()

    def _full_held(self) -> BulkheadFullError:
        if self.events is not None:
            self.events.emit("call_rejected", self.name, reason="bulkhead full", limit=self.max_concurrent)
        message = None
        if self._reason:
            allowed = f"{self.max_concurrent} of its {self.full_width} slots"
            message = f"bulkhead {self.name!r} is full: {allowed} are in use while {self._reason}"
        return BulkheadFullError(message, name=self.name, limit=self.max_concurrent, abandoned=self.abandoned)

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def _wake_soon(self) -> None:
        """Wakes the waits from a thread of its own: who asks for the shutdown may be waiting here itself."""
        threading.Thread(target=self._wake, name="resilience-wake", daemon=True).start()

    def release(self) -> None:
        """Gives a slot back."""
        with self._lock:
            self.in_flight -= 1
        self.wake_queue()

    def _hand_in(self, due: Order | None) -> None:
        if due is not None and self.shared is not None:
            self.shared.hand_in(due)

    def resize(self, max_concurrent: int) -> None:
        """Changes the number of slots for later calls; never blocks, running calls keep theirs."""
        require_count("max_concurrent", max_concurrent)
        with self._lock:
            self.full_width = self.max_concurrent = max_concurrent
            if self._throttle is not None:
                self.max_concurrent = self._throttle.pressure.allows(max_concurrent)
            due = None if self.shared is None else self.shared.settle_held()
            self._changed.notify_all()
        self._hand_in(due)

    def squeeze(self, pressure: Pressure, reason: str, throttle: Throttle) -> None:
        """Takes what the limits of the process allow from now on; running calls keep their slots."""
        with self._lock:
            self._throttle = None if pressure.is_none else throttle
            self._reason = "" if pressure.is_none else reason
            self.max_concurrent = pressure.allows(self.full_width)
            due = None if self.shared is None else self.shared.settle_held()
            self._changed.notify_all()
        self._hand_in(due)

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline in one slot."""
        self.acquire()
        try:
            result = proceed(call)
            self.keep_for(call.saved_from)  # a fallback inside may have answered for a body that still runs
            return result
        except BaseException as error:
            self.keep_for(error)
            raise
        finally:
            with self._lock:  # here, not in a function: a Ctrl-C at its entry would cost the slot
                self.in_flight -= 1
            self.wake_queue()

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls `fn(*args, **kwargs)` in one slot."""
        self.acquire()
        try:
            return refuse_awaitable(fn, fn(*args, **kwargs))
        except BaseException as error:
            self.keep_for(error)
            raise
        finally:
            with self._lock:
                self.in_flight -= 1
            self.wake_queue()

    def keep_for(self, error: BaseException | None) -> None:
        """Takes a slot for the body that a call abandoned with `error`, until it ends; nothing for other errors."""
        if error is None or getattr(error, "_resilience_lost", None) is None:
            return
        from ..workers.thread_task import when_ended

        def ended() -> None:
            with self._lock:
                self.abandoned -= 1
            self.release()

        with self._lock:
            self.in_flight += 1
            self.abandoned += 1
        when_ended(error, ended)

    def __enter__(self) -> Bulkhead:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        error = exc_info[1]
        self.keep_for(error if isinstance(error, BaseException) else None)
        self.release()

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        refuse_async(fn)

        @functools.wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.call(fn, *args, **kwargs)

        return guarded

    def __repr__(self) -> str:
        return f"<Bulkhead {self.name!r}: {self.in_flight} of {self.max_concurrent}, {self.waiting} waiting>"


def _shared(store: Store | str, bulkhead: Bulkhead) -> SharedSlots:
    from ..stores.opening import as_store
    from .bulkhead_shared import SharedSlots

    return SharedSlots(as_store(store, bulkhead), bulkhead)


_all: weakref.WeakSet[Bulkhead] = weakref.WeakSet()


def _after_fork() -> None:
    for bulkhead in living(_all):
        bulkhead._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
