"""The part of a breaker that lives in a store: asked when a probe starts or a result counts, told of what others did.

A healthy call never comes here. Whatever the store does not answer in time is decided by the local state, which goes
on as the state of a breaker of this process alone and is brought back once the store answers again.
"""

from __future__ import annotations

from ..core.errors import StoreUnavailable
from ..rules import breaker as rules
from ..rules import breaker_doc as document
from ..rules.breaker_state import FORCED_OPEN, HALF_OPEN, OPEN, BreakerState, CircuitState
from ..stores.line import SLOW
from ..stores.link import HandedIn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .breaker_books import Books
    from .breaker_core import Core, News
    from .breaker_fleet import Fleet

    Order = tuple[CircuitState, str, float | None]  # until: in local time


class Outcome:
    """What came of one change in the store: its answer, the state and the document after it, and what has changed."""

    __slots__ = ("answer", "before", "doc", "has_changed", "now", "state")

    def __init__(
        self, answer: Any, before: CircuitState, has_changed: bool, state: BreakerState, doc: Any, now: float
    ) -> None:
        self.answer = answer
        self.before = before
        self.has_changed = has_changed
        self.state = state
        self.doc = doc
        self.now = now


class SharedBreaker:
    """What a breaker knows about its document. Its fields are guarded by the lock of the books."""

    __slots__ = ("fleet", "is_attached", "key", "known", "opened", "order", "revision", "untold")

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        self.key = fleet.prefix + name
        self.is_attached = False
        self.revision = 0  # of the document taken over last
        self.known = 0  # failures in a row in it
        self.opened = False  # the breaker has opened here since, without the store
        self.order: Order | None = None  # given here since, without the store
        self.untold: News | None = None  # of a change here that is on its way to the store

    # -- what calls ask ----------------------------------------------------------------------------------------------

    def attach(self, breaker: Core, books: Books) -> None:
        """Takes over what the store says, before the first call: a new process finds a breaker open that is open."""
        self.is_attached = True
        self.fleet.add(self.key, breaker)
        outcome = self._decide(breaker, lambda state, now: rules.LATE)
        if outcome is not None and outcome.doc is None:
            self.fleet.link.later(self.key, lambda old, now: (old or self._first(breaker, now), None))
        with books.lock:
            breaker._publish_held(books)

    def _first(self, breaker: Core, now: float) -> dict[str, Any]:
        state = document.read(None, breaker.config, now)
        return document.write(state, None, now, threshold=breaker.config.failure_threshold)

    def admit(self, breaker: Core, books: Books) -> tuple[int | None, int, News | None] | None:
        """Place, generation and news of a call that would be a probe; None where the local state is all it takes."""
        if not self.is_attached:
            self.attach(breaker, books)
        state, now = books.state, breaker.clock.monotonic()
        with books.lock:
            may_probe = state.mode is HALF_OPEN or (
                state.mode in (OPEN, FORCED_OPEN) and state.until is not None and now >= state.until
            )
            may_probe = may_probe and rules.retry_after(state, breaker.config, now) == 0.0
            if not may_probe:
                is_closed = state.mode not in (HALF_OPEN, OPEN, FORCED_OPEN)
                return None if is_closed else (None, state.generation, None)
        outcome = self._decide(
            breaker, lambda state, now: rules.admit(state, breaker.config, now), unused=self._free_place
        )
        if outcome is None:  # rather one call refused than one probe too many, while the store is there
            return (None, state.generation, None) if self.fleet.link.is_expected() else None
        return outcome.answer, outcome.doc["generation"], self._news(breaker, books, outcome)

    def _free_place(self, breaker: Core, outcome: Outcome) -> None:
        """Gives back the place of a probe that came too late for its call."""
        place, generation = outcome.answer, outcome.doc["generation"]
        if isinstance(place, int) and place > rules.FREE:
            self._decide(breaker, lambda state, now: rules.give_back(state, now, generation, place))

    def succeed(
        self, breaker: Core, books: Books, generation: int, place: int, slow: bool
    ) -> tuple[str, News | None] | None:
        """Answer and news of a success that the store has to hear of; None for every other one."""
        state = books.state
        counts = place if state.mode is HALF_OPEN else self.known or state.failures
        if generation != state.generation or not counts or (breaker.config.window is not None and place == rules.FREE):
            return None
        return self._answer(
            breaker, books, lambda state, now: rules.succeed(state, breaker.config, now, generation, place, slow, 0)
        )

    def fail(
        self, breaker: Core, books: Books, generation: int, place: int, slow: bool, last_error: str
    ) -> tuple[str, News | None] | None:
        """Answer and news of a failure that the store has to hear of; None where a window of this process decides."""
        state = books.state
        if generation != state.generation or (breaker.config.window is not None and state.mode is not HALF_OPEN):
            return None
        return self._answer(
            breaker, books,
            lambda state, now: rules.fail(state, breaker.config, now, generation, place, slow, 0), last_error,
        )  # fmt: skip

    def give_back(self, breaker: Core, books: Books, generation: int, place: int) -> None:
        """Frees the place of a probe for all processes."""
        if books.state.mode is HALF_OPEN and place > rules.FREE:
            self._decide(breaker, lambda state, now: rules.give_back(state, now, generation, place))

    def confirm(
        self, breaker: Core, books: Books, generation: int, news: News, last_error: str | None
    ) -> News | None:  # fmt: skip
        """Shares a change that was decided here; the news of it, if nobody was faster and none are on their way."""
        self.untold = news  # told when the store has answered, or is found to be away
        if news[1] is OPEN:
            told = self._answer(
                breaker, books, lambda state, now: rules.trip(state, breaker.config, now, generation, news[3]),
                last_error,
            )  # fmt: skip
            if told is not None:
                self.untold = None
                return told[1]
        if self.untold is None or self.fleet.link.state is SLOW:
            return None
        self.untold = None
        return news

    def obey(
        self, breaker: Core, books: Books, mode: CircuitState, reason: str, until: float | None
    ) -> tuple[str, News | None] | None:
        """Gives an order to all processes."""
        if not self.is_attached:
            self.attach(breaker, books)
        left = None if until is None else until - breaker.clock.monotonic()
        given = self.order = mode, reason, until

        def made() -> None:
            if self.order is given:
                self.order = None

        told = self._answer(
            breaker, books, lambda state, now: _order(state, breaker, mode, reason, left, now), made=made
        )
        if told is not None:
            made()
        return told

    def _answer(
        self, breaker: Core, books: Books, rule: Callable[[BreakerState, float], str],
        last_error: str | None = None, made: Callable[[], object] | None = None,
    ) -> tuple[str, News | None] | None:  # fmt: skip
        outcome = self._decide(breaker, rule, last_error, made=made)
        return None if outcome is None else (outcome.answer, self._news(breaker, books, outcome))

    def _decide(
        self, breaker: Core, rule: Callable[[BreakerState, float], Any], last_error: str | None = None,
        unused: Callable[[Core, Outcome], None] | None = None, made: Callable[[], object] | None = None,
    ) -> Outcome | None:  # fmt: skip
        """Applies a rule to the document and takes over what it says then; None when the store does not answer.

        A rule is applied all the same when the store answers later, `made()` is called and the news are told then; with
        `unused` only if it had begun to, and that is called with what came of it.
        """

        def change(old: Any, now: float) -> tuple[Any, Outcome | None]:
            if document.is_foreign(old):
                return old, None
            state = document.state_of(old) or self._local(breaker, now)
            before, generation = state.mode, state.generation
            answer = rule(state, now)
            has_changed = state.generation != generation
            if (answer is None or answer is rules.LATE) and not has_changed:
                return old, Outcome(answer, before, False, state, old, now)
            more: dict[str, Any] = {} if last_error is None else {"last_error": last_error, "last_at": now}
            doc = document.write(state, old, now, threshold=breaker.config.failure_threshold, **more)
            return doc, Outcome(answer, before, has_changed, state, doc, now)

        def late(outcome: Outcome | None) -> None:
            if made is not None:
                made()
            if outcome is None or (books := breaker._books) is None:
                return
            self.take_over(breaker, outcome.doc, outcome.now, outcome.state)
            self.untold = None
            if (news := self._news(breaker, books, outcome)) is not None:
                breaker._tell(*news)
            if unused is not None:
                unused(breaker, outcome)

        try:
            outcome: Outcome | None = self.fleet.link.transact(self.key, change, late, can_wait=unused is None)
        except HandedIn:
            return None
        except StoreUnavailable:
            self.fleet.unsettled.add(breaker)
            return None
        if outcome is not None:
            self.take_over(breaker, outcome.doc, outcome.now, outcome.state)
        return outcome

    def _local(self, breaker: Core, now: float) -> BreakerState:
        """What is known here, in the store's time: for a document that is lost, so that the store gets it again.

        Read without the lock, since the store is held; whatever changes meanwhile is written later.
        """
        books = breaker._books
        assert books is not None
        silent, local_now = breaker.successes, breaker.clock.monotonic()
        while True:
            try:
                return document.put_back(books.state, breaker.config, local_now, now, silent)
            except RuntimeError:  # a probe came or went
                continue

    def _news(self, breaker: Core, books: Books, outcome: Outcome) -> News | None:
        if not outcome.has_changed and outcome.answer is not rules.SUPPRESSED:
            return None
        doc = outcome.doc
        mode = CircuitState(doc["mode"])
        if mode is outcome.before and outcome.answer is not rules.SUPPRESSED:
            return None
        if outcome.has_changed:
            self.fleet.note(breaker.name, outcome.before, mode, doc["reason"], doc.get("last_error"))
        return outcome.before, mode, doc["generation"], doc["reason"], books.last_error() or doc.get("last_error")

    # -- what the store tells ----------------------------------------------------------------------------------------

    def take_over(
        self, breaker: Core, doc: Any, store_now: float | None = None, state: BreakerState | None = None,
        force: bool = False,
    ) -> None:  # fmt: skip
        """Makes the local state what the document (of `state`) says, unless a later one was taken over already."""
        books = breaker._books
        if books is None or not isinstance(doc, dict) or document.is_foreign(doc):
            return
        guess = self.fleet.link.store.guess_now()
        store_now = guess if guess is not None else store_now
        if store_now is None:
            return
        revision = document.revision_of(doc)
        now = breaker.clock.monotonic()
        with books.lock:
            if revision <= self.revision and not force:
                return
            state = state or document.read(doc, breaker.config, store_now)
            document.take_over(books.state, state, breaker.config, now, store_now, breaker.successes)
            self.revision = revision
            self.known = books.state.failures
            self.opened = False
            breaker._publish_held(books)

    def told(self, breaker: Core, doc: Any) -> None:
        """Somebody has changed the document. An opening of this process that is not in it yet is brought in first."""
        if not self.opened and self.order is None:
            self.take_over(breaker, doc)

    def bring_back(self, breaker: Core, emptied: bool) -> None:
        """Lets the store know what happened while it was away or lost; on the clerk. Raises `StoreUnavailable`."""
        books = breaker._books
        if books is None or not self.is_attached:
            return
        config = breaker.config
        with books.lock:
            local = BreakerState.from_plain({**books.state.to_plain(), "window": None})
            silent, opened, order = breaker.successes, self.opened, self.order
            known = self.known + self.fleet.link.waiting_for(self.key)  # those will be counted by and by
        local_now = breaker.clock.monotonic()

        def change(old: Any, now: float) -> tuple[Any, Any]:
            if document.is_foreign(old):
                return old, (None, now)
            state = document.state_of(old)
            is_lost = state is None
            if state is None:
                state = document.put_back(local, config, local_now, now, silent)
            changed = is_lost or document.merge(state, local, config, local_now, now, silent, known, opened)
            if order is not None:
                mode, reason, until = order
                _order(state, breaker, mode, reason, None if until is None else until - local_now, now)
            if not changed and order is None:
                return old, (old, now)
            more = {} if (last := books.last_error()) is None else {"last_error": last}
            doc = document.write(state, old, now, threshold=config.failure_threshold, **more)
            return doc, (doc, now)

        doc, now = self.fleet.link.store.transact(self.key, change, within=1.0)
        with books.lock:
            if self.order is order:
                self.order = None
        self.take_over(breaker, doc, now, force=emptied or opened)

    def tell(self, breaker: Core) -> None:
        """Tells of a change here that will not reach the store: it is away."""
        news, self.untold = self.untold, None
        if news is not None:
            breaker._tell(*news)

    def is_pending(self, books: Books) -> bool:
        """Whether failures are known of, so that a success has to be told."""
        state = books.state
        return state.failures > 0 and state.window is None

    def detach(self, breaker: Core, books: Books) -> None:
        """Sends the next call to the store first: in a forked child, which has missed what happened since."""
        self.is_attached = False
        breaker.token = books.passing = 0
        breaker.refusal = None


def _order(state: BreakerState, breaker: Core, mode: CircuitState, reason: str, left: float | None, now: float) -> str:
    return rules.order(state, breaker.config, mode, now, reason, 0, None if left is None else now + left)
