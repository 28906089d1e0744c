"""From a name to a connected socket, in time. Names are resolved on threads that can be left behind: no operating
system bounds that wait.
"""

from __future__ import annotations

import socket

from .threads import ThreadWorkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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


def first_connected(addresses: Iterable[Any], connect: Callable[[socket.socket, Any], object]) -> socket.socket:
    """The first socket that `connect(made, address)` connects, of addresses as `resolve` gives them.

    Raises the `OSError` of the last one where all fail, and whatever else `connect` raises at once; what was not
    connected is closed.
    """
    failure = OSError("the name has no address")
    for family, kind, protocol, _, address in addresses:
        made = socket.socket(family, kind, protocol)
        try:
            connect(made, address)
            return made
        except OSError as error:
            failure = error
            made.close()
        except BaseException:
            made.close()
            raise
    raise failure
