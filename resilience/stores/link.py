"""A store as calls see it: one that may be away, slow or empty at any time, and never makes a call wait for that.

A call makes its change itself, or has it made where it would have to connect first, and waits `PATIENCE` seconds for
that. Once one takes longer, calls only hand their changes in, and a clerk (one thread a store) makes them in order.
Once the store is found to be away they are told so at once; the clerk tries to reach it once a second, and lets
everybody bring it up to date when it is back.
"""

from __future__ import annotations

import os
import threading
import weakref

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from ..core.forks import living
from .clerk import EPOCH, Clerk, same_epoch
from .line import AWAY, READY, SLOW, Line
from .port import NotMade, redacted
from .swap import Unanswered
from .task import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol

    from ..core.events import EventStream
    from .port import Change, Store

    class Member(Protocol):
        """Whoever keeps something in the store and has to hear how it is."""

        prefix: str

        def told(self, key: str, data: Any) -> None:
            """A key under `prefix` has changed."""

        def store_back(self, emptied: bool) -> None:
            """The store can be reached: for the first time, again, or (`emptied`) as another one. On the clerk."""

        def store_lost(self) -> None:
            """What was handed in is not made. On the clerk."""

        def settle(self) -> None:
            """A look has found the store there, as it was. On the clerk."""

        def keep(self) -> None:
            """A second has passed while the store is there, or less if somebody asked for it. On the clerk."""

        def streams(self) -> set[EventStream]:
            """Who is to hear of losing it."""


PATIENCE = 0.05  # seconds a call waits for the store, once
SLOW_FOR_LONG = 5.0  # seconds after which a store that is slow all the time is not waited for


class HandedIn(StoreUnavailable):
    """The store has not answered in time; the change will be made when it does."""


class Link(Line):
    """The way of one process to a store. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.members: dict[str, Member] = {}
        self.patience = PATIENCE
        self.clerk = Clerk(self)
        self._fresh()

    # -- for calls ---------------------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """Lets `member` hear of its keys and of the store from now on."""
        self.members[member.prefix] = member
        self._wanted.set()
        self.start()

    def transact(self, key: str, change: Change, late: Callable[[Any], object], *, can_wait: bool = True) -> Any:
        """The answer of the store; raises `StoreUnavailable` when there is none within `PATIENCE`, at once when known.

        The change is made all the same once the store answers, and `late(answer)` is called then, on another thread;
        not when it is found to be away. One that cannot wait is dropped where it has not begun.
        """
        if self.store.closed:
            raise StoreUnavailable(f"{redacted(self.store.url)} is closed")
        if self.state is READY and self.store.is_near:
            try:
                return self.store.begin(key, change, within=self.patience)
            except Exception as error:
                self._leave(Task(key, change, late, can_wait), error)
        if self.state is AWAY or (self.state is SLOW and not can_wait):
            raise StoreUnavailable(f"{redacted(self.store.url)} does not answer")
        task = Task(key, change, late, can_wait)
        if self.state is SLOW:
            task.is_late = True
            self._hand_in(task)
            raise HandedIn(f"{redacted(self.store.url)} is slow")
        self._hand_in(task)
        return self._await(task)

    def later(self, key: str, change: Change, late: Callable[[Any], object] | None = None) -> Task | None:
        """Makes a change some time soon, if the store is there; `late(answer)` is called then, on another thread."""
        if self.state is AWAY or self.store.closed:
            return None
        task = Task(key, change, late or _nothing)
        task.is_late = True
        self._hand_in(task)
        return task

    def remind(self, seconds: float) -> None:
        """Lets the members keep what they have to (`Member.keep`) in so many seconds, rather than once a second."""
        at = SYSTEM.monotonic() + seconds
        if at < self.clerk.keep_at:
            self.clerk.keep_at = at
            self._wanted.set()

    def _leave(self, task: Task, error: Exception) -> NoReturn:
        """Leaves to the clerk what a call could not make itself: not twice what may have been made."""
        if isinstance(error, Unanswered):
            task.question = error
        elif not task.can_wait or not (self.store.is_local or isinstance(error, NotMade)):
            self._hand_in(Task(EPOCH, same_epoch, _nothing), SLOW)
            raise StoreUnavailable(f"{redacted(self.store.url)}: {error}") from error
        self._hand_in(task, SLOW)
        raise HandedIn(f"{redacted(self.store.url)}: {error}") from error

    def _await(self, task: Task) -> Any:
        if not task.done.wait(self.patience) and self._gives_up_on(task):
            kind = HandedIn if task.can_wait else StoreUnavailable
            raise kind(f"{redacted(self.store.url)} did not answer within {self.patience * 1000:.0f} ms")
        if task.error is not None:
            raise task.error
        return task.answer

    def is_expected(self) -> bool:
        """Whether an answer that is not there yet may still come: the store is not away, nor slow for long."""
        if self.store.closed:
            return False
        return self.state is READY or (self.state is SLOW and SYSTEM.monotonic() - self._since < SLOW_FOR_LONG)

    def start(self) -> None:
        """Sees to it that the clerk is there."""
        with self._changed:
            if self._thread is not None and self._thread.is_alive():
                return
            order = (weakref.ref(self), self._wanted)
            thread = threading.Thread(target=_work, args=order, name="resilience-clerk", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread to be had, or the interpreter ends: the next one tries again
                return
            self._thread = thread
        _flush_at_exit()

    def stop(self) -> None:
        """Sends the clerk home: the store is closed."""
        self._wanted.set()


def _nothing(answer: Any) -> None:
    """Nobody waits for the answer."""


def _work(link_of: weakref.ref[Link], wanted: threading.Event) -> None:
    """The clerk. While it waits it holds on to nothing, so that a store that nobody uses any more can go."""
    me = threading.current_thread()
    while (link := link_of()) is not None and link._thread in (me, None):
        wanted.clear()
        pause = link.clerk.step()
        del link
        if pause is None:
            return
        if pause > 0:
            SYSTEM.sleep(pause, wanted)


_links: weakref.WeakSet[Link] = weakref.WeakSet()
_making = threading.Lock()


def link_to(store: Store) -> Link:
    """The one link of this process to the store."""
    if store.link is None:
        with _making:
            if store.link is None:
                store.link = Link(store)
                _links.add(store.link)
    link: Link = store.link
    return link


_exit_registered = False


def _flush_at_exit() -> None:
    global _exit_registered  # one registration a process, made with the first clerk
    if not _exit_registered:
        import atexit

        _exit_registered = True
        atexit.register(_flush)


def _flush() -> None:
    for link in living(_links):
        link.flush(0.3)


def _after_fork() -> None:
    global _making  # a lock that another thread of the parent held is nobody's in the child
    _making = threading.Lock()
    for link in living(_links):
        for leave in link.clerk.joined.values():  # what listened is not there any more; the clerk subscribes again
            leave()
        link._fresh()
        link.clerk.fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
