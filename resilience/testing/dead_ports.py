"""Ports of 127.0.0.1 where no connection comes about: one refuses, one lets the client wait."""

from __future__ import annotations

import socket


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
