"""A store as calls see it: one that may be away, slow or empty at any time, and never makes a call wait for that.

A call makes its change itself, or has it made where it would have to connect first, and waits `PATIENCE` seconds for
that. Once one takes longer, calls only hand their changes in, and a clerk (one thread a store) makes them in order.
Once the store is found to be away they are told so at once; the clerk tries to reach it once a second, and lets
everybody bring it up to date when it is back.
"""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections import deque

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from ..core.forks import living
from ..core.logs import logger
from .port import Contended, NotMade, redacted
from .swap import Unanswered
from .task import Task, in_order

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
GIVE_UP = 1.0  # seconds after which a store that does not answer is away
SLOW_FOR_LONG = 5.0  # seconds after which a store that is slow all the time is not waited for
LOOK_AGAIN = 0.25  # seconds until the next look at a slow one
LOOK_EVERY = 1.0  # seconds between two looks whether it is there, and between two tries to reach it
STOPPED = 0.25  # seconds beyond its time after which it was not the store that took so long
MOST_WAITING = 10_000  # changes handed in
MOST_AT_ONCE = 100  # changes of one key made in one step
EPOCH = "resilience/epoch"  # names this filling of the store
READY, SLOW, AWAY = "ready", "slow", "away"


class HandedIn(StoreUnavailable):
    """The store has not answered in time; the change will be made when it does."""


class Link:
    """The way of one process to a store. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.members: dict[str, Member] = {}
        self.patience = PATIENCE
        self._epoch: str | None = None
        self._fresh()

    def _fresh(self) -> None:
        self.state = READY
        self._since = SYSTEM.monotonic()
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._wanted = threading.Event()  # wakes the clerk
        self._thread: threading.Thread | None = None
        self._joined: dict[str, Callable[[], None]] = {}  # prefix -> what ends the subscription
        self._is_busy = False
        self._look_at = float("-inf")
        self._keep_at = float("-inf")

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

    def waiting_for(self, key: str) -> int:
        """How many changes of a key are handed in and not begun."""
        with self._changed:
            return sum(task.key == key for task in self._waiting)

    def remind(self, seconds: float) -> None:
        """Lets the members keep what they have to (`Member.keep`) in so many seconds, rather than once a second."""
        at = SYSTEM.monotonic() + seconds
        if at < self._keep_at:
            self._keep_at = at
            self._wanted.set()

    def flush(self, timeout: float) -> bool:
        """Waits until all changes handed in are made; True when they are."""
        end = SYSTEM.monotonic() + timeout
        with self._changed:
            while (self._waiting or self._is_busy) and self._thread is not None and self.state is not AWAY:
                left = end - SYSTEM.monotonic()
                if left <= 0:
                    return False
                SYSTEM.wait(self._changed, left)
        return True

    def _leave(self, task: Task, error: Exception) -> NoReturn:
        """Leaves to the clerk what a call could not make itself: not twice what may have been made."""
        if isinstance(error, Unanswered):
            task.question = error
        elif not task.can_wait or not (self.store.is_local or isinstance(error, NotMade)):
            self._hand_in(Task(EPOCH, _same_epoch, _nothing), SLOW)
            raise StoreUnavailable(f"{redacted(self.store.url)}: {error}") from error
        self._hand_in(task, SLOW)
        raise HandedIn(f"{redacted(self.store.url)}: {error}") from error

    def _await(self, task: Task) -> Any:
        if not task.done.wait(self.patience):
            with self._changed:
                if not task.done.is_set():
                    task.is_late = True
                    if self.state is READY:
                        self._set_held(SLOW)
                    kind = HandedIn if task.can_wait else StoreUnavailable
                    raise kind(f"{redacted(self.store.url)} did not answer within {self.patience * 1000:.0f} ms")
        if task.error is not None:
            raise task.error
        return task.answer

    def _hand_in(self, task: Task, state: str | None = None) -> None:
        with self._changed:
            if state is not None:
                task.is_late = True
                if self.state is READY:
                    self._set_held(state)
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(task)
        self._wanted.set()
        self.start()

    def _set_held(self, state: str) -> None:
        if state is not self.state:
            self.state = state
            self._since = self._look_at = SYSTEM.monotonic()

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

    # -- the clerk ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Sends the clerk home: the store is closed."""
        self._wanted.set()

    def step(self) -> float | None:
        """One piece of the clerk's work; the seconds until the next unless it is wanted before, None for no more."""
        if self.store.closed:
            self._lose(StoreUnavailable(f"{redacted(self.store.url)} is closed"), quietly=True)
            return None
        self._keep()
        tasks = self._next()
        if not tasks:
            is_new = self.state is not AWAY and len(self._joined) < len(self.members)
            due = self._look_at if self.state is AWAY or not self.members else min(self._look_at, self._keep_at)
            if not is_new and (pause := due - SYSTEM.monotonic()) > 0:
                return pause
            if is_new or SYSTEM.monotonic() >= self._look_at:
                self._look()
        elif tasks[0].is_late and not tasks[0].can_wait and tasks[0].question is None:
            tasks[0].error = StoreUnavailable()
            self._done(tasks)
        else:
            self._perform(tasks)
        return 0.0

    def _keep(self) -> None:
        now = SYSTEM.monotonic()
        if self.state is not AWAY and now >= self._keep_at:
            self._keep_at = now + LOOK_EVERY
            for member in list(self.members.values()):
                member.keep()

    def _next(self) -> list[Task]:
        """What is to be done next: the first change handed in, with those that follow for the same key; or nothing."""
        with self._changed:
            if self.state is AWAY or not self._waiting:
                return []
            self._is_busy = True
            tasks = [self._waiting.popleft()]
            while tasks[0].fits(self._waiting) and len(tasks) < MOST_AT_ONCE:
                tasks.append(self._waiting.popleft())
            return tasks

    def _perform(self, tasks: list[Task]) -> None:
        """Makes changes of one key in one step."""
        try:
            if (question := tasks[0].question) is not None:
                tasks[0].answer = question.go_on(max(GIVE_UP, self.patience))
            else:
                for task, answer in zip(tasks, self._ask(tasks[0].key, in_order(tasks)), strict=True):
                    task.answer = answer
        except Contended:  # the store is there; so are many others
            with self._changed:
                self._waiting.extendleft(reversed(tasks))
                self._is_busy = False
            return
        except Exception as error:
            for task in tasks:
                task.error = StoreUnavailable(f"{redacted(self.store.url)}: {error}")
            self._lose(error)
        self._done(tasks)

    def _ask(self, key: str, change: Change) -> Any:
        """The answer of the store; a process that was stopped meanwhile asks once more: it was not the store's time."""
        within = max(GIVE_UP, self.patience)
        began = SYSTEM.monotonic()
        try:
            return self.store.transact(key, change, within=within)
        except StoreUnavailable:
            if SYSTEM.monotonic() - began < within + STOPPED:
                raise
            return self.store.transact(key, change, within=within)

    def _note_speed(self, took: float) -> None:
        """After a quick answer calls may wait for the store again; while it is slow, look from time to time."""
        with self._changed:
            if self.state is SLOW and took < self.patience / 2:
                if self._waiting:
                    return  # look again when they are done
                self._set_held(READY)
            self._look_at = SYSTEM.monotonic() + (LOOK_AGAIN if self.state is SLOW else LOOK_EVERY)

    def _done(self, tasks: list[Task]) -> None:
        with self._changed:
            self._is_busy = False
            for task in tasks:
                task.done.set()
            late = [task for task in tasks if task.is_late and task.error is None]
            self._changed.notify_all()
        for task in late:
            task.late(task.answer)

    def _look(self) -> None:
        """Looks whether the store is there, and the same as before; brings it up to date if it was not."""
        was_away = self.state is AWAY
        began = SYSTEM.monotonic()
        try:
            epoch = self._ask(EPOCH, _written_epoch if was_away else _same_epoch)
            took = SYSTEM.monotonic() - began
            has_news = was_away or epoch != self._epoch
            for prefix, member in list(self.members.items()):
                if prefix not in self._joined:
                    self._joined[prefix] = self.store.subscribe(prefix, member.told)
                    has_news = True
            if has_news:
                self.store.forget()
                if was_away:
                    with self._changed:
                        self._set_held(SLOW)
                is_other = self._epoch is not None and epoch != self._epoch
                for member in list(self.members.values()):
                    member.store_back(is_other)
            for member in list(self.members.values()):
                member.settle()
            self._epoch = epoch
            self._note_speed(took)
        except Exception as error:
            self._lose(error, quietly=was_away)
            return
        if was_away:
            self._tell("store_restored", "is back")

    def _lose(self, error: Exception, quietly: bool = False) -> None:
        with self._changed:
            was_away = self.state is AWAY
            self._set_held(AWAY)
            self._look_at = SYSTEM.monotonic() + LOOK_EVERY
            dropped, self._waiting = list(self._waiting), deque()
            for task in dropped:
                task.error = StoreUnavailable(str(error))
                task.done.set()
            self._changed.notify_all()
        for member in list(self.members.values()):
            member.store_lost()
        if not (was_away or quietly or self.store.closed):
            self._tell("store_lost", f"is away, local state decides until it is back: {error}")

    def _tell(self, kind: str, what: str) -> None:
        where = redacted(self.store.url)
        try:
            logger("store").warning("store %s %s", where, what)
        except Exception:
            pass
        for stream in {stream for member in self.members.values() for stream in member.streams()}:
            stream.emit(kind, where, reason=what)


def _written_epoch(old: Any, now: float) -> tuple[Any, Any]:
    """The same, but written: a store that can only be read is not back."""
    epoch, name = _same_epoch(old, now)
    return {**epoch, "at": now}, name


def _nothing(answer: Any) -> None:
    """Nobody waits for the answer."""


def _same_epoch(old: Any, now: float) -> tuple[Any, Any]:
    known = old.get("id") if isinstance(old, dict) else None
    if isinstance(known, str):
        return old, known
    new = uuid.uuid4().hex
    return {"version": 1, "id": new}, new


def _work(link_of: weakref.ref[Link], wanted: threading.Event) -> None:
    """The clerk. While it waits it holds on to nothing, so that a store that nobody uses any more can go."""
    me = threading.current_thread()
    while (link := link_of()) is not None and link._thread in (me, None):
        wanted.clear()
        pause = link.step()
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
        for leave in link._joined.values():  # what listened is not there any more; the clerk subscribes again
            leave()
        link._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
