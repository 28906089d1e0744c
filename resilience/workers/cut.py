"""Ending what a call waits on at its deadline: one watchdog shuts the socket, the waiting call fails at once.

Only what is attached at that moment is shut; it is attached while a call waits on it and detached before anybody else
may use it, so that a late watchdog never hits the next call. One `SocketCut` serves many calls, one after another: the
watchdog looks at it when the first deadline would be over, finds a later one and comes back for that, so that a call
that ends in time costs no entry of its own.
"""

from __future__ import annotations

import socket
import threading

from ..core.clock import SYSTEM
from .watchdog import WATCHDOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .watchdog import Armed

NEVER = float("inf")
_shutdown = socket.socket.shutdown  # that of TLS sockets would throw their keys away under the reading thread


class SocketCut:
    """Shuts the attached socket at the deadline of the call that has begun; for one call at a time."""

    __slots__ = ("_armed", "_epoch", "_lock", "_looks_at", "_target", "_when", "expired")

    def __init__(self) -> None:
        self.expired = False
        self._epoch = -1
        self._forget()

    def _forget(self) -> None:
        """Starts anew, in a forked child too: its watchdog knows nothing of the parent's."""
        self._lock = threading.Lock()
        self._target: socket.socket | None = None
        self._when = NEVER
        self._looks_at = NEVER
        self._armed: Armed | None = None
        self._epoch = WATCHDOG.epoch

    def begin(self, when: float | None, target: socket.socket | None = None) -> None:
        """A call begins that ends at `when`, a point in time of the system's monotonic clock (None: never).

        It waits on `target`, or on what will be attached.
        """
        if self._epoch != WATCHDOG.epoch:
            self._forget()
        self.expired = False
        if when is None:
            return
        with self._lock:
            self._target = target
            self._when = when
            if when < self._looks_at:
                self._look_at_held(when)

    def attach(self, target: socket.socket | None) -> bool:
        """Takes charge of a socket; False when the time is over already."""
        with self._lock:
            self._target = target
            return not self.expired

    def detach(self) -> bool:
        """Gives the socket back; False when it may have been shut: it is unfit then."""
        with self._lock:
            self._target = None
            return not self.expired

    def end(self) -> bool:
        """The call has ended; False when what it waited on may have been shut: it is unfit then."""
        with self._lock:
            self._target = None
            self._when = NEVER
            return not self.expired

    def _look_at_held(self, when: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
        self._looks_at = NEVER  # as long as nothing is armed
        self._armed = WATCHDOG.arm(when, self._look)
        self._looks_at = when

    def _look(self) -> None:
        with self._lock:
            self._armed, self._looks_at = None, NEVER
            if self._when > SYSTEM.monotonic():
                if self._when < NEVER:
                    self._look_at_held(self._when)
                return
            self.expired = True
            if self._target is not None:
                try:
                    _shutdown(self._target, socket.SHUT_RDWR)
                except OSError:
                    pass
