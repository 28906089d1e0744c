"""A real HTTP server on 127.0.0.1 that misbehaves as told: for tests, and for `resilience demo`.

The behaviour of a request is the first segment of its path, with its numbers in the query:

| path | what happens |
|---|---|
| `/ok` | 200 and a short body (`size=N` bytes) |
| `/status/503` | that status, with a short body |
| `/sequence/503,503,200` | the statuses one after another per URL, the last one stays |
| `/flaky?share=0.3` | 503 for that share of the requests, by the server's seed |
| `/limited?first=1&after=1` | 429 with `Retry-After` (`date=1`: as a date) for the first requests of a URL, then 200 |
| `/drip?every=0.1&size=50` | the body byte by byte; `/drip-headers`: the headers |
| `/silent` | no answer at all |
| `/slow?seconds=1` | 200 after so long |
| `/reset` | the connection is reset before the answer; `/reset-body`: in the middle of it |
| `/short` | fewer bytes than Content-Length says |
| `/redirect?to=URL` | 302 |
| `/echo` | method, headers and body of the request as JSON |
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from urllib.parse import parse_qs, unquote, urlsplit

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

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


class FaultServer:
    """`with FaultServer() as server:` serves at `server.url` until the block ends.

    `requests` lists what came, `connections` counts what was accepted, `peak` is the most requests under way at once.
    `behave` replaces the table above: a function (request, connection) -> None that answers by the methods of the
    connection. `tls` is a server-side `ssl.SSLContext`. Threads and sockets are gone when the block ends.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        seed: int = 1,
        tls: ssl.SSLContext | None = None,
        behave: Callable[[Request, Connection], None] | None = None,
    ) -> None:
        self._listener = socket.create_server((host, port), backlog=512)
        self.host, self.port = self._listener.getsockname()[:2]
        self.url = f"{'https' if tls else 'http'}://{self.host}:{self.port}"
        self.requests: list[Request] = []
        self.connections = 0
        self.peak = 0
        self._tls = tls
        self._behave = behave or _by_path
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._under_way = 0
        self._open: set[Connection] = set()
        self.stopped = threading.Event()
        self._accepter = threading.Thread(target=self._accept, name="fault-server", daemon=True)

    def __enter__(self) -> FaultServer:
        self._accepter.start()
        return self

    start = __enter__

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops serving: open connections are cut, threads end."""
        self.stopped.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            connection.cut()
        if self._accepter.is_alive():
            self._accepter.join(2.0)
        for connection in still_open:
            connection.thread.join(2.0)

    # -- for behaviours --------------------------------------------------------------------------------------------

    def count(self, target: str) -> int:
        """How many requests for this resource have come, this one included."""
        with self._lock:
            self._counts[target] = self._counts.get(target, 0) + 1
            return self._counts[target]

    def draw(self) -> float:
        """A number in [0, 1) of the server's own seeded source."""
        with self._lock:
            return self._random.random()

    # -- serving ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                connection = Connection(self, accepted, self.connections)
                self._open.add(connection)
            connection.thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            if self._tls is not None:
                connection.socket = self._tls.wrap_socket(connection.socket, server_side=True)
            while not self.stopped.is_set():
                request = connection.read_request()
                if request is None:
                    break
                self._answer(request, connection)
                if connection.is_over:
                    break
        except (OSError, ValueError):  # the client has gone, or spoke no HTTP
            pass
        finally:
            connection.cut()
            with self._lock:
                self._open.discard(connection)

    def _answer(self, request: Request, connection: Connection) -> None:
        with self._lock:
            self.requests.append(request)
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)
        try:
            self._behave(request, connection)
        finally:
            with self._lock:
                self._under_way -= 1


class Connection:
    """One client's connection: what behaviours answer with."""

    def __init__(self, server: FaultServer, accepted: socket.socket, number: int) -> None:
        self.server = server
        self.socket = accepted
        self.number = number
        self.is_over = False
        self._buffer = b""
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.thread = threading.Thread(target=server._serve, args=(self,), name=f"fault-server-{number}", daemon=True)

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


def _by_path(request: Request, connection: Connection) -> None:
    name, _, rest = request.path.strip("/").partition("/")
    behaviour = _BEHAVIOURS.get(name)
    if behaviour is None:
        connection.answer(404, b"no such resource\n")
    else:
        behaviour(request, connection, rest)


def _ok(request: Request, connection: Connection, rest: str) -> None:
    connection.answer(200, b"x" * int(request.number("size", 20)))


def _status(request: Request, connection: Connection, rest: str) -> None:
    connection.answer(int(rest), b"as asked\n")


def _sequence(request: Request, connection: Connection, rest: str) -> None:
    statuses = [int(status) for status in rest.split(",")]
    turn = connection.server.count(request.target)
    connection.answer(statuses[min(turn, len(statuses)) - 1], b"in turn\n")


def _flaky(request: Request, connection: Connection, rest: str) -> None:
    failing = connection.server.draw() < request.number("share", 0.3)
    connection.answer(503 if failing else 200, b"flaky\n")


def _limited(request: Request, connection: Connection, rest: str) -> None:
    from email.utils import formatdate

    if connection.server.count(request.target) > request.number("first", 1):
        return connection.answer(200, b"at last\n")
    after = request.number("after", 1)
    told = f"{after:g}" if "date" not in request.query else formatdate(SYSTEM.time() + after, usegmt=True)
    return connection.answer(429, b"slow down\n", Retry_After=told)


def _drip(request: Request, connection: Connection, rest: str) -> None:
    size = int(request.number("size", 50))
    connection.send(connection.head(200, size))
    connection.drip(b"x" * size, request.number("every", 0.1))


def _drip_headers(request: Request, connection: Connection, rest: str) -> None:
    connection.drip(connection.head(200, 2) + b"ok", request.number("every", 0.1))


def _silent(request: Request, connection: Connection, rest: str) -> None:
    connection.pause(request.number("seconds", 3600))


def _slow(request: Request, connection: Connection, rest: str) -> None:
    connection.pause(request.number("seconds", 1))
    connection.answer(200, b"slow\n")


def _reset(request: Request, connection: Connection, rest: str) -> None:
    connection.reset()


def _reset_body(request: Request, connection: Connection, rest: str) -> None:
    connection.send(connection.head(200, 1000) + b"x" * 10)
    connection.pause(0.02)
    connection.reset()


def _short(request: Request, connection: Connection, rest: str) -> None:
    connection.send(connection.head(200, 1000) + b"x" * 10)
    connection.is_over = True


def _redirect(request: Request, connection: Connection, rest: str) -> None:
    connection.answer(302, Location=request.query.get("to", "/ok"))


def _echo(request: Request, connection: Connection, rest: str) -> None:
    body = request.body.decode("latin-1")
    seen: dict[str, Any] = {"method": request.method, "headers": request.headers, "body": body}
    connection.answer(200, json.dumps(seen).encode(), Content_Type="application/json")


_BEHAVIOURS: dict[str, Callable[[Request, Connection, str], None]] = {
    "ok": _ok, "status": _status, "sequence": _sequence, "flaky": _flaky, "limited": _limited, "drip": _drip,
    "drip-headers": _drip_headers, "silent": _silent, "slow": _slow, "reset": _reset, "reset-body": _reset_body,
    "short": _short, "redirect": _redirect, "echo": _echo,
}  # fmt: skip


class DeadPort:
    """A port that refuses connections: bound, never listened on, kept from others while the block lasts."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = socket.socket()
        self._socket.bind((host, 0))
        self.host, self.port = self._socket.getsockname()[:2]
        self.url = f"http://{self.host}:{self.port}"

    def __enter__(self) -> DeadPort:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the port back."""
        self._socket.close()


class BlackHole:
    """A port that accepts no connection and refuses none: its backlog is full, connecting hangs."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = socket.socket()
        self._socket.bind((host, 0))
        self._socket.listen(0)
        self.host, self.port = self._socket.getsockname()[:2]
        self.url = f"http://{self.host}:{self.port}"
        self._fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((self.host, self.port))
            self._fillers.append(filler)

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the port back."""
        for filler in self._fillers:
            filler.close()
        self._socket.close()
