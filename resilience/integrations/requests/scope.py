"""The deadline of one request: how far the request is, and the socket that is shut when its time is over.

The socket is a second handle of the connection's, so that the watchdog can shut it while TLS owns the first one.
"""

from __future__ import annotations

import socket
import threading
from contextvars import ContextVar

from ...core.clock import SYSTEM
from ...core.errors import DeadlineExceeded
from ...workers.watchdog import WATCHDOG

OUTCOMES = {"pool": "not_sent", "dns": "not_sent", "connect": "not_sent", "tls": "not_sent", "send": "unknown",
            "headers": "unknown", "body": "partial"}  # fmt: skip
scope_of_call: ContextVar[Scope | None] = ContextVar("resilience_http_scope", default=None)


class Scope:
    """One request under a deadline: how far it is, and the socket to shut when its time is over."""

    def __init__(self, seconds: float, ambient: bool, name: str) -> None:
        self.started = SYSTEM.monotonic()
        self.until = self.started + seconds
        self.seconds = seconds
        self.ambient = ambient
        self.name = name
        self.phase = "connect"
        self.expired = False
        self._lock = threading.Lock()
        self._watched: socket.socket | None = None
        self._inherited = False  # the connection has gone, its answer is still read: the socket is ours to close
        self._armed = WATCHDOG.arm(self.until, self._expire)

    def remaining(self) -> float:
        """Seconds left; raises `DeadlineExceeded` when there are none."""
        left = self.until - SYSTEM.monotonic()
        if left <= 0:
            self.expired = True
            raise self.error()
        return left

    def attach(self, watched: socket.socket | None) -> None:
        """Takes charge of a connection's socket."""
        with self._lock:
            self._watched = watched
            expired = self.expired
        if expired:
            raise self.error()

    def detach(self) -> bool:
        """Gives the socket back, before its connection goes to the pool; False when it was cut."""
        with self._lock:
            self._let_go_held()
        self._armed.cancel()
        return not self.expired

    def extend(self, seconds: float | None) -> None:
        """Ends `seconds` from now instead (None: never), with the ambient deadline to blame: for a streamed body."""
        self._armed.cancel()
        if seconds is not None:
            self.seconds = SYSTEM.monotonic() - self.started + seconds
            self.ambient = True
            self._armed = WATCHDOG.arm(SYSTEM.monotonic() + seconds, self._expire)

    def inherit(self, watched: socket.socket) -> bool:
        """Keeps the socket of a connection that closes while its answer is still to be read; False when over."""
        with self._lock:
            if self._watched is not watched:
                return False
            self._inherited = True
            return True

    def _let_go_held(self) -> None:
        watched, self._watched = self._watched, None
        if self._inherited and watched is not None:
            watched.close()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._watched is not None:
                try:
                    self._watched.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                if self._inherited:
                    self._let_go_held()

    def error(self) -> DeadlineExceeded:
        """The error that says in which phase the time was over."""
        elapsed = SYSTEM.monotonic() - self.started
        what = {"pool": "waiting for a connection of the pool", "dns": "resolving the name", "connect": "connecting",
                "tls": "in the TLS handshake"}  # fmt: skip
        message = f"{self.name} exceeded its deadline of {self.seconds:.3g} s after {elapsed:.3g} s, "
        message += what.get(self.phase, f"waiting for the {self.phase}" if self.phase != "send" else "sending")
        error = DeadlineExceeded(
            message, name=self.name, timeout=self.seconds, elapsed=elapsed, phase="running", ambient=self.ambient
        )
        error.outcome = OUTCOMES[self.phase]  # type: ignore[attr-defined]  # what classify() looks at
        error.http_phase = self.phase  # type: ignore[attr-defined]  # for people
        return error
