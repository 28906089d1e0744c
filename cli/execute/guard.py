"""What stands before a command: a breaker that is remembered across runs, and a lock against overlap."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from resilience.core.errors import CircuitOpenError, StoreUnavailable

from ..lookup import state_folder
from ..output import OutputError, say

if TYPE_CHECKING:
    from resilience.strategies.circuit_breaker import CircuitBreaker
    from resilience.strategies.permit import Permit

    from .child import Ending

PATIENCE = 2.0  # seconds for the store: no call waits for it here, and every failure has to be counted


class Refused(Exception):
    """The command was not started: exit code 75."""


class _Failed(Exception):
    """How a run failed, as the last error of its breaker."""


_Failed.__name__ = ""  # the breaker shows the message alone


class Guard:
    """The breaker of a command, in a store; without a name all pass."""

    def __init__(self, name: str | None, store_url: str | None) -> None:
        self.name = name
        self._breaker: CircuitBreaker | None = None
        self._permit: Permit | None = None
        if name is not None:
            self._breaker = _breaker(name, store_url)

    def admit(self) -> None:
        """Raises `Refused` while the breaker refuses calls."""
        if self._breaker is None:
            return
        try:
            self._permit = self._breaker.acquire()
        except CircuitOpenError as error:
            raise Refused(self._refusal(error)) from None

    def _refusal(self, error: CircuitOpenError) -> str:
        assert self._breaker is not None and self._breaker.store is not None
        text = f"breaker {self.name!r} is {error.state.upper()}"
        wait = error.retry_after
        text += " until a reset" if wait is None else f" for {_rounded(wait)} s more"
        why = [self._breaker.stats.reason.replace(" in a row", "")]
        try:
            doc = self._breaker.store.read(f"breaker/{self.name}", within=PATIENCE)
            now = self._breaker.store.guess_now()
        except StoreUnavailable:
            doc = now = None
        if isinstance(doc, dict) and doc.get("last_error"):
            why.append(f"last: {doc['last_error']}")
            if now is not None and isinstance(doc.get("last_at"), (int, float)):
                why.append(f"{_rounded(now - doc['last_at'])} s ago")
        return f"{text} ({', '.join(part for part in why if part)}) - not started"

    def learn(self, ending: Ending) -> None:
        """Counts how the run ended."""
        permit, self._permit = self._permit, None
        if permit is None:
            return
        if ending.code == 0:
            permit.success()
        else:
            how = {"timeout": "timed out", "signal": f"killed by {ending.message}"}.get(
                ending.how, f"exit {ending.code}"
            )
            permit.failure(_Failed(how))

    def close(self) -> None:
        """Gives back an unused permit, and sees to it that everything is written."""
        if self._permit is not None:
            self._permit.ignore()
        if self._breaker is not None and (store := self._breaker.store) is not None:
            if store.link is not None:
                store.link.flush(PATIENCE)
            store.close()


def _rounded(wait: float) -> str:
    return f"{wait:.0f}" if wait >= 10 else f"{max(wait, 0.0):.1f}"


def _breaker(name: str, store_url: str | None) -> CircuitBreaker:
    from resilience.stores.link import link_to
    from resilience.strategies.circuit_breaker import CircuitBreaker

    from ..lookup import settings
    from ..shared_store import opened

    store = opened(store_url)
    link_to(store).patience = PATIENCE
    return CircuitBreaker(name, settings().breaker_config(name), store=store)


class Lock:
    """One command at a time under a name, on this machine. Held until the process ends or `release()`.

    The command does not inherit it: a daemon that it leaves behind keeps nobody out. Should `exec` itself be killed,
    its command, which is written down, keeps others out as long as it runs.
    """

    def __init__(self, name: str) -> None:
        import fcntl
        from urllib.parse import quote

        self._name = name
        path = state_folder() / "locks" / (quote(os.fsencode(name), safe="") + ".lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._read()
            os.close(self._file)
            raise Refused(f"lock {name!r} is held by process {holder[0] or 'unknown'} - not started") from None
        except OSError as error:
            raise OutputError(f"cannot take lock {name!r} - not started: {path}: {error.strerror or error}") from error
        pid, child, started = self._read()
        if child.isdecimal() and _is_running(int(child), started):
            os.close(self._file)
            raise Refused(f"lock {name!r}: process {child} still runs, though its exec ({pid}) has ended - not started")
        self._write("", "")

    def _read(self) -> tuple[str, str, str]:
        words = os.pread(self._file, 200, 0).decode("ascii", "replace").split("\n")
        pid, child, started = [*words, "", "", ""][:3]
        return pid, child, started

    def _write(self, child: str, started: str) -> None:
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n{child}\n{started}\n".encode(), 0)
        except OSError as error:  # a full disk: it is held all the same, only nobody can read by whom
            if child:
                say(f"resilience: lock {self._name!r} names no process: {error.strerror or error}")

    def note(self, child: int) -> None:
        """Writes down which process the command is."""
        from resilience.workers.trees import look

        member: Any = look(child)
        self._write(str(child), member.started if member is not None else "")

    def release(self) -> None:
        """Lets others in."""
        self._write("", "")
        os.close(self._file)


def _is_running(child: int, started: str) -> bool:
    from resilience.workers.trees import look

    member = look(child)
    return member is not None and not member.is_zombie and member.started == started


def warn_of_store() -> None:
    """Shows what the library says of the store and of openings, as our own words."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"resilience: {record.getMessage()}")

    for name in ("resilience.store", "resilience.breaker"):
        logger = logging.getLogger(name)
        logger.addHandler(Handler(logging.WARNING))
        logger.propagate = False
