"""Resolving names on threads that can be left behind: no operating system bounds that wait."""

from __future__ import annotations

import socket

from .threads import ThreadWorkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_workers = ThreadWorkers("name resolution", max_workers=32, max_abandoned=32)


def literal(host: str, port: int, family: int = 0) -> list[Any] | None:
    """The addresses of a host that is written as a number, at once; None for a name."""
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def resolve(host: str, port: int, family: int, seconds: float) -> list[Any]:
    """What `socket.getaddrinfo` says about TCP to `host`; raises `DeadlineExceeded` after `seconds`, or its errors."""
    arguments = (host, port, family, socket.SOCK_STREAM)
    found: list[Any] = _workers.call(socket.getaddrinfo, arguments, None, seconds)
    return found
