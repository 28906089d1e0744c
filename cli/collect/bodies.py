"""Where bodies go: one file an item, complete or not there at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from .journal import OutputError

if TYPE_CHECKING:
    from .inputs import Item

LONGEST = 80  # characters of a name that come from the URL; file systems allow 255 bytes
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


def name_of(item: Item) -> str:
    """A file name that people recognise and that no other item has: host and path, then a hash of the key."""
    parts = urlsplit(item.url)
    path = unquote(parts.path).rstrip("/")
    stem, dot, suffix = path.rpartition(".")
    if not (dot and _SUFFIX.fullmatch(dot + suffix) and "/" not in suffix):
        stem, suffix = path, ""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{parts.hostname}{stem}").strip("._-")[:LONGEST]
    mark = blake2b(item.key.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{readable}-{mark}" + (f".{suffix}" if suffix else "")


class Bodies:
    """A directory of bodies. Safe to share: every item has its own names."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise OutputError("bodies to", self.directory, error) from error

    def keep(self, item: Item, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Writes the chunks as they come and gives (bytes, path) once all are there.

        What the chunks raise passes, and leaves nothing behind. Raises `OutputError` where the file cannot be written.
        """
        name = name_of(item)
        target, part = self.directory / name, self.directory / f".{name}.part"
        size = 0
        try:
            file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError("the body to", target, error) from error
        try:
            try:
                for chunk in chunks:
                    size += len(chunk)
                    _write(file, chunk, target)
            finally:
                os.close(file)
            _move(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return size, str(target)


def _write(file: int, chunk: bytes, target: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError as error:
        raise OutputError("the body to", target, error) from error


def _move(part: Path, target: Path) -> None:
    try:
        os.replace(part, target)
    except OSError as error:
        raise OutputError("the body to", target, error) from error
