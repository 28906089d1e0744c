"""What every store of shared state offers: small pieces of plain data under keys, changed one at a time.

A breaker, limiter or bulkhead decides by pure rules; a store holds what they decide upon, for all threads and processes
that look at the same URL. No user code runs inside of one.
"""

from __future__ import annotations

import json
import sys
import warnings
import weakref

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable, require
from ..core.forks import STORES, held_across_forks, living
from ..core.logs import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    # (old data or None, the store's time) -> (new data or None to delete, answer); may run more than once
    Change: TypeAlias = Callable[[Any, float], tuple[Any, Any]]
    Listener: TypeAlias = Callable[[str, Any], object]

PATIENCE = 2.0  # seconds to wait for a store when the caller names no limit
LAST_WORDS = 0.3  # seconds that closing waits for changes that were handed in
LONGEST_KEY = 500

_stores: weakref.WeakSet[Store] = weakref.WeakSet()  # for what has to happen to every store around a fork


class NotMade(StoreUnavailable):
    """Nothing was changed: the store is busy, or has to be connected to first."""


class Contended(NotMade):
    """The store is there, but others have changed the key all the time."""


class Store:
    """A store of plain data (what JSON can say) by key. Safe to share between threads; a forked child may use it too.

    Every method that has to reach the store raises `StoreUnavailable` when it cannot within the time allowed. `url` is
    where it lives; its password is never shown. A context manager: one that is dropped unclosed warns.
    """

    is_local = False  # whether a transaction that fails has changed nothing
    is_near = False  # whether one can be begun at once, in the thread of a call

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = False
        self.link: Any = None  # how the calls of this process reach it: see `stores.link`
        self.users: weakref.WeakSet[Any] | None = None  # of one that the toolkit has opened: see `stores.opening`
        _stores.add(self)

    # -- data ------------------------------------------------------------------------------------------------------

    def transact(self, key: str, change: Change, *, within: float = PATIENCE) -> Any:
        """Changes what is under `key`, all at once or not at all, and gives the answer of `change`.

        `change(old, now)` is a pure function of the data there (None: nothing) and of the store's time in seconds. It
        gives the data to put there (None: delete the key) and an answer. It may run several times; the last one counts.
        Raises `StoreUnavailable` when that takes longer than `within` seconds: then the change was made or not.
        """
        raise NotImplementedError

    def begin(self, key: str, change: Change, *, within: float) -> Any:
        """`transact` for a thread that has no time to connect, nor to wait any longer than that.

        Raises `NotMade` where nothing was changed, `Unanswered` where the answer takes longer: both `StoreUnavailable`.
        """
        return self.transact(key, change, within=within)

    def read(self, key: str, *, within: float = PATIENCE) -> Any:
        """The data under `key`, None for nothing."""
        raise NotImplementedError

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix` and hold data, sorted."""
        raise NotImplementedError

    def now(self) -> float:
        """The store's time in seconds, the same for all who use it; it never follows the wall clock of a client."""
        raise NotImplementedError

    def guess_now(self) -> float | None:
        """The store's time as far as it is known without asking, None before the first answer. Never waits."""
        raise NotImplementedError

    def forget(self) -> None:
        """Takes nothing for known any more: the store may be another one than it was."""

    # -- news ------------------------------------------------------------------------------------------------------

    def subscribe(self, prefix: str, callback: Listener) -> Callable[[], None]:
        """Calls `callback(key, data)` after each change of a key that begins with `prefix`, by whatever process.

        `data` is None after a deletion. For each key the calls come in the order of the changes and end with the
        latest; those in between may be left out. After an interruption whatever has changed meanwhile is told. The
        callback runs on a thread of the store's: it must be short. Gives what ends the subscription.
        """
        raise NotImplementedError

    # -- life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends subscriptions and connections; later use raises `StoreUnavailable`. Idempotent.

        Breakers and limiters on it go on by what they know themselves.
        """
        if not self.closed:
            if self.link is not None:
                self.link.flush(LAST_WORDS)
            self._end()

    def _end(self) -> None:
        """Lets go of everything; also when nobody has closed the store, and then maybe in the middle of other work."""
        self.closed = True
        if self.link is not None:
            self.link.stop()

    def _is_open(self) -> bool:
        """Whether it holds what ought to be closed."""
        return False

    def before_fork(self) -> None:
        """Lets go of what a forked child must not inherit."""

    def after_fork(self, in_child: bool) -> None:
        """Takes up work again; in the child with fresh locks, connections and threads."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "closed", True) or sys.is_finalizing():
            return
        try:
            if self._is_open() and self.users is None:
                warnings.warn(f"unclosed {self!r}: use `with` or close()", ResourceWarning, stacklevel=2, source=self)
        finally:
            self._end()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {redacted(self.url)}{' closed' if self.closed else ''}>"


class Subscriptions:
    """Who wants to hear of which keys. Calling them never raises, and happens outside of every lock of ours."""

    __slots__ = ("__weakref__", "_entries")

    def __init__(self) -> None:
        self._entries: tuple[tuple[str, Listener], ...] = ()

    def add(self, prefix: str, callback: Listener) -> Callable[[], None]:
        """Registers one; gives what removes it."""
        entry = (prefix, callback)
        self._entries = (*self._entries, entry)

        def detach() -> None:
            self._entries = tuple(other for other in self._entries if other is not entry)

        return detach

    def clear(self) -> None:
        """Removes all."""
        self._entries = ()

    def tell(self, key: str, data: Any) -> None:
        """Tells one change to all whom it concerns."""
        for prefix, callback in self._entries:
            if key.startswith(prefix):
                try:
                    callback(key, data)
                except Exception:
                    logger("store").warning("listener %r failed", callback, exc_info=True)


def check_key(key: str) -> str:
    """The key itself; raises `ConfigError` for one that not every store can hold."""
    fine = isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and "\0" not in key
    require(fine, "key", key, f"expected a text of 1 to {LONGEST_KEY} characters without NUL")
    return key


_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def to_text(data: Any) -> str | None:
    """The data as compact JSON, None for None. Raises `TypeError` or `ValueError` for what is no plain data."""
    return None if data is None else _compact(data)


def from_text(text: str | None) -> Any:
    """The data of a text, None for None; None for garbage as well, which the next change then replaces."""
    if text is None:
        return None
    try:
        return _decode(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def redacted(url: str) -> str:
    """The URL without its password."""
    if "@" not in url:
        return url
    import re

    return re.sub(r"(\w+://[^\s:/@]*):[^\s/]*@", r"\1:***@", url)


def time_left(end: float) -> float:
    """Seconds until `end`; raises `StoreUnavailable` when none are left."""
    left = end - SYSTEM.monotonic()
    if left <= 0:
        raise StoreUnavailable("the store did not answer in time")
    return left


def _before_fork() -> None:
    for store in living(_stores):
        store.before_fork()


def _after_in_parent() -> None:
    for store in living(_stores):
        store.after_fork(False)


def _after_in_child() -> None:
    for store in living(_stores):
        store.after_fork(True)


held_across_forks(STORES, _before_fork, _after_in_parent, _after_in_child)
