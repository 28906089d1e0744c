"""One client's connection to the faulty server: requests as they come in, answers as whole or as broken as told."""

from __future__ import annotations

import socket
import struct
from urllib.parse import parse_qs, unquote, urlsplit

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

    from .fault_server import FaultServer

REASONS = {200: "OK", 302: "Found", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error",
           503: "Service Unavailable"}  # fmt: skip
LONGEST_REQUEST = 1 << 20


class Request:
    """One request as the server saw it; `at` is monotonic seconds, `connection` counts from 1."""

    __slots__ = ("at", "body", "connection", "headers", "method", "path", "query")

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, connection: int) -> None:
        parts = urlsplit(target)
        self.method = method
        self.path = unquote(parts.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.headers = headers
        self.body = body
        self.connection = connection
        self.at = SYSTEM.monotonic()

    @property
    def target(self) -> str:
        """What names the resource: path and query."""
        return self.path + "?" + "&".join(f"{key}={value}" for key, value in sorted(self.query.items()))

    def number(self, key: str, default: float) -> float:
        """A number of the query."""
        return float(self.query.get(key, default))

    def __repr__(self) -> str:
        return f"<{self.method} {self.target} on connection {self.connection}>"


class Connection:
    """One client's connection: what behaviours answer with."""

    thread: threading.Thread  # in which it is served

    def __init__(self, server: FaultServer, accepted: socket.socket, number: int) -> None:
        self.server = server
        self.socket = accepted
        self.number = number
        self.is_over = False
        self._buffer = b""
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read_request(self) -> Request | None:
        """The next request, None when the client has closed."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        fields = (line.partition(":") for line in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            if not self._receive():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Request(method, target, headers, body, self.number)

    def _receive(self) -> bool:
        data = self.socket.recv(65536)
        self._buffer += data
        return bool(data) and len(self._buffer) <= LONGEST_REQUEST

    def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.socket.sendall(data)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Sends a whole answer; underscores in header names stand for hyphens."""
        self.send(self.head(status, len(body), **headers) + body)

    @staticmethod
    def head(status: int, length: int, **headers: str) -> bytes:
        """The head of an answer with this Content-Length."""
        from email.utils import formatdate

        shown = {"Date": formatdate(SYSTEM.time(), usegmt=True), "Content-Length": str(length), **headers}
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in shown.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def pause(self, seconds: float) -> None:
        """Waits, or ends the connection when the server stops meanwhile."""
        if SYSTEM.sleep(seconds, self.server.stopped):
            self.is_over = True
            raise OSError("the server stops")

    def drip(self, data: bytes, every: float) -> None:
        """Sends bytes one by one, one each `every` seconds."""
        for position in range(len(data)):
            self.send(data[position : position + 1])
            self.pause(every)

    def reset(self) -> None:
        """Ends the connection by RST."""
        self.is_over = True
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def cut(self) -> None:
        """Ends the connection."""
        self.is_over = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
