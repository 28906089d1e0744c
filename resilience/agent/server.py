"""The agent: one daemon thread that answers, on a unix socket of this user, what the process is doing.

A client sends one line - `report` or `stacks` - and is sent one JSON document. Nothing else in the process waits for
the agent: it takes no part in calls, a client that hangs or sends garbage is dropped, and the exit of the interpreter
does not wait for it. A forked child has an agent of its own.
"""

from __future__ import annotations

import atexit
import os
import selectors
import socket
import threading

from ..core.clock import SYSTEM
from ..core.forks import imported
from ..core.logs import logger
from .places import Place, make_place
from .presence import switch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = 16  # at once; more are turned away
LONGEST_REQUEST = 64  # bytes
PATIENCE = 5.0  # seconds for a client to ask and to take its answer
REQUESTS = frozenset((b"report", b"stacks"))


class _Client:
    """A connection: what it has asked so far, what it has not taken yet, until when it may stay."""

    __slots__ = ("answer", "connection", "request", "until")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.request = b""
        self.answer: memoryview | None = None
        self.until = SYSTEM.monotonic() + PATIENCE


class Agent:
    """The agent of this process: its socket and its thread. `close()` removes it."""

    def __init__(self) -> None:
        self.place: Place = make_place()
        self.pid = os.getpid()
        self._listener = _listen(self.place.socket)
        self._waker, self._woken = socket.socketpair()
        self._dump = _on_signal(self.place.dump)
        self._thread = threading.Thread(target=self._serve, name="resilience-agent", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        selector = selectors.PollSelector()  # no descriptor of its own: a forked child shares nothing with it
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        clients: dict[int, _Client] = {}
        while True:
            ends = [client.until for client in clients.values()]
            ready = selector.select(max(0.0, min(ends) - SYSTEM.monotonic()) if ends else None)
            for key, _ in ready:
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._admit(selector, clients)
                elif not _step(selector, clients[key.fd]):
                    _drop(selector, clients, key.fd)
            now = SYSTEM.monotonic()
            for number in [number for number, client in clients.items() if client.until <= now]:
                _drop(selector, clients, number)

    def _admit(self, selector: selectors.PollSelector, clients: dict[int, _Client]) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor to be had: a pause keeps this from spinning
            SYSTEM.sleep(0.01)
            return
        if len(clients) >= CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        clients[connection.fileno()] = _Client(connection)
        selector.register(connection, selectors.EVENT_READ)

    def close(self) -> None:
        """Ends the thread and removes the files; a second call changes nothing."""
        if self.pid == os.getpid():
            self.place.remove()
        try:
            self._waker.send(b"x")
        except OSError:
            return
        self._thread.join(1.0)
        self.release()

    def release(self) -> None:
        """Closes the descriptors; in a forked child they are all that is left of the parent's agent."""
        for end in (self._listener, self._waker, self._woken):
            end.close()
        if self._dump is not None:
            import faulthandler

            faulthandler.unregister(dump_signal())
            os.close(self._dump)
            self._dump = None


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))  # in a directory that nobody else may enter
        path.chmod(0o600)
        listener.listen(CLIENTS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _step(selector: selectors.PollSelector, client: _Client) -> bool:
    """Goes on with one client; False when it is done or to be dropped."""
    try:
        if client.answer is None:
            data = client.connection.recv(LONGEST_REQUEST)
            client.request += data
            request, newline, _ = client.request.partition(b"\n")
            if not newline:
                return bool(data) and len(client.request) < LONGEST_REQUEST
            if request.strip() not in REQUESTS:
                return False
            client.answer = memoryview(_answer(request.strip() == b"stacks"))
            client.until = SYSTEM.monotonic() + PATIENCE
            selector.modify(client.connection, selectors.EVENT_WRITE)
        sent = client.connection.send(client.answer)
        client.answer = client.answer[sent:]
        return len(client.answer) > 0
    except BlockingIOError:
        return True
    except OSError:
        return False


def _answer(stacks: bool) -> bytes:
    json, report = imported("json"), imported(f"{__package__}.report").report

    try:
        text: str = json.dumps(report(stacks=stacks), default=_text, skipkeys=True)  # names may be anything
    except Exception as error:  # a report must never end the agent: what went wrong is the answer
        text = json.dumps({"pid": os.getpid(), "agent_error": f"{type(error).__name__}: {_text(error)}"})
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # what cannot show itself hides nothing else
        return f"<{type(value).__name__}>"


def _drop(selector: selectors.PollSelector, clients: dict[int, _Client], number: int) -> None:
    client = clients.pop(number)
    selector.unregister(client.connection)
    client.connection.close()


def dump_signal() -> int:
    """The signal on which the interpreter writes all stacks without the GIL; 0 where there is no spare one."""
    import signal

    return int(signal.SIGRTMAX) - 3 if hasattr(signal, "SIGRTMAX") else 0


def _on_signal(path: Path) -> int | None:
    """Has the interpreter write its stacks to `path` on the signal, unless the program uses that signal itself."""
    import faulthandler
    import signal

    number = dump_signal()
    if not number or signal.getsignal(number) is not signal.SIG_DFL:
        return None
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        faulthandler.register(number, file, all_threads=True)
    except (OSError, RuntimeError, ValueError):
        os.close(file)
        return None
    return file


class _Here:
    """The agent of this process, where there is one."""

    __slots__ = ("agent", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.agent: Agent | None = None


_here = _Here()


def start() -> bool:
    """Starts the agent unless it runs; False where it cannot, with one warning: the program goes on without."""
    with _here.lock:
        switch.asked = switch.on = True
        if _here.agent is not None:
            return True
        try:
            _here.agent = Agent()
        except (OSError, RuntimeError) as error:
            logger("agent").warning("no agent for `resilience top`: %s", error)
            return False
    atexit.register(stop)
    return True


def stop() -> None:
    """Ends the agent and removes its files; harmless without one."""
    with _here.lock:
        agent, _here.agent = _here.agent, None
        switch.on = False
    if agent is not None:
        agent.close()
        atexit.unregister(stop)


def _after_fork() -> None:
    parents, _here.agent, _here.lock = _here.agent, None, threading.Lock()
    if parents is not None:
        atexit.unregister(stop)
        parents.release()
        start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
