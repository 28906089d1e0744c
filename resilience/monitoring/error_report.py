"""The error report: all errors of a run, grouped so that a million of them stay a page.

Groups hold text and counters only: no exception and no frame is kept alive.
"""

from __future__ import annotations

import threading
import traceback

from ..core.classify import classify
from ..core.clock import SYSTEM
from ..core.errors import require_count
from ..core.forks import afresh_in_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..core.clock import Clock

MAX_GROUPS = 200
LONGEST_MESSAGE = 200
LONGEST_SAMPLE = 4000
OTHER = ("", "(other)", "more kinds of errors than groups are kept", "")


class ErrorReport:
    """Errors grouped by category, type, normalised message and place. Safe to use from any thread.

    `len()` is the number of errors; at most `max_groups` groups are kept, later kinds count as "(other)".
    """

    def __init__(self, *, clock: Clock | None = None, max_groups: int = MAX_GROUPS) -> None:
        require_count("max_groups", max_groups)
        self._clock = clock or SYSTEM
        self._max_groups = max_groups
        self.fresh_locks()
        self._groups: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self._errors = 0
        self._calls = 0
        self.count_calls: Callable[[], int] | None = None  # who knows the number of calls better
        afresh_in_children(self)

    def fresh_locks(self) -> None:
        """Locks of its own: at the start, and in a forked child."""
        self._lock = threading.RLock()  # re-entrant: see `OperationStats`

    def add(
        self, error: BaseException, operation: str | None = None, item: object = None, *, times: int = 1
    ) -> None:
        """Counts one error (or `times` of the same), of an operation and of an item where there is one."""
        now = self._clock.time()
        kind = type(error).__name__
        category = str(classify(error).category)
        where = _where(error, operation)
        key = (category, kind, normalised(_message(error)), where)
        with self._lock:
            self._errors += times
            group = self._groups.get(key)
            if group is None and len(self._groups) >= self._max_groups:
                key = OTHER
                group = self._groups.get(key)
            if group is not None:
                group["count"] += times
                group["last_seen"] = now
                return
        sample = "".join(traceback.format_exception(error))[-LONGEST_SAMPLE:]
        fresh = {"count": 0, "first_seen": now, "last_seen": now, "sample": sample, "item": _short(item)}
        with self._lock:
            if key not in self._groups and len(self._groups) >= self._max_groups:
                key = OTHER  # others were quicker
            group = self._groups.setdefault(key, fresh)
            group["count"] += times
            group["last_seen"] = now

    def count_call(self, count: int = 1) -> None:
        """Counts calls made, failed or not: the M of "N errors out of M"."""
        with self._lock:
            self._calls += count

    @property
    def total(self) -> int:
        """How many calls were made, as far as they were counted; never less than the errors."""
        calls = self._calls if self.count_calls is None else self.count_calls()
        return max(calls, self._errors)

    def __len__(self) -> int:
        return self._errors

    def __bool__(self) -> bool:
        return self._errors > 0

    def summary(self) -> str:
        """The report as text: the specification's sentence and a line per group, most frequent first."""
        lines = [f"operation completed with {self._errors} errors out of {self.total}"]
        for group in self.to_json()["groups"]:
            place = f" at {group['where']}" if group["where"] else ""
            lines.append(f"{group['count']:>7}x {group['category']:<9} {group['type']}: {group['message']}{place}")
        return "\n".join(lines)

    def table(self) -> str:
        """The groups as columns, most frequent first, for the end of a run; empty without errors."""
        groups = self.to_json()["groups"]
        if not groups:
            return ""
        rows = [("COUNT", "CATEGORY", "TYPE", "WHERE", "MESSAGE")]
        keys = ("category", "type", "where", "message")
        rows += [(str(group["count"]), *(group[key] for key in keys)) for group in groups]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = []
        for count, *words, message in rows:
            shown = [word.ljust(width) for word, width in zip(words, widths[1:], strict=True)]
            lines.append("  ".join([count.rjust(widths[0]), *shown, message]).rstrip())
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data: errors, total and the groups, most frequent first."""
        with self._lock:
            groups = [
                {"category": category, "type": kind, "message": message, "where": where, **group}
                for (category, kind, message, where), group in list(self._groups.items())
            ]
        groups.sort(key=lambda group: -group["count"])
        return {"errors": self._errors, "total": self.total, "groups": groups}

    def __repr__(self) -> str:
        return f"<ErrorReport: {self._errors} errors out of {self.total}, {len(self._groups)} groups>"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error that cannot show itself is still counted
        return "(its message cannot be shown)"


def _short(item: object) -> str | None:
    try:
        return None if item is None else repr(item)[:LONGEST_MESSAGE]
    except Exception:  # an item that cannot show itself is still one
        return f"<{type(item).__name__}>"


def _where(error: BaseException, operation: str | None) -> str:
    """The operation, and the line that raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return operation or ""
    line = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
    return f"{operation} ({line})" if operation else line


_PATTERNS: list[tuple[Any, str]] = []


def normalised(message: str) -> str:
    """A message without what differs from one error to the next: quoted texts, paths of URLs, hex ids and numbers."""
    if not _PATTERNS:
        import re

        _PATTERNS.extend(
            (re.compile(pattern), replacement)
            for pattern, replacement in (
                (r"(?s)\(last error: .*", "(last error: ...)"),  # of a breaker that refuses: it has a group of its own
                (r"(https?://[^/\s'\"]+)/[^\s'\"]*", r"\1/..."),
                (r"\bwith url: /\S*", "with url: /..."),  # as urllib3 says it
                (r"'[^']{0,200}'", "'...'"),
                (r'"[^"]{0,200}"', '"..."'),
                (r"\b0x[0-9a-fA-F]+\b", "0x..."),
                (r"\b[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}\b", "<id>"),
                (r"\d+(?:\.\d+)?(?!x\.\.\.)", "N"),
            )
        )
    text = message[: 4 * LONGEST_MESSAGE]
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())[:LONGEST_MESSAGE]
