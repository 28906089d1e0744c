"""The content of an answer: decoded, in pieces of bounded size, and refused unless it is whole.

urllib3 hands out a compressed body that ends too soon as if it were complete; here it is a cut answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from http.client import IncompleteRead
from typing import TYPE_CHECKING

from requests.exceptions import ContentDecodingError

if TYPE_CHECKING:
    from requests import Response

CHUNK = 1 << 16
LARGEST = 1 << 20  # bytes that one piece may decode to at once
GZIP, ZLIB, BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
FORMATS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": ZLIB}


def content_of(response: Response) -> Iterator[bytes]:
    """The decoded body, piece by piece. Raises what requests and urllib3 raise, `IncompleteRead` at a cut one."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in FORMATS:
        return _decoded(response.raw.stream(CHUNK, decode_content=False), encoding)
    pieces: Iterator[bytes] = response.iter_content(CHUNK)
    return pieces


def _decoded(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = None
    for piece in pieces:
        rest = piece
        while rest:
            if decoder is None:
                decoder = zlib.decompressobj(_format(encoding, rest))
            elif decoder.eof:
                if encoding == "deflate" or not rest.startswith(b"\x1f"):
                    break  # what follows the last member is nobody's
                decoder = zlib.decompressobj(GZIP)
            try:
                yield decoder.decompress(rest, LARGEST)
            except zlib.error as error:
                raise ContentDecodingError(f"not {encoding}, as it says: {error}") from error
            rest = decoder.unconsumed_tail or decoder.unused_data
    if decoder is not None and not decoder.eof:
        raise IncompleteRead(b"")


def _format(encoding: str, start: bytes) -> int:
    """What zlib is to expect. Some send "deflate" bare, without zlib's frame (RFC 9110, 8.4.1.2), whose first byte
    says 8 in its low half.
    """
    return BARE if encoding == "deflate" and start[0] & 0x0F != 8 else FORMATS[encoding]
