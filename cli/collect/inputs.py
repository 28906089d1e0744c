"""The list of what to fetch: lines of URLs or JSONL, read and checked whole before anything is sent.

Blank lines and lines starting with `#` are skipped. A line starting with `{` is a JSON object with `url` and, if
wanted, `method`, `headers`, `body` (text, or an object or array sent as JSON) and `key`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

from ..output import redacted

FIELDS = ("url", "method", "headers", "body", "key")
PORTS = {"http": 80, "https": 443}
LONGEST_LABEL = 63  # RFC 1035, 2.3.4
SHOWN = 20  # malformed lines named one by one; the rest is counted
# RFC 9110, 9.2.2: a second PUT or DELETE leaves things as the first did. Methods unknown to it are not assumed to.
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_HOST = re.compile(r"[^\s/?#@\\<>\"{}|^`%]+")


class InputError(Exception):
    """A list that cannot be used: each of `problems` is "FILE:LINE: what is wrong"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(slots=True, eq=False)
class Item:
    """One request to be made, once, whatever the number of lines that ask for it. `line` is its text in the list."""

    key: str
    url: str
    host: str  # host:port, the name of its breaker
    line: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None

    @property
    def is_idempotent(self) -> bool:
        """Whether a second request does no more than the first."""
        return self.method in IDEMPOTENT


@dataclass(slots=True)
class Listing:
    """The items of a list in their order, and how many lines asked for one that was there already."""

    items: list[Item]
    duplicates: int = 0

    def digest(self) -> str:
        """A name for this very set of items: the same for the same list, wherever it came from."""
        mark = blake2b(digest_size=8)
        for item in self.items:
            mark.update(item.key.encode("utf-8", "surrogatepass") + b"\0")
        return mark.hexdigest()


def read_items(lines: Iterable[bytes], name: str) -> Listing:
    """The items of a list; raises `InputError` naming every malformed line of `name`."""
    items: dict[str, Item] = {}
    problems: list[str] = []
    wrong = duplicates = 0
    for number, text in _content(lines):
        try:
            if isinstance(text, UnicodeDecodeError):
                raise ValueError("not UTF-8")
            item = _object(text) if text.startswith("{") else _plain(text)
        except ValueError as error:
            wrong += 1
            if wrong <= SHOWN:
                problems.append(f"{name}:{number}: {error}")
            continue
        if items.setdefault(item.key, item) is not item:
            duplicates += 1
    if wrong > SHOWN:
        problems.append(f"{name}: and {wrong - SHOWN} more malformed lines")
    if problems:
        raise InputError(problems)
    return Listing(list(items.values()), duplicates)


def _content(lines: Iterable[bytes]) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    for number, raw in enumerate(lines, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            yield number, error
            continue
        if text and not text.startswith("#"):
            yield number, text


def _plain(url: str) -> Item:
    return Item(key_of("GET", url, {}, None), url, host_of(url), url)


def _object(text: str) -> Item:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    for name in fields:
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, 1)
            raise ValueError(f"unknown field {_short(name)}" + (f", did you mean {near[0]!r}?" if near else ""))
    url = fields.get("url")
    if not isinstance(url, str):
        raise ValueError('expected "url": "http://..."')
    url = url.strip()
    host = host_of(url)
    method = _method(fields.get("method", "GET"))
    headers = _headers(fields.get("headers"))
    body = _body(fields.get("body"), headers)
    key = fields.get("key")
    if key is None:
        key = key_of(method, url, headers, body)
    elif not isinstance(key, str) or not key:
        raise ValueError(f'"key" is a text that is not empty, not {_short(key)}')
    return Item(key, url, host, text, method, headers, body)


def _method(value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError(f'"method" is a word such as GET, not {_short(value)}')
    return value.upper()


def _headers(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f'"headers" is an object of names and texts, not {_short(value)}')
    headers = {}
    for name, content in value.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{_short(name)} is not the name of a header")
        if isinstance(content, (int, float)) and not isinstance(content, bool):
            content = str(content)
        if not isinstance(content, str) or re.search(r"[\x00\r\n]", content) or not _is_latin(content):
            raise ValueError(f"header {_short(name)} is one line of Latin-1 text, not {_short(content)}")
        headers[name] = content.strip()
    return headers


def _body(value: Any, headers: dict[str, str]) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, (dict, list)):
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = "application/json"
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise ValueError(f'"body" is a text, an object or an array, not {_short(value)}')
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError('"body" has half a surrogate pair, which no encoding can send') from None


def host_of(url: str) -> str:
    """`host:port` of an http or https URL; raises `ValueError` saying why it cannot be fetched."""
    if found := _UNSAFE.search(url):
        raise ValueError(f"{_short(url)} has {found.group()!r} in it: write it percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{_short(url)} is not a URL: {error}") from None
    if parts.scheme not in PORTS:
        raise ValueError(f"{_short(url)} is not an http:// or https:// URL")
    host = parts.hostname
    if not host or not _HOST.fullmatch(host) or host.startswith(".") or ".." in host:
        raise ValueError(f"{_short(url)} names no host")
    if ":" not in host and max(map(len, host.split("."))) > LONGEST_LABEL:
        raise ValueError(f"{_short(url)} names a host with a part of more than {LONGEST_LABEL} characters")
    if port == 0:
        raise ValueError(f"{_short(url)} has port 0")
    if any("\ud800" <= letter <= "\udfff" for letter in url):
        raise ValueError(f"{_short(url)} has half a surrogate pair, which no encoding can send")
    return f"[{host}]:{port or PORTS[parts.scheme]}" if ":" in host else f"{host}:{port or PORTS[parts.scheme]}"


def key_of(method: str, url: str, headers: dict[str, str], body: bytes | None) -> str:
    """The name of an item without one: a hash of all that is sent."""
    mark = blake2b(f"{method} {url}".encode("utf-8", "surrogatepass"), digest_size=12)
    for name, content in sorted((name.lower(), content) for name, content in headers.items()):
        mark.update(f"\n{name}: {content}".encode("latin-1"))
    if body is not None:
        mark.update(b"\n\n" + body)
    return mark.hexdigest()


def _is_latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _short(value: object) -> str:
    text = redacted(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
