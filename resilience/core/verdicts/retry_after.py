"""Retry-After (RFC 9110, 10.2.3), read from headers that may hold anything."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 10.0 * 365 * 86400  # seconds; a longer wish is garbage


def retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header: a number (a fraction is understood), or a date held against the response's own
    Date (our clock, where it has none; a date gone by is 0). None for what is absent, garbled, negative or over ten
    years. Never raises."""
    try:
        text = _field(headers, "Retry-After")
        if text is None:
            return None
        if text.isascii() and text.replace(".", "", 1).isdigit():
            seconds = float(text[:40])
        else:
            seconds = _until(text, _field(headers, "Date"))
    except Exception:  # a foreign object or a hostile text tells nothing
        return None
    return seconds if 0 <= seconds <= LONGEST else None


def _field(headers: Any, name: str) -> str | None:
    value = headers.get(name)
    if value is None:
        value = headers.get(name.lower())
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return str(value).strip()[:100] if isinstance(value, (str, int)) else None


def _until(text: str, date: str | None) -> float:
    from ..clock import SYSTEM

    now = _timestamp(date) if date else None
    then = _timestamp(text)
    if then is None:
        return -1.0
    return max(0.0, then - (SYSTEM.time() if now is None else now))


def _timestamp(text: str) -> float | None:
    """The three forms of an HTTP-date; they are all in GMT, said or not."""
    from datetime import datetime, timezone
    from email.utils import parsedate_tz

    parts = parsedate_tz(text)
    if parts is None:
        return None
    year, month, day, hour, minute, second = parts[:6]
    try:
        then = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=timezone.utc)  # 60 is a leap second
    except ValueError:  # the 99th of November
        return None
    return then.timestamp() - (parts[9] or 0)
