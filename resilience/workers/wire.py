"""Frames on a socket between a process and its worker: a length, a kind, and bytes."""

from __future__ import annotations

import socket
import struct

HEADER = struct.Struct("!QB")
FIRST = 1 << 13  # bytes of the first look: room that the allocator has at hand
CHUNK = 1 << 18
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # a program may have given SIGPIPE its deadly meaning back

HELLO, CALL, VALUE, ERROR, NOT_LOADED = range(5)
LEAVING = 0x80  # added to the kind of an answer: the worker wants to be replaced
LARGEST = 1 << 56  # beyond it the stream is no stream of frames


def frame(kind: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind) + payload


def send_all(line: socket.socket, data: bytes) -> None:
    """Sends on a blocking socket."""
    line.sendall(data, _NO_SIGNAL)


def send_some(line: socket.socket, data: memoryview) -> int:
    """Sends what there is room for, without waiting; gives how many bytes."""
    try:
        return line.send(data, _NO_SIGNAL)
    except BlockingIOError:
        return 0


def receive(line: socket.socket) -> tuple[int, bytes] | None:
    """The next frame from a blocking socket; None when the other side is gone."""
    head = _exactly(line, HEADER.size)
    if head is None:
        return None
    length, kind = HEADER.unpack(head)
    payload = _exactly(line, length)
    return None if payload is None else (kind, payload)


def _exactly(line: socket.socket, count: int) -> bytes | None:
    parts = []
    while count:
        try:
            part = line.recv(min(count, CHUNK))
        except ConnectionError:
            return None
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Inbox:
    """Puts frames together from what a non-blocking socket gives. Raises `ValueError` for what is no frame."""

    __slots__ = ("_line", "data", "ended")

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self.data = bytearray()
        self.ended = False  # the other side has closed

    def fill(self) -> None:
        """Takes what is there now."""
        size = FIRST
        while not self.ended:
            try:
                part = self._line.recv(size)
            except BlockingIOError:
                return
            except ConnectionError:
                part = b""
            self.data += part
            self.ended = not part
            if len(part) < size:
                return
            size = CHUNK

    def take(self) -> tuple[int, bytes] | None:
        """The next whole frame, None when there is none yet."""
        if len(self.data) < HEADER.size:
            return None
        length, kind = HEADER.unpack_from(self.data)
        if length > LARGEST:
            raise ValueError(f"not a frame: {bytes(self.data[:80])!r}")
        end = HEADER.size + length
        if len(self.data) < end:
            return None
        payload = bytes(memoryview(self.data)[HEADER.size : end])
        del self.data[:end]
        return kind, payload
