"""The slots of a bulkhead that several processes share: leased from a store, as many as are needed here.

A call takes a slot that is leased already, or leases one more (50 ms at most). What is not in use goes back at once
while slots are scarce, within some seconds else. The store's clerk renews the leases; those of a process that was
killed or stopped end by themselves. Of those who wait, each process has its turn.
"""

from __future__ import annotations

import os
import uuid
from functools import partial

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from ..rules import leases as rules
from ..stores.line import AWAY, READY
from .bulkhead_fleet import BULKHEADS, fleet_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..core.events import EventStream
    from ..stores.port import Change, Store
    from .bulkhead import Bulkhead

    Order = tuple[int, Change]

LEASE = 5.0  # seconds of the store's time
RENEW_EVERY = 0.9  # seconds; the clerk comes once a second
MARGIN = 0.5  # seconds before its end in which nobody starts on a lease
TURN = 0.05  # seconds a process that others wait behind may use a slot for one call after the other
STALE = 0.1  # seconds after which a bulkhead that was full is asked again, in case the news is late
ANSWER_BY = 3.0  # seconds after which an answer is not waited for any more


class SharedSlots:
    """The part of a bulkhead that lives in a store. Its fields are guarded by the lock of the bulkhead."""

    def __init__(self, store: Store, bulkhead: Bulkhead) -> None:
        self._bulkhead = bulkhead
        self._fleet = fleet_of(store)
        self._link = self._fleet.link
        self.key = BULKHEADS + bulkhead.name
        self.fresh()
        self._fleet.add(self)

    def fresh(self) -> None:
        """Nothing is leased: at the start, and in the child of a fork."""
        self._who = _new_name()
        self._turn = 0  # of the last change asked for
        self._is_joined = False  # the store has answered since it is there
        self._asked_at = float("-inf")  # an answer is waited for; -inf: none is
        self._learnt_at = float("-inf")
        self._got_at = float("-inf")
        self._wanted_at = float("-inf")  # a call found no slot here
        self._renewed_at = float("-inf")
        self._known = rules.Leases()  # as last heard
        self._entering = 0  # calls that ask for a slot
        self._peak = 0  # slots in use at once since the last look
        self._most = 0  # and before, less and less of it
        self._is_leaving = False  # the process ends
        self.held = 0
        self._until = float("-inf")  # in the store's time

    # -- what calls ask ----------------------------------------------------------------------------------------------

    def width_held(self, most: int) -> int:
        """How many calls may run here now: as many as slots are held; `most` while the store has said nothing yet."""
        link = self._link
        if link.state is AWAY or link.store.closed:
            self._is_joined = False
            return most
        if not self._is_joined:
            return most
        if (now := link.store.guess_now()) is None:  # it is being opened anew
            is_valid = SYSTEM.monotonic() - self._learnt_at < LEASE / 2
        else:
            is_valid = now < self._until - MARGIN
        return min(most, self.held) if is_valid else 0

    def enter(self) -> bool:
        """Takes a slot, leasing one where that may help; False when there is none to be had at once."""
        bulkhead, changed = self._bulkhead, self._bulkhead._changed
        with changed:
            if self._is_answered_held() and bulkhead.enters_held():
                return True
            self._entering += 1
            self._wanted_at = SYSTEM.monotonic()
        patience = self._link.patience
        end = SYSTEM.monotonic() + 2 * patience  # an answer under way and one's own: a store that is silent gets one
        try:
            while True:
                with changed:
                    if self._is_answered_held() and bulkhead.enters_held():
                        return True
                    is_asking = self._is_asking_held()
                    left = min(end, self._asked_at + patience if is_asking else end) - SYSTEM.monotonic()
                    if left <= 0 or (is_asking and self._link.state is not READY):
                        return False
                    if is_asking:
                        SYSTEM.wait(changed, left)
                        continue
                    if not self._may_ask_held():
                        return False
                    order = self._order_held(self.held)
                self._ask(order)
        finally:
            with changed:
                self._entering -= 1

    def _is_answered_held(self) -> bool:
        """Whether it is known what is held here: the first call asks, and waits for the answer for a moment."""
        return self._is_joined or self._link.state is not READY or self._link.store.closed

    def _may_ask_held(self) -> bool:
        bulkhead = self._bulkhead
        if bulkhead.in_flight >= bulkhead.max_concurrent or self._link.state is AWAY:
            return False
        if not self._is_joined or (bulkhead.waits and self._who not in self._known.line):
            return True
        return self._room_held() > 0 or SYSTEM.monotonic() - self._learnt_at > STALE

    def _room_held(self) -> int:
        now = self._link.store.guess_now()
        return 0 if now is None else rules.room_for(self._known, now, self._who, self._bulkhead.full_width)

    def _ask(self, order: Order) -> None:
        """Makes a change here where that is local work; else the clerk does, and the answer comes later."""
        turn, change = order
        if self._link.state is not READY or not self._link.store.is_local:
            self.hand_in(order)
            return
        answer = None
        try:
            answer = self._link.transact(self.key, change, partial(self._learn, turn), can_wait=False)
        except StoreUnavailable:
            pass
        finally:
            self._learn(turn, answer)

    def hand_in(self, order: Order) -> None:
        """Lets the clerk make a change; nobody waits."""
        turn, change = order
        if self._link.later(self.key, change, partial(self._learn, turn)) is None:
            self._learn(turn, None)

    # -- changes -----------------------------------------------------------------------------------------------------

    def _is_asking_held(self) -> bool:
        return SYSTEM.monotonic() - self._asked_at < ANSWER_BY

    def _order_held(self, have: int) -> Order:
        """The one change under way: keeps `have` of the slots held, and leases what is missing."""
        bulkhead = self._bulkhead
        self._asked_at = SYSTEM.monotonic()
        self._turn += 1
        if have and self._has_lost_held():
            self._who = _new_name()  # the store has forgotten its turns: what was asked for before may still come
        gives, self.held = have < self.held, have
        users = min(bulkhead.max_concurrent, bulkhead.in_flight + len(bulkhead.queue) + self._entering)
        needed = max(0, users - have)
        spare = 0 if gives else max(0, min(self._wish_held(), bulkhead.max_concurrent) - have - needed)
        waits = bool(bulkhead.queue) or (self._entering > 0 and bulkhead.waits)
        who, turn, limit = self._who, self._turn, bulkhead.full_width

        def change(old: Any, now: float) -> tuple[Any, Any]:
            state = rules.Leases.from_plain(old)
            revision = state.revision
            held = rules.exchange(
                state, now, who, turn, have=have, needed=needed, spare=spare, limit=limit, lease=LEASE, waits=waits
            )
            doc = old if state.revision == revision else state.to_plain(limit)
            until = state.holders[who][1] if who in state.holders else now
            return doc, (held, until, state)

        return turn, change

    def _has_lost_held(self) -> bool:
        """Whether the slots held here have ended in the store; while it is opened anew, whether they may have."""
        now = self._link.store.guess_now()
        return SYSTEM.monotonic() - self._learnt_at >= LEASE if now is None else now >= self._until

    def _learn(self, turn: int, answer: Any) -> None:
        """Takes over an answer, unless a later change was asked for meanwhile; None: there is none, or not yet."""
        bulkhead = self._bulkhead
        with bulkhead._changed:
            if answer is not None:
                self._learnt_at = SYSTEM.monotonic()
            if turn != self._turn:
                return
            self._asked_at = float("-inf")
            if answer is not None and answer[0] is not None:
                held, self._until, state = answer
                if held > self.held:
                    self._got_at = self._learnt_at
                self.held = held
                self._is_joined = True
                if state.revision >= self._known.revision:
                    self._known = state
            order = None if answer is None else self.settle_held()
            bulkhead._changed.notify_all()
        if order is not None:
            self.hand_in(order)

    def settle_held(self) -> Order | None:
        """The change that is due after something has changed here or elsewhere: to be handed in without the lock."""
        link, bulkhead = self._link, self._bulkhead
        self._peak = max(self._peak, bulkhead.in_flight)
        if not self._is_joined or link.state is AWAY or link.store.closed or self._is_asking_held():
            return None
        now = link.store.guess_now()
        if now is None:
            return None
        waiting = len(bulkhead.queue) + self._entering
        idle = max(0, self.held - bulkhead.in_flight)
        back = self._surplus_held(idle, waiting, now)
        is_in_line = self._who in self._known.line
        lacks = waiting > idle and bulkhead.in_flight < bulkhead.max_concurrent and not self._entering
        full = bulkhead.full_width
        is_lean = not back and self.held < self._wish_held() and rules.free(self._known, now, full) > (full + 1) // 2
        if back or is_lean or (lacks and (self._room_held() > 0 or not is_in_line)) or (is_in_line and not waiting):
            return self._order_held(self.held - back)
        return None

    def _wish_held(self) -> int:
        """How many slots to hold where there are plenty: twice as many as were in use at once lately."""
        bulkhead = self._bulkhead
        users = bulkhead.in_flight + len(bulkhead.queue) + self._entering
        return users if self._is_leaving else 2 * max(self._peak, self._most, users)

    def _surplus_held(self, idle: int, waiting: int, now: float) -> int:
        """How many of the slots not in use are due to others."""
        others_wait = any(who != self._who for who in self._known.line)
        full = self._bulkhead.full_width
        if not idle or (not others_wait and rules.free(self._known, now, full) >= rules.reserve(full)):
            return 0
        here = SYSTEM.monotonic()
        if here - self._got_at < TURN:
            if here - self._wanted_at < TURN:  # the next call here is about to come
                self._link.remind(TURN)
                return 0
        elif others_wait:
            return idle
        return max(0, idle - waiting)

    # -- what the store tells ----------------------------------------------------------------------------------------

    def told(self, data: Any) -> None:
        """Somebody has changed the leases."""
        state = rules.Leases.from_plain(data)
        with self._bulkhead._changed:
            if data is not None and state.revision <= self._known.revision:
                return
            self._known = state
            order = self.settle_held()
        if order is not None:
            self.hand_in(order)

    def store_back(self) -> None:
        """The store is there, maybe as another one: what runs here needs slots."""
        with self._bulkhead._changed:
            self._asked_at = float("-inf")
            self._known = rules.Leases()
            order = self._order_held(self.held)
        self.hand_in(order)

    def store_lost(self) -> None:
        """Those who wait go by the local limit from now on."""
        with self._bulkhead._changed:
            self._is_joined = False
            self._asked_at = float("-inf")
            self._bulkhead._changed.notify_all()

    def renew(self) -> None:
        """Keeps the leases, but for slots that were not in use since the last time. On the clerk."""
        with self._bulkhead._changed:
            order = self.settle_held() or self._renewal_held()
        if order is not None:
            self.hand_in(order)

    def _renewal_held(self) -> Order | None:
        bulkhead, now = self._bulkhead, SYSTEM.monotonic()
        if self._is_asking_held() or now - self._renewed_at < RENEW_EVERY:
            return None
        self._renewed_at = now
        self._most = max(self._peak, self._most - max(1, self._most // 8))  # forgets a burst in some seconds
        self._peak = bulkhead.in_flight
        is_idle = not (self.held or bulkhead.in_flight or bulkhead.queue or self._who in self._known.line)
        if is_idle and self._is_joined:
            return None
        return self._order_held(min(self.held, self._wish_held()))

    def leave(self) -> None:
        """Gives back what is not in use: at the end of the process."""
        with self._bulkhead._changed:
            self._is_leaving = True
            in_flight = self._bulkhead.in_flight
            order = self._order_held(in_flight) if self.held > in_flight else None
        if order is not None:
            self.hand_in(order)

    def stream(self) -> EventStream | None:
        """Who hears of losing the store."""
        return self._bulkhead.events


def _new_name() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
