"""A TCP proxy on 127.0.0.1 that makes the network between a client and a real server as bad as told.

Faults are attributes that may be changed at any time and hold for what passes from then on.
"""

from __future__ import annotations

import socket
import struct
import threading

from ..core.clock import SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 16


class FaultProxy:
    """`with FaultProxy(host, port) as proxy:` passes connections to `proxy.port` on to the server at `host`, `port`.

    - `latency`: seconds before each piece goes on, both ways.
    - `drip`: seconds between the single bytes of what the server says.
    - `black_hole`: while True nothing goes on, either way, and nothing is said about it.
    - `refuse`: while True a new connection is reset at once.
    - `drop_replies(times, to=b"INCR")`: the next requests that hold these bytes reach the server, and their connection
      ends before any of the reply is passed on.
    - `cut_after(count)`: each connection ends when so many more bytes of the server have been passed on.
    - `reset()`: resets every connection that is open; `cut()` ends them.

    `connections` counts what was accepted, `dropped` the replies that were dropped. Threads and sockets are gone when
    the block ends.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.host, self.port = self._listener.getsockname()[:2]
        self.latency = 0.0
        self.drip = 0.0
        self.black_hole = False
        self.refuse = False
        self.connections = 0
        self.dropped = 0
        self._dropping = 0
        self._marker = b""
        self._allowance: int | None = None
        self._lock = threading.Lock()
        self._open: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self.stopped = threading.Event()
        self._accepter = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._accepter.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections and accepts no more."""
        self.stopped.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        if self._accepter.is_alive():
            self._accepter.join(2.0)
        self.cut()
        for thread in self._threads:
            thread.join(2.0)

    # -- faults ----------------------------------------------------------------------------------------------------

    def drop_replies(self, times: int, *, to: bytes = b"") -> None:
        """Drops the replies to the next `times` requests that hold the bytes `to`."""
        with self._lock:
            self._dropping, self._marker = times, to

    def cut_after(self, count: int | None) -> None:
        """Lets `count` bytes of the server through on each connection from now on, then ends it; None: no limit."""
        with self._lock:
            self._allowance = count
            for link in self._open:
                link.left = count

    def cut(self) -> None:
        """Ends every open connection."""
        for link in self._living():
            link.end()

    def reset(self) -> None:
        """Resets every open connection."""
        for link in self._living():
            link.end(reset=True)

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._living())

    def _living(self) -> list[_Link]:
        with self._lock:
            return list(self._open)

    # -- passing on ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.refuse:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._server, timeout=5.0)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server, self._allowance)
            with self._lock:
                self._open.add(link)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for pump in (self._upward, self._downward):
                thread = threading.Thread(target=self._run, args=(pump, link), name="fault-proxy-link", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self, pump: Any, link: _Link) -> None:
        try:
            pump(link)
        except OSError:
            pass
        finally:
            link.end()
            link.leave()
            with self._lock:
                self._open.discard(link)

    def _upward(self, link: _Link) -> None:
        while data := link.client.recv(CHUNK):
            self._pause()
            with self._lock:
                if self._dropping and self._marker in data:
                    self._dropping -= 1
                    link.drops_reply = True
            link.server.sendall(data)

    def _downward(self, link: _Link) -> None:
        while data := link.server.recv(CHUNK):
            self._pause()
            if link.drops_reply:
                self.dropped += 1
                return
            if self.drip:
                for position in range(len(data)):
                    self._pass_on(link, data[position : position + 1])
                    self._wait(self.drip)
            else:
                self._pass_on(link, data)

    def _pass_on(self, link: _Link, data: bytes) -> None:
        with self._lock:
            left = link.left
            if left is not None:
                data = data[:left]
                link.left = left - len(data)
        if data:
            link.client.sendall(data)
        if link.left == 0:
            raise OSError("cut as told")

    def _pause(self) -> None:
        if self.latency:
            self._wait(self.latency)
        while self.black_hole:
            self._wait(0.01)

    def _wait(self, seconds: float) -> None:
        if SYSTEM.sleep(seconds, self.stopped):
            raise OSError("the proxy stops")


class _Link:
    """A client's connection and ours to the server."""

    def __init__(self, client: socket.socket, server: socket.socket, left: int | None) -> None:
        self.client = client
        self.server = server
        self.left = left
        self.drops_reply = False
        self._pumps = 2
        self._lock = threading.Lock()

    def end(self, *, reset: bool = False) -> None:
        """Ends both connections; the pumps see it."""
        with self._lock:
            if self._pumps == 0:
                return
            if reset:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for end in (self.client, self.server):
                try:
                    end.shutdown(socket.SHUT_RD if reset and end is self.client else socket.SHUT_RDWR)
                except OSError:
                    pass

    def leave(self) -> None:
        """Closes the sockets when both pumps have left."""
        with self._lock:
            self._pumps -= 1
            if self._pumps == 0:
                self.client.close()
                self.server.close()


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
