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
import threading

from ..core.clock import SYSTEM
from .fault_connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

    from .fault_connection import Request


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
                number = self.connections
                connection = Connection(self, accepted, number)
                connection.thread = threading.Thread(
                    target=self._serve, args=(connection,), name=f"fault-server-{number}", daemon=True
                )
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
