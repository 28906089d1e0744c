"""PostgreSQL through psycopg2 (and psycopg): by SQLSTATE, by class, by libpq's words where neither is known.

The SQLSTATEs and their condition names are those of the manual, appendix A.
"""

from __future__ import annotations

from .rows import (
    ANSWERED,
    BUG_ANSWERED,
    BUG_NOT_SENT,
    NO_ROOM,
    NO_ROOM_ANSWERED,
    NOT_SENT,
    REFUSED,
    UNKNOWN,
    UNSENDABLE,
    message,
    table,
    verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

# The five characters are looked up first, then the two of their class. A server on its way down (57P01, 57P02) may
# have committed before it cut the connection. A read-only transaction (25006) is what a demoted primary answers.
BY_SQLSTATE: dict[str, Row] = {
    "08": UNKNOWN, "08001": NOT_SENT, "08004": NOT_SENT, "08P01": BUG_ANSWERED, "0A": REFUSED,
    "21": BUG_ANSWERED, "22": BUG_ANSWERED, "23": REFUSED, "24": BUG_ANSWERED,
    "25": BUG_ANSWERED, "25006": ANSWERED, "25P03": ANSWERED, "25P04": ANSWERED, "26": REFUSED, "28": REFUSED,
    "2D": BUG_ANSWERED, "34": BUG_ANSWERED, "38": REFUSED, "39": REFUSED, "3B": BUG_ANSWERED, "3D": REFUSED,
    "3F": REFUSED, "40": ANSWERED, "40002": REFUSED, "40003": UNKNOWN, "42": BUG_ANSWERED, "42501": REFUSED,
    "44": REFUSED, "53": NO_ROOM_ANSWERED, "53300": NO_ROOM, "54": REFUSED, "55": REFUSED, "55006": ANSWERED,
    "55P03": ANSWERED, "57": ANSWERED, "57P01": UNKNOWN, "57P02": UNKNOWN, "57P03": NOT_SENT, "57P04": REFUSED,
    "57P05": UNKNOWN, "58": UNKNOWN, "58P01": REFUSED, "58P02": REFUSED, "72": ANSWERED, "F0": REFUSED, "HV": ANSWERED,
    "P0": REFUSED, "XX": BUG_ANSWERED, "XX000": ANSWERED,
}  # fmt: skip

# An error that no server sent (made by a test, or unpickled without its state) has only its class.
_STATE_OF_CLASS = {
    "SerializationFailure": "40001", "DeadlockDetected": "40P01", "LockNotAvailable": "55P03", "QueryCanceled": "57014",
    "AdminShutdown": "57P01", "CrashShutdown": "57P02", "CannotConnectNow": "57P03", "IdleSessionTimeout": "57P05",
    "TooManyConnections": "53300", "DiskFull": "53100", "OutOfMemory": "53200", "InsufficientResources": "53000",
    "ConnectionFailure": "08006", "ConnectionDoesNotExist": "08003", "ConnectionException": "08000",
    "SqlclientUnableToEstablishSqlconnection": "08001", "ReadOnlySqlTransaction": "25006", "ObjectInUse": "55006",
    "IdleInTransactionSessionTimeout": "25P03", "InsufficientPrivilege": "42501", "InvalidPassword": "28P01",
}  # fmt: skip

_NO_ROOM_WORDS = ("too many clients", "too many connections", "connection slots are reserved")
_STARTING_WORDS = ("starting up", "shutting down", "in recovery mode", "not yet accepting", "not accepting connections")
_CONNECTING_WORDS = ("connection to server", "could not connect", "could not translate host name", "timeout expired")


def _postgres(error: Any) -> Classification | None:
    state = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)
    if not isinstance(state, str):
        state = next((_STATE_OF_CLASS[k.__name__] for k in type(error).__mro__ if k.__name__ in _STATE_OF_CLASS), None)
    if state is None:
        return _by_words(message(error))
    row = BY_SQLSTATE.get(state) or BY_SQLSTATE.get(state[:2])
    return verdict(row, f"sqlstate:{state}") if row is not None else None


def _by_words(text: str) -> Classification | None:
    """What failed while connecting carries no SQLSTATE, not even where the server sent one."""
    if any(words in text for words in _NO_ROOM_WORDS):
        return verdict(NO_ROOM, "postgres:too many connections")
    if any(words in text for words in _STARTING_WORDS):
        return verdict(NOT_SENT, "postgres:cannot connect now")
    if text.startswith(_CONNECTING_WORDS):
        if "FATAL:" in text:
            return verdict(UNSENDABLE, "postgres:refused")
        if "certificate verify failed" in text or "does not support SSL" in text or "root certificate" in text:
            return verdict(UNSENDABLE, "postgres:tls")
        return verdict(NOT_SENT, "postgres:connecting")
    if text.startswith(("invalid dsn", "invalid connection option", "invalid port number", "invalid integer value")):
        return verdict(BUG_NOT_SENT, "postgres:dsn")
    if any(words in text for words in ("closed the connection", "SSL SYSCALL", "SSL connection has been closed")):
        return verdict(UNKNOWN, "postgres:connection lost")
    return None


def _interface(error: Any) -> Classification | None:
    if "connection already closed" in message(error) or "connection is closed" in message(error):
        return verdict(NOT_SENT, "postgres:connection already closed")
    return None


def _pool(error: Any) -> Classification | None:
    if "exhausted" in message(error):
        return verdict(NO_ROOM, "postgres:pool exhausted")
    return None


ROWS: dict[str, Row] = {
    "OperationalError": UNKNOWN,
    "InternalError": UNKNOWN,
    "DatabaseError": UNKNOWN,
    "Error": UNKNOWN,
    "DataError": BUG_ANSWERED,
    "IntegrityError": REFUSED,
    "ProgrammingError": BUG_ANSWERED,
    "NotSupportedError": REFUSED,
}


def _tables(module: str, label: str) -> Table:
    return {
        **table(module, label, ROWS, _postgres),
        **table(module, label, {"InterfaceError": BUG_NOT_SENT}, _interface),
        **table(module, label, {"Warning": BUG_ANSWERED}),
    }


TABLE: Table = {
    **_tables("psycopg2", "psycopg2"),
    **_tables("psycopg", "psycopg"),
    **table("psycopg2.extensions", "psycopg2", {"TransactionRollbackError": ANSWERED, "QueryCanceledError": ANSWERED},
            _postgres),
    **table("psycopg2.pool", "psycopg2", {"PoolError": BUG_NOT_SENT}, _pool),
    **table("psycopg_pool", "psycopg", {"PoolTimeout": NO_ROOM, "TooManyRequests": NO_ROOM}),
}  # fmt: skip
