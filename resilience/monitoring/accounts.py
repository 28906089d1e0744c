"""What a manager leaves in its store for `resilience report`: an account of its calls, errors and alerts.

Each manager has a key of its own, written every 1.5 s and at the end by a thread of its own: no call waits for it, and
one whose process was killed is true to 1.5 s. Counts and histograms add up, so the accounts of many processes do too.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
import weakref

from ..core.clock import SYSTEM
from ..core.forks import living
from ..core.logs import logger
from .operations import COUNTERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..stores.port import Store

PREFIX = "account/"
EVERY = 1.5  # seconds between two writings; at most 2 are promised
WITHIN = 1.0  # seconds that a store may take for one
KEPT = 500  # accounts in a store; older ones make room
KEPT_FOR = 7 * 86400.0  # seconds since the start of their process
MOST_ALERTS = 100
VERSION = 2

_numbers = itertools.count(1)


class AccountWriter:
    """Writes the account of one manager until `close()`, or until the manager is gone. Restarts in a forked child."""

    def __init__(self, store: Store, manager: Any) -> None:
        self._store = store
        self._manager = weakref.ref(manager)
        self._before: dict[str, Any] | None = None  # what the parent of this process tells of itself
        self._fresh()
        _all.add(self)

    def _fresh(self) -> None:
        self._began = SYSTEM.time()
        host = socket.gethostname()
        self.key = f"{PREFIX}{int(self._began):011d}-{host[:100]}-{os.getpid()}-{next(_numbers)}"
        self._alerts: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._end = threading.Event()
        self._writing = threading.Lock()
        self._is_final = False
        thread = threading.Thread(target=self._write, args=(self._end,), name="resilience-account", daemon=True)
        self._thread: threading.Thread | None = thread
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had: the last word is written all the same
            logger("account").warning("no account of this process until its end: %s", error)

    def _write(self, end: threading.Event) -> None:
        if end.wait(0.1):  # a manager that is just being set up has nothing to tell
            return
        self._make_room()
        while (manager := self._manager()) is not None:
            self.write(manager)
            del manager
            if end.wait(EVERY):
                return

    def write(self, manager: Any, *, ended: bool = False) -> bool:
        """Writes the account as it is now; False where the store is away. It never raises."""
        from ..core.errors import StoreUnavailable

        try:
            with self._writing:  # so that the last one stays the last
                if self._is_final:
                    return True
                own = account_of(manager) if self._before is None else _since(self._before, account_of(manager))
                account = {**self._head(ended), **own, "alerts": self._alerts_so_far(manager)}
                self._store.transact(self.key, lambda _, now: (account, None), within=WITHIN)
                self._is_final = ended
        except StoreUnavailable:  # the store itself warns of that
            return False
        except Exception:
            logger("account").warning("the account could not be written", exc_info=True)
            return False
        return True

    def _head(self, ended: bool) -> dict[str, Any]:
        return {
            "version": VERSION,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "program": os.path.basename(sys.argv[0] if sys.argv else "") or "python",  # arguments may hold secrets
            "began": self._began,
            "written": SYSTEM.time(),
            "ended": ended,
        }

    def _alerts_so_far(self, manager: Any) -> list[dict[str, Any]]:
        """The alerts that fire and those that have: each once, `firing` or not."""
        now_firing = manager.alerts.evaluate()
        for alert in self._alerts.values():
            alert["firing"] = False
        for alert in now_firing:
            subject = alert.get("operation") or alert.get("resource")
            self._alerts[alert["rule"], subject, alert["since"]] = {**alert, "firing": True}
        for key in list(self._alerts)[:-MOST_ALERTS]:
            del self._alerts[key]
        return list(self._alerts.values())

    def _make_room(self) -> None:
        """Removes the oldest accounts, so that a job started each minute does not fill the store."""
        try:
            keys = self._store.keys(PREFIX)
            oldest = f"{PREFIX}{int(max(0.0, self._began - KEPT_FOR)):011d}"
            for key in keys[:-KEPT] + [key for key in keys[-KEPT:] if key < oldest]:
                self._store.transact(key, lambda _, now: (None, None), within=WITHIN)
        except Exception:  # a store that is away: the next process makes room
            pass

    def close(self) -> None:
        """Writes for the last time, within a second or so; a second call changes nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._end.set()
        manager = self._manager()
        if manager is not None:
            last = threading.Thread(target=self.write, args=(manager,), kwargs={"ended": True}, daemon=True)
            try:
                last.start()
            except RuntimeError:  # the interpreter is ending, or has no thread to give
                self.write(manager, ended=True)
                return
            last.join(WITHIN + 0.5)


def account_of(manager: Any) -> dict[str, Any]:
    """What a manager's calls came to, as plain data that adds up with that of others."""
    operations = manager.monitor.operations()
    for name, figures in operations.items():
        counts = manager.monitor.stats_of(name).durations.counts.copy()
        figures["durations"] = {repr(seconds): count for seconds, count in counts.items()}
    return {
        "operations": operations,
        "errors": manager.errors.to_json(),
        "breakers": {name: str(breaker.state) for name, breaker in list(manager._breakers.items())},
    }


def _since(before: dict[str, Any], account: dict[str, Any]) -> dict[str, Any]:
    """The account without what was counted before."""
    for name, past in before["operations"].items():
        figures = account["operations"][name]
        for counter in ("calls", "successes", *COUNTERS):
            figures[counter] -= past[counter]
        durations = {key: count - past["durations"].get(key, 0) for key, count in figures["durations"].items()}
        figures["durations"] = {key: count for key, count in durations.items() if count}
    errors = account["errors"]
    counted = {_group_of(group): group["count"] for group in before["errors"]["groups"]}
    for group in errors["groups"]:
        group["count"] -= counted.get(_group_of(group), 0)
    errors["groups"] = [group for group in errors["groups"] if group["count"]]
    errors["errors"] -= before["errors"]["errors"]
    errors["total"] -= before["errors"]["total"]
    return account


def _group_of(group: dict[str, Any]) -> tuple[str, ...]:
    return tuple(group[part] for part in ("category", "type", "message", "where"))


def counts_of(account: dict[str, Any], name: str) -> dict[float, int]:
    """The counts of the durations of one operation; those of an older version say something else and are left out."""
    durations = account["operations"][name].get("durations", {}) if account.get("version") == VERSION else {}
    return {float(seconds): int(count) for seconds, count in durations.items()}


_all: weakref.WeakSet[AccountWriter] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in living(_all):
        if writer._thread is not None:
            manager = writer._manager()
            writer._before = None if manager is None else account_of(manager)
            writer._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
