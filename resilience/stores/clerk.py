"""The clerk of a store: makes what calls have handed in, and looks whether the store is there, and still the same one.

When it is back, everybody who keeps something there is asked to bring it up to date; once a second, to renew it.
"""

from __future__ import annotations

import uuid

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from ..core.logs import logger
from .line import AWAY, LOOK_EVERY
from .port import Contended, redacted
from .task import in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .link import Link
    from .port import Change
    from .task import Task

GIVE_UP = 1.0  # seconds after which a store that does not answer is away
STOPPED = 0.25  # seconds beyond its time after which it was not the store that took so long
EPOCH = "resilience/epoch"  # names this filling of the store


class Clerk:
    """Serves the line of one link, on the link's one thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.epoch: str | None = None  # of the store when it was there last
        self.fresh()

    def fresh(self) -> None:
        """Nobody listens: at the start, and in the child of a fork."""
        self.joined: dict[str, Callable[[], None]] = {}  # prefix -> what ends the subscription
        self.keep_at = float("-inf")  # when the members are to keep what they have to

    def step(self) -> float | None:
        """One piece of work; the seconds until the next unless it is wanted before, None for no more."""
        link = self._link
        if link.store.closed:
            self._lose(StoreUnavailable(f"{redacted(link.store.url)} is closed"), quietly=True)
            return None
        self._keep()
        tasks = link.take()
        if not tasks:
            is_new = link.state is not AWAY and len(self.joined) < len(link.members)
            due = link.look_at if link.state is AWAY or not link.members else min(link.look_at, self.keep_at)
            if not is_new and (pause := due - SYSTEM.monotonic()) > 0:
                return pause
            if is_new or SYSTEM.monotonic() >= link.look_at:
                self._look()
        elif tasks[0].is_late and not tasks[0].can_wait and tasks[0].question is None:
            tasks[0].error = StoreUnavailable()
            self._done(tasks)
        else:
            self._perform(tasks)
        return 0.0

    def _keep(self) -> None:
        now = SYSTEM.monotonic()
        if self._link.state is not AWAY and now >= self.keep_at:
            self.keep_at = now + LOOK_EVERY
            for member in list(self._link.members.values()):
                member.keep()

    def _perform(self, tasks: list[Task]) -> None:
        """Makes changes of one key in one step."""
        try:
            if (question := tasks[0].question) is not None:
                tasks[0].answer = question.go_on(max(GIVE_UP, self._link.patience))
            else:
                for task, answer in zip(tasks, self._ask(tasks[0].key, in_order(tasks)), strict=True):
                    task.answer = answer
        except Contended:  # the store is there; so are many others
            self._link.put_back(tasks)
            return
        except Exception as error:
            for task in tasks:
                task.error = StoreUnavailable(f"{redacted(self._link.store.url)}: {error}")
            self._lose(error)
        self._done(tasks)

    def _ask(self, key: str, change: Change) -> Any:
        """The answer of the store; a process that was stopped meanwhile asks once more: it was not the store's time."""
        store = self._link.store
        within = max(GIVE_UP, self._link.patience)
        began = SYSTEM.monotonic()
        try:
            return store.transact(key, change, within=within)
        except StoreUnavailable:
            if SYSTEM.monotonic() - began < within + STOPPED:
                raise
            return store.transact(key, change, within=within)

    def _done(self, tasks: list[Task]) -> None:
        for task in self._link.finish(tasks):
            task.late(task.answer)

    def _look(self) -> None:
        """Looks whether the store is there, and the same as before; brings it up to date if it was not."""
        link = self._link
        was_away = link.state is AWAY
        began = SYSTEM.monotonic()
        try:
            epoch = self._ask(EPOCH, _written_epoch if was_away else same_epoch)
            took = SYSTEM.monotonic() - began
            has_news = was_away or epoch != self.epoch
            for prefix, member in list(link.members.items()):
                if prefix not in self.joined:
                    self.joined[prefix] = link.store.subscribe(prefix, member.told)
                    has_news = True
            if has_news:
                link.store.forget()
                if was_away:
                    link.restore()
                is_other = self.epoch is not None and epoch != self.epoch
                for member in list(link.members.values()):
                    member.store_back(is_other)
            for member in list(link.members.values()):
                member.settle()
            self.epoch = epoch
            link.note_look(took < link.patience / 2)
        except Exception as error:
            self._lose(error, quietly=was_away)
            return
        if was_away:
            self._tell("store_restored", "is back")

    def _lose(self, error: Exception, quietly: bool = False) -> None:
        was_away = self._link.drop(error)
        for member in list(self._link.members.values()):
            member.store_lost()
        if not (was_away or quietly or self._link.store.closed):
            self._tell("store_lost", f"is away, local state decides until it is back: {error}")

    def _tell(self, kind: str, what: str) -> None:
        where = redacted(self._link.store.url)
        try:
            logger("store").warning("store %s %s", where, what)
        except Exception:
            pass
        for stream in {stream for member in self._link.members.values() for stream in member.streams()}:
            stream.emit(kind, where, reason=what)


def _written_epoch(old: Any, now: float) -> tuple[Any, Any]:
    """The same, but written: a store that can only be read is not back."""
    epoch, name = same_epoch(old, now)
    return {**epoch, "at": now}, name


def same_epoch(old: Any, now: float) -> tuple[Any, Any]:
    """The name of what the store is filled with; one that is empty gets a name."""
    known = old.get("id") if isinstance(old, dict) else None
    if isinstance(known, str):
        return old, known
    new = uuid.uuid4().hex
    return {"version": 1, "id": new}, new
