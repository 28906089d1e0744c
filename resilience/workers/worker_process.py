"""The parent's handle of one worker process: calls go down its line, and it can be ended for certain."""

from __future__ import annotations

import os
import select
import socket

from ..core.clock import SYSTEM
from ..core.errors import WorkerCrashed
from . import deaths, process_child, trees
from .ledger import LEDGER
from .process_start import LIVING, start
from .wire import CALL, HELLO, LEAVING, Inbox, frame, send_some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.clock import Clock
    from .process_child import ChildSettings

LONGEST_POLL = 86_400.0  # seconds of one look at a time
POLL = 0.002  # real seconds between two looks at a clock that is not the system's
STACK_PATIENCE = 0.02  # seconds that a hung worker has to say where it hangs
END_PATIENCE = 1.0  # seconds within which a killed worker must be gone to count as reclaimed


_NOTHING = memoryview(b"")


def _never() -> bool:
    return False


class Interrupted(Exception):
    """Somebody woke the wait for a worker: a cancel or a shutdown."""


class WorkerProcess:
    """One worker process. One call at a time: who has it has it alone."""

    def __init__(self, method: str, settings: ChildSettings) -> None:
        self.name = settings.name
        self.method = method
        self.memory_limit = settings.memory_limit
        self.tasks = 0
        self.idle_since = 0.0
        self.is_ready = False  # it has said hello
        self.wants_to_leave = False
        self.is_running = False
        self.is_interrupted: Callable[[], bool] = _never  # asked when somebody has woken the wait
        self._ooms = deaths.out_of_memory_kills()
        self._line, line = socket.socketpair()
        self._life, life = socket.socketpair()
        wake_read, wake = os.pipe()
        self._wake_read: int | None = wake_read
        self._wake: int | None = wake
        self._pidfd: int | None = None
        os.set_blocking(wake_read, False)
        os.set_blocking(wake, False)
        self._line.setblocking(False)
        self._inbox = Inbox(self._line)
        LIVING.add(self)  # before the fork: the child lets go of our ends
        try:
            self._process = start(method, process_child.main, (line, life, settings), settings.name)
        except BaseException:
            self._close_ends()
            raise
        finally:
            line.close()
            life.close()
        self.is_running = True
        self.pid = int(self._process.pid or 0)
        self._born = trees.look(self.pid)
        self._watch(wake_read)
        self.entry = LEDGER.enter("process", self.name, pid=self.pid)

    def _watch(self, wake_read: int) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or gone already: the sentinel tells
            self._pidfd = None
        death: int = self._process.sentinel if self._pidfd is None else self._pidfd
        self._poll = select.poll()
        self._poll.register(self._line, select.POLLIN)
        self._poll.register(death, select.POLLIN)
        self._poll.register(wake_read, select.POLLIN)
        self._death = death

    # -- one call ----------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Lets who waits for this worker ask `is_interrupted`; from any thread, at any time."""
        try:
            if self._wake is not None:
                os.write(self._wake, b"!")
        except OSError:
            pass

    def wait_until_ready(self, end: float | None, clock: Clock) -> bool:
        """Waits for its hello; False when `end` came first. Raises `WorkerCrashed`, `Interrupted`."""
        while not self.is_ready:
            got = self._next(end, clock)
            if got is None:
                return False
            self.is_ready = got[0] == HELLO
        return True

    def call(self, payload: bytes, end: float | None, clock: Clock) -> tuple[int, bytes] | None:
        """Sends one call and gives the kind and the bytes of its answer; None when `end` (of `clock`) came first.

        Raises `WorkerCrashed` when the process dies first, `Interrupted` after `interrupt()`.
        """
        self.tasks += 1
        data = memoryview(frame(CALL, payload))
        try:
            sent = send_some(self._line, data)
        except ConnectionError:
            sent = len(data)  # it is dead: the wait says of what
        got = self._next(end, clock, data[sent:])
        if got is None:
            return None
        kind, answer = got
        self.wants_to_leave |= bool(kind & LEAVING)
        return kind & ~LEAVING, answer

    def _next(self, end: float | None, clock: Clock, unsent: memoryview = _NOTHING) -> tuple[int, bytes] | None:
        """The next frame, sending what is `unsent` meanwhile; None at `end`."""
        try:
            while True:
                if unsent:
                    self._poll.modify(self._line, select.POLLIN | select.POLLOUT)
                ready = dict(self._poll.poll(self._milliseconds(end, clock)))
                if unsent:
                    self._poll.modify(self._line, select.POLLIN)
                    unsent = unsent[self._send(unsent) :]
                if self._wake_read is not None and self._wake_read in ready:
                    os.read(self._wake_read, 1024)  # it may have been meant for the call before
                    if self.is_interrupted():
                        raise Interrupted
                if ready:
                    got = self._read(self._death in ready)
                    if got is not None:
                        return got
                elif end is not None and clock.monotonic() >= end:
                    return None
        except ValueError as error:
            raise WorkerCrashed(name=self.name, reason=f"its line is garbled: {error}") from None

    def _send(self, data: memoryview) -> int:
        try:
            return send_some(self._line, data)
        except ConnectionError:
            return len(data)

    @staticmethod
    def _milliseconds(end: float | None, clock: Clock) -> float | None:
        if clock is not SYSTEM:
            return POLL * 1000
        return None if end is None else min(max(0.0, end - SYSTEM.monotonic()), LONGEST_POLL) * 1000

    def _read(self, is_dead: bool) -> tuple[int, bytes] | None:
        self._inbox.fill()
        got = self._inbox.take()
        if got is None and (is_dead or self._inbox.ended):
            raise self._crashed()
        return got

    def _crashed(self) -> WorkerCrashed:
        self._process.join(END_PATIENCE)
        code = self._process.exitcode
        reason = deaths.reason(code, self._ooms, self.memory_limit)
        if not self.is_ready:
            reason += deaths.HINT_AT_START
        number = -code if code is not None and code < 0 else None
        return WorkerCrashed(name=self.name, exitcode=code, signal=number, reason=reason)

    @property
    def has_its_pid(self) -> bool:
        """Whether its pid is no other process's: one that has ended and was reaped frees it."""
        now = trees.look(self.pid)
        return now is None or self._born is None or now.started == self._born.started

    # -- its end -----------------------------------------------------------------------------------------------------

    def stack(self) -> str:
        """Where its function is now, as text of a traceback; "" when it does not say so at once."""
        state = trees.look(self.pid)
        if state is None or state.state in "TtZX" or not self.is_ready or not self.has_its_pid:
            return ""
        try:
            os.kill(self.pid, process_child.STACK_SIGNAL)
        except OSError:
            return ""
        heard = select.poll()
        heard.register(self._line, select.POLLIN)
        patience = STACK_PATIENCE
        while heard.poll(patience * 1000):
            before = len(self._inbox.data)
            self._inbox.fill()
            if len(self._inbox.data) == before:
                break
            patience = 0.002
        return deaths.stack_from(bytes(self._inbox.data))

    def end(self) -> bool:
        """Kills the process and everything below it; True when it is gone for certain."""
        if not self.is_running:
            return True
        if self.has_its_pid:
            trees.end_tree(self.pid)
        watch = select.poll()
        watch.register(self._death, select.POLLIN)
        gone = bool(watch.poll(END_PATIENCE * 1000))
        if gone:
            self.close()
        return gone

    def is_gone(self) -> bool:
        """Whether the process has ended."""
        if not self.is_running:
            return True
        watch = select.poll()
        watch.register(self._death, select.POLLIN)
        return bool(watch.poll(0))

    def close(self) -> None:
        """Gives back what the handle holds, once the process has been killed."""
        if not self.is_running:
            return
        self.is_running = False
        LIVING.discard(self)
        LEDGER.leave(self.entry)
        self._close_ends()
        self._process.join(END_PATIENCE)
        try:
            self._process.close()
        except ValueError:  # not gone yet: multiprocessing reaps it later
            pass

    def let_go(self) -> None:
        """Lets the kernel end it, without a lock or a wait: when the garbage collector finds its set."""
        if self.is_running:
            self.is_running = False
            LEDGER.leave(self.entry)
            self._close_ends()

    def disown(self) -> None:
        """In a forked child: lets go of a worker that is the parent's."""
        self.is_running = False
        self._close_ends()

    def _close_ends(self) -> None:
        self._line.close()
        self._life.close()
        for end in (self._wake_read, self._wake, self._pidfd):
            if end is not None:
                try:
                    os.close(end)
                except OSError:
                    pass
        self._wake_read = self._wake = self._pidfd = None

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid} of {self.name!r}, {self.tasks} calls>"
