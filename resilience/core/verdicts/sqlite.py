"""SQLite, by its result codes (sqlite.org/rescode.html), or by its words where the error has no code."""

from __future__ import annotations

from .rows import (
    ANSWERED,
    BUG_ANSWERED,
    BUG_NOT_SENT,
    NO_ROOM_ANSWERED,
    REFUSED,
    UNKNOWN,
    UNSENDABLE,
    table,
    verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

BY_CODE: dict[int, tuple[str, Row]] = {
    1: ("ERROR", BUG_ANSWERED), 3: ("PERM", UNSENDABLE), 4: ("ABORT", ANSWERED), 5: ("BUSY", ANSWERED),
    6: ("LOCKED", ANSWERED), 7: ("NOMEM", NO_ROOM_ANSWERED), 8: ("READONLY", REFUSED), 9: ("INTERRUPT", ANSWERED),
    10: ("IOERR", UNKNOWN), 11: ("CORRUPT", BUG_ANSWERED), 13: ("FULL", NO_ROOM_ANSWERED), 14: ("CANTOPEN", UNSENDABLE),
    15: ("PROTOCOL", ANSWERED), 17: ("SCHEMA", ANSWERED), 18: ("TOOBIG", REFUSED), 19: ("CONSTRAINT", REFUSED),
    20: ("MISMATCH", BUG_ANSWERED), 21: ("MISUSE", BUG_NOT_SENT), 23: ("AUTH", REFUSED), 25: ("RANGE", BUG_ANSWERED),
    26: ("NOTADB", BUG_ANSWERED),
}  # fmt: skip
BY_WORDS: tuple[tuple[str, int], ...] = (
    ("database table is locked", 6), ("is locked", 5), ("database is busy", 5), ("database or disk is full", 13),
    ("malformed", 11), ("not a database", 26), ("disk i/o error", 10), ("unable to open database", 14),
    ("readonly database", 8), ("constraint failed", 19), ("interrupted", 9), ("too big", 18), ("locking protocol", 15),
    ("schema has changed", 17), ("not authorized", 23),
)  # fmt: skip


def _sqlite(error: Any) -> Classification | None:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int):
        code &= 0xFF  # the extended codes refine the primary one
    else:
        text = str(error).lower()
        code = next((number for words, number in BY_WORDS if words in text), None)
    if code not in BY_CODE:
        return None
    name, row = BY_CODE[code]
    return verdict(row, f"sqlite:SQLITE_{name}")


ROWS: dict[str, Row] = {
    "OperationalError": BUG_ANSWERED,
    "IntegrityError": REFUSED,
    "ProgrammingError": BUG_NOT_SENT,
    "InterfaceError": BUG_NOT_SENT,
    "InternalError": UNKNOWN,
    "NotSupportedError": REFUSED,
    "DataError": REFUSED,
    "DatabaseError": BUG_ANSWERED,
    "Error": UNKNOWN,
}
TABLE: Table = {**table("sqlite3", "sqlite", ROWS, _sqlite), **table("sqlite3", "sqlite", {"Warning": BUG_NOT_SENT})}
