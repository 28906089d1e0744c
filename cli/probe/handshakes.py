"""One real handshake for each kind of service: what a client of it would do first, within a time limit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from resilience.core.clock import SYSTEM

if TYPE_CHECKING:
    import ssl

LARGEST = 65536  # bytes of an answer that are read


class Unhealthy(Exception):
    """It answered wrongly, or not at all: the reason."""


class Seen:
    """What came of one try; `took` in seconds."""

    __slots__ = ("detail", "ok", "took", "url")

    def __init__(self, url: str, ok: bool, took: float, detail: str) -> None:
        self.url = url
        self.ok = ok
        self.took = took
        self.detail = detail


def try_once(url: str, timeout: float) -> Seen:
    """One try; it takes no longer than `timeout`, name resolution included."""
    began = SYSTEM.monotonic()
    answers: list[Seen] = []

    def work() -> None:
        try:
            detail = HANDSHAKES[urlsplit(url).scheme](url, began + timeout)
            answers.append(Seen(url, True, SYSTEM.monotonic() - began, detail))
        except Unhealthy as error:
            answers.append(Seen(url, False, SYSTEM.monotonic() - began, str(error)))
        except TimeoutError:
            answers.append(Seen(url, False, SYSTEM.monotonic() - began, f"no answer within {timeout:g} s"))
        except Exception as error:
            answers.append(unhealthy(url, error, SYSTEM.monotonic() - began))

    # A thread of its own, since resolving a name knows no time limit; it is left behind where that hangs.
    worker = threading.Thread(target=work, name="resilience-probe", daemon=True)
    worker.start()
    worker.join(timeout + 0.05)
    return answers[0] if answers else Seen(url, False, SYSTEM.monotonic() - began, f"no answer within {timeout:g} s")


def unhealthy(url: str, error: Exception, took: float = 0.0) -> Seen:
    """What came of a try that ended with an error."""
    return Seen(url, False, took, _told(error))


def _told(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return f"name not found: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def left(end: float) -> float:
    """Seconds until `end`; raises `TimeoutError` when none are."""
    seconds = end - SYSTEM.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _connect(parts: SplitResult, port: int | None, end: float, *, secure: bool = False) -> socket.socket:
    """A connection to the host of the URL, over TLS where it is to be secure."""
    number = parts.port or port
    if not parts.hostname or not number:
        raise Unhealthy("the URL names no host and port")
    context = _tls_context() if secure else None  # reading the certificates takes its time: before the connection
    plain = socket.create_connection((parts.hostname, number), timeout=left(end))
    if context is None:
        return plain
    try:
        plain.settimeout(left(end))
        return context.wrap_socket(plain, server_hostname=parts.hostname)
    except BaseException:
        plain.close()
        raise


def _tls_context() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()


def tcp(url: str, end: float) -> str:
    """Somebody accepts the connection."""
    with _connect(urlsplit(url), None, end):
        return "connected"


def http(url: str, end: float) -> str:
    """GET is answered with a status below 400."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: resilience-probe\r\n"
    if parts.username:
        from base64 import b64encode

        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request += f"Authorization: Basic {b64encode(pair).decode()}\r\n"
    request += "Accept: */*\r\nConnection: close\r\n\r\n"
    with _connect(parts, 443 if secure else 80, end, secure=secure) as connection:
        connection.sendall(request.encode("ascii", "backslashreplace"))
        head = _until(connection, b"\r\n", end)
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise Unhealthy(f"no HTTP: {head[:40]!r}")
    status = head.decode("latin-1").strip()
    if int(words[1]) >= 400:
        raise Unhealthy(status)
    return status


def redis(url: str, end: float) -> str:
    """PING is answered with PONG, after AUTH where the URL has a password."""
    parts = urlsplit(url)
    with _connect(parts, 6379, end, secure=parts.scheme == "rediss") as connection:
        commands = []
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            commands.append(["AUTH", *user, unquote(parts.password)])
        for words in (*commands, ["PING"]):
            text = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            connection.settimeout(left(end))
            connection.sendall(text.encode())
            reply = _until(connection, b"\r\n", end).decode("utf-8", "replace").strip()
            if reply not in ("+OK", "+PONG"):
                raise Unhealthy(reply[1:] if reply.startswith("-") else f"no Redis: {reply[:40]!r}")
    return "PONG"


def _until(connection: socket.socket, mark: bytes, end: float) -> bytes:
    data = b""
    while mark not in data and len(data) < LARGEST:
        connection.settimeout(left(end))
        more = connection.recv(4096)
        if not more:
            raise Unhealthy("closed the connection without an answer" if not data else f"broke off: {data[:40]!r}")
        data += more
    return data.partition(mark)[0]


def postgres(url: str, end: float) -> str:
    """It lets us in and answers SELECT 1."""
    import psycopg2

    from resilience.core.errors import StoreUnavailable
    from resilience.stores.postgres import connect, run

    try:
        link = connect(url, end)
        try:
            run(link, "SELECT 1", None, end)
        finally:
            link.close()
    except StoreUnavailable:
        raise TimeoutError from None
    except psycopg2.Error as error:
        text = str(error).strip() or type(error).__name__
        raise Unhealthy("connection refused" if "Connection refused" in text else text.splitlines()[0]) from None
    return "SELECT 1"


HANDSHAKES: dict[str, Callable[[str, float], str]] = {
    "http": http, "https": http, "tcp": tcp, "redis": redis, "rediss": redis, "postgresql": postgres,
    "postgres": postgres,
}  # fmt: skip


def as_dict(seen: Seen, shown: str) -> dict[str, Any]:
    """What came of a try, as plain data."""
    return {"url": shown, "ok": seen.ok, "took_s": round(seen.took, 4), "detail": seen.detail}
