"""redis-py and its twin valkey-py: by class, by the first word of an answer, by where a connection was lost."""

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
    L,
    message,
    table,
    verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

ROWS: dict[str, Row] = {
    # a server that is loading, changing its role or moving its slots
    "BusyLoadingError": ANSWERED,
    "ReadOnlyError": ANSWERED,
    "TryAgainError": ANSWERED,
    "ClusterDownError": ANSWERED,
    "MasterDownError": ANSWERED,
    "ClusterError": UNKNOWN,
    "AskError": ANSWERED,
    "MovedError": ANSWERED,
    "SlotNotCoveredError": NOT_SENT,
    "RedisClusterException": UNKNOWN,
    # somebody was faster
    "WatchError": ANSWERED,
    "LockNotOwnedError": BUG_ANSWERED,
    # full
    "OutOfMemoryError": NO_ROOM_ANSWERED,
    "MaxConnectionsError": NO_ROOM,
    # not allowed, or wrong
    "AuthenticationError": REFUSED,
    "AuthorizationError": REFUSED,
    "AuthenticationWrongNumberOfArgsError": REFUSED,
    "ExternalAuthProviderError": REFUSED,
    "NoPermissionError": REFUSED,
    "NoScriptError": REFUSED,
    "ModuleError": REFUSED,
    "ExecAbortError": BUG_ANSWERED,
    "ClusterCrossSlotError": BUG_ANSWERED,
    "CrossSlotTransactionError": BUG_NOT_SENT,
    "InvalidPipelineStack": (L, False, "unknown"),
    "InvalidResponse": (L, False, "partial"),
    "DataError": BUG_NOT_SENT,
    "PubSubError": BUG_NOT_SENT,
    "ChildDeadlockedError": BUG_NOT_SENT,
    "RedisError": UNKNOWN,
}
BY_WORD: dict[str, Row] = {
    "LOADING": ANSWERED, "READONLY": ANSWERED, "TRYAGAIN": ANSWERED, "CLUSTERDOWN": ANSWERED, "MASTERDOWN": ANSWERED,
    "BUSY": ANSWERED, "NOREPLICAS": ANSWERED, "NOGOODSLAVE": ANSWERED, "BUSYKEY": REFUSED, "MISCONF": NO_ROOM_ANSWERED,
    "OOM": NO_ROOM_ANSWERED, "NOAUTH": REFUSED, "WRONGPASS": REFUSED, "NOPERM": REFUSED, "NOSCRIPT": REFUSED,
    "WRONGTYPE": BUG_ANSWERED, "CROSSSLOT": BUG_ANSWERED, "EXECABORT": BUG_ANSWERED,
}  # fmt: skip


def _answer(error: Any) -> Classification | None:
    word = message(error).split(" ", 1)[0]
    return verdict(BY_WORD[word], f"redis:{word}") if word in BY_WORD else None


def _connection(error: Any) -> Classification | None:
    """The driver says "connecting" for what failed before any command, "reading" and "writing" for what did not."""
    text = message(error)
    if "max number of clients" in text or "Too many connections" in text or text == "No connection available.":
        return verdict(NO_ROOM, "redis:too many connections")
    if "connecting to" in text:
        return verdict(NOT_SENT, "redis:connecting")
    if text in ("Invalid Database", "Invalid RESP version") or text.startswith("protocol must be"):
        return verdict(UNSENDABLE, "redis:settings")
    return None


def _lock(error: Any) -> Classification | None:
    if message(error).startswith("Unable to acquire"):
        return verdict(ANSWERED, "redis:LockError:taken")
    return None


def _tables(module: str, label: str) -> Table:
    return {
        **table(f"{module}.exceptions", label, ROWS),
        **table(f"{module}.exceptions", label, {"ResponseError": REFUSED}, _answer),
        **table(f"{module}.exceptions", label, {"ConnectionError": UNKNOWN, "TimeoutError": UNKNOWN}, _connection),
        **table(f"{module}.exceptions", label, {"LockError": BUG_NOT_SENT}, _lock),
        **table(f"{module}.sentinel", label, {"MasterNotFoundError": NOT_SENT, "SlaveNotFoundError": NOT_SENT}),
    }


TABLE: Table = {**_tables("redis", "redis"), **_tables("valkey", "valkey")}
