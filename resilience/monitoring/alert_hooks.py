"""Where alerts go: a callable, a command or a webhook, each within a time limit.

A hook hears of events on the thread of their stream. What it does runs on a thread of its own, so that a target that
hangs costs the stream `timeout` seconds once: while it hangs, later alerts are skipped for it and counted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from base64 import b64encode
from urllib.parse import unquote, urlsplit

from ..core.clock import SYSTEM
from ..core.errors import ConfigError, require_seconds
from ..core.forks import imported
from ..core.logs import logger
from ..workers.watchdog import WATCHDOG
from .alerts import THRESHOLDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..core.events import Event


class Hook:
    """A listener of alert events that passes them on to one target."""

    def __init__(self, target: Any, *, rules: Iterable[str] | None = None, timeout: float = 10.0) -> None:
        require_seconds("timeout", timeout, positive=True)
        chosen = frozenset(THRESHOLDS if rules is None else (rules,) if isinstance(rules, str) else rules)
        unknown = sorted(chosen - set(THRESHOLDS))
        if unknown:
            raise ConfigError(f"unknown rules {unknown}; known: {sorted(THRESHOLDS)}", key="rules", value=unknown)
        self.rules = chosen
        self.timeout = timeout
        self.target = target
        self.skipped = 0  # alerts that came while the target was still busy with an earlier one
        self._send = _sender(target)
        self._busy: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        if event.rule not in self.rules:
            return
        if self._busy is not None and self._busy.is_alive():
            self.skipped += 1
            _log().warning("alert %r not passed on: %s is still busy with an earlier one", event, self)
            return
        self._busy = threading.Thread(target=self._pass_on, args=(event,), name="resilience-alert", daemon=True)
        try:
            self._busy.start()
        except RuntimeError as error:  # no thread to be had, or the interpreter is on its way out
            self._busy = None
            _log().warning("alert %r not passed on to %s: %s", event, self, error)
            return
        self._busy.join(self.timeout)
        if self._busy.is_alive():
            _log().warning("%s has not ended %g s after %r", self, self.timeout, event)

    def _pass_on(self, event: Event) -> None:
        try:
            self._send(event, self.timeout)
        except Exception as error:
            _log().warning("alert %r not passed on to %s: %s: %s", event, self, type(error).__name__, error)

    def __repr__(self) -> str:
        shown = self.target[0] if isinstance(self.target, (list, tuple)) else self.target
        if isinstance(shown, str) and "://" in shown:
            shown = _without_secrets(shown)
        return f"<alert hook {shown!r}>"


def _sender(target: Any) -> Callable[[Event, float], object]:
    if callable(target):
        return lambda event, timeout: target(event)
    if isinstance(target, (list, tuple)) and target and all(isinstance(word, (str, os.PathLike)) for word in target):
        subprocess = imported("subprocess")  # here, not on the thread of an alert, beside which a child may be born
        return lambda event, timeout: _run_command(subprocess, target, event, timeout)
    if isinstance(target, str) and target.split("://")[0] in ("http", "https") and "://" in target:
        _require_url(target)
        client = imported("http.client")
        return lambda event, timeout: _post(client, target, event, timeout)
    raise ConfigError(
        "expected a callable, a command as a list of words or an http(s) URL", key="target", value=target
    )


def _require_url(url: str) -> None:
    """Refuses at once what could never be sent; without the URL, which may be secret."""
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0 and re.search(r"[^!-~]", _path(parts)) is None
    except ValueError:  # a port above 65535, half an IPv6 address
        fine = False
    if not fine:
        raise ConfigError(
            "expected a URL with a host, a port of 1 to 65535 or none, and a path in quoted ASCII", key="target"
        )


def _path(parts: Any) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _as_json(event: Event) -> bytes:
    return json.dumps(event.as_dict()).encode()


def _run_command(subprocess: Any, command: Any, event: Event, timeout: float) -> None:
    """Runs the command in a process group of its own, the event on its standard input; ends the group in time."""
    process = subprocess.Popen(
        [os.fspath(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        process.communicate(_as_json(event), timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        raise OSError(f"exit code {process.returncode}")


def _post(client: Any, url: str, event: Event, timeout: float) -> None:
    """Posts the event; the connection is shut at the time limit, whatever it waits for."""
    parts = urlsplit(url)
    kind = client.HTTPSConnection if parts.scheme == "https" else client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    armed = WATCHDOG.arm(SYSTEM.monotonic() + timeout, lambda: _shut(connection))
    try:
        headers = {"Content-Type": "application/json", **_credentials(parts)}
        connection.request("POST", _path(parts), _as_json(event), headers)
        status = connection.getresponse().status
    finally:
        armed.cancel()
        connection.close()
    if status >= 300:
        raise OSError(f"HTTP status {status}")


def _shut(connection: Any) -> None:
    try:
        connection.sock.shutdown(socket.SHUT_RDWR)
    except (AttributeError, OSError):  # not connected yet, or not any more
        pass


def _credentials(parts: Any) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _without_secrets(url: str) -> str:
    """The URL without user, password, path and query: webhooks keep their secrets there."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + "/..."


def _log() -> Any:
    return logger("alerts")
