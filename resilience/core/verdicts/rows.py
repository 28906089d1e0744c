"""What the tables are made of: rows of (category, retryable, outcome), and the readers that look at an instance."""

from __future__ import annotations

from ..classification import Classification
from ..errors import ErrorCategory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Row = tuple[ErrorCategory, bool, str]
    # A reader gives a verdict, an exception to be judged in the place of this one, or None: the instance tells nothing.
    # It may raise whatever a strange instance makes it raise, which means None.
    Reader = Callable[[Any], Classification | BaseException | None]
    # What to ask, and what holds when the answer is None. No verdict at all: the next class of the MRO is asked.
    Entry = tuple[Reader | None, Classification | None]
    Table = dict[str, Entry]

T, P, R, L = ErrorCategory.TRANSIENT, ErrorCategory.PERMANENT, ErrorCategory.RESOURCE, ErrorCategory.LOGIC

NOT_SENT: Row = (T, True, "not_sent")
UNKNOWN: Row = (T, True, "unknown")
PARTIAL: Row = (T, True, "partial")
ANSWERED: Row = (T, True, "answered")
NO_ROOM: Row = (R, True, "not_sent")
NO_ROOM_UNKNOWN: Row = (R, True, "unknown")
NO_ROOM_ANSWERED: Row = (R, True, "answered")
REFUSED: Row = (P, False, "answered")
UNSENDABLE: Row = (P, False, "not_sent")
BUG: Row = (L, False, "unknown")
BUG_NOT_SENT: Row = (L, False, "not_sent")
BUG_ANSWERED: Row = (L, False, "answered")


def verdict(row: Row, reason: str, retry_after: float | None = None) -> Classification:
    """The verdict of a row under the id of its rule."""
    category, retryable, outcome = row
    return Classification(category, retryable, outcome, retry_after, reason)


def table(module: str, label: str, rows: Mapping[str, Row], reader: Reader | None = None) -> Table:
    """The entries of the classes of one module, each asked by `reader` first; their ids are "label:Class"."""
    return {f"{module}.{name}": (reader, verdict(row, f"{label}:{name}")) for name, row in rows.items()}


def message(error: BaseException) -> str:
    """The text of an error's first argument, else of the error."""
    first = error.args[0] if error.args else None
    return first if isinstance(first, str) else str(error)
