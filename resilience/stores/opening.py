"""From a URL to the store it names; the kinds of stores are loaded when they are asked for."""

from __future__ import annotations

import os
import threading
import weakref

from ..core.errors import ConfigError
from .port import redacted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .port import Store

# scheme -> (module, class)
KINDS = {
    "memory": ("memory", "MemoryStore"),
    "file": ("file", "FileStore"),
    "redis": ("redis", "RedisStore"),
    "rediss": ("redis", "RedisStore"),
    "postgresql": ("postgres", "PostgresStore"),
    "postgres": ("postgres", "PostgresStore"),
}
EXAMPLES = "memory://, file:///path/state, redis://host:6379/0, postgresql://host/database"


def open_store(url: str) -> Store:
    """The store at `url`: `memory://`, `file:///path`, `redis://...` (`rediss://` with TLS) or `postgresql://...`.

    It is reached at its first use, so that one that is away delays nothing here; what cannot be reached raises
    `StoreUnavailable` there. Raises `ConfigError` for a URL of another kind. The store is a context manager; it is
    yours to close, and one that is dropped while it holds threads, files or sockets gives a `ResourceWarning`.
    """
    scheme, mark, _ = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not mark or scheme not in KINDS:
        shown = redacted(url) if isinstance(url, str) else url
        raise ConfigError(f"{shown!r} is no store; use one of {EXAMPLES}", key="store", value=shown)
    from importlib import import_module

    module, name = KINDS[scheme]
    store: Store = getattr(import_module(f".{module}", __package__), name)(url)
    return store


_by_url: weakref.WeakValueDictionary[str, Store] = weakref.WeakValueDictionary()
_sharing = threading.RLock()


def as_store(store: Store | str, user: Any) -> Store:
    """The store itself; for a URL the one that this process uses for it, or a new one. Raises `ConfigError`.

    One that was opened here is closed when the last of its users is `done_with` it, or when all of them are gone.
    """
    from .port import Store

    if isinstance(store, Store):
        return store
    with _sharing:
        while True:
            known = _by_url.get(store) if isinstance(store, str) else None
            if known is None or known.closed:
                known = open_store(store)
                known.users = weakref.WeakSet()
                _by_url[store] = known
            if known.users is not None:
                known.users.add(user)
            if _by_url.get(store) is known:
                return known


def done_with(store: Store, user: Any) -> None:
    """`user` needs the store no more: one that was opened for a URL is closed when nobody else does."""
    with _sharing:
        if store.users is None or user not in store.users:
            return
        store.users.discard(user)
        if store.users:
            return
        if _by_url.get(store.url) is store:
            del _by_url[store.url]
    store.close()


def _after_fork() -> None:
    global _sharing  # a lock that another thread of the parent held is nobody's in the child
    _sharing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
