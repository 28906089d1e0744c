"""Logs as data: a formatter that writes one JSON object a line, and the events of a manager as log records."""

from __future__ import annotations

import json
import logging

from ..core.logs import logger as room

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..core.events import Event, EventStream

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Retries are the daily business of this toolkit; what needs a look is a warning.
_LEVELS = {
    "attempt_failed": logging.DEBUG,
    "retry_scheduled": logging.DEBUG,
    "resource_registered": logging.DEBUG,
    "resource_closed": logging.DEBUG,
    "retries_exhausted": logging.WARNING,
    "breaker_state_changed": logging.WARNING,
    "timed_out": logging.WARNING,
    "abandoned": logging.WARNING,
    "degraded": logging.WARNING,
    "resource_leaked": logging.WARNING,
    "worker_lost": logging.WARNING,
    "store_lost": logging.WARNING,
    "alert_fired": logging.WARNING,
}


class JsonFormatter(logging.Formatter):
    """Each record as one line of JSON: time (seconds since 1970), level, logger, message, and whatever came in `extra`.

    An exception is under `error`: its type, its message and its traceback as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        shown: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        shown.update((key, value) for key, value in vars(record).items() if key not in _STANDARD and key not in shown)
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            trace = self.formatException(record.exc_info)
            shown["error"] = {"type": kind.__name__, "message": str(error), "traceback": trace}
        return json.dumps(shown, default=_text, ensure_ascii=False)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # what cannot show itself keeps no line from being written
        return f"({type(value).__name__} that cannot be shown)"


def log_events(
    events: EventStream, logger: logging.Logger | None = None, kinds: Iterable[str] | None = None
) -> Callable[[], None]:
    """Logs each event of these kinds (None: all) to `logger` (`resilience.news`), its fields as `extra`.

    Returns what ends it. It runs on the thread of the stream, never in a call.
    """
    target = logger or room("news")

    def log(event: Event) -> None:
        level = _LEVELS.get(event.kind, logging.INFO)
        if not target.isEnabledFor(level):
            return
        fields = event.as_dict()
        told = {f"event_{key}" if key in _STANDARD else key: value for key, value in fields.items() if key != "kind"}
        told["event"] = event.kind
        words = (event.kind, event.name)
        record = target.makeRecord(target.name, level, "(event)", 0, "%s %s", words, None, extra=told)
        record.created = event.at
        target.handle(record)

    return events.subscribe(log, kinds)
