"""The mechanism of fan-out: workers pull items from one shared iterator and put the outcomes into slots.

No Future, no queue and no wake-up per item. `Job` is one fan-out; `resilience.batch` gives it its public face.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections import deque
from types import CoroutineType

from ..core.ambient import attempt_gate, context_for_a_thread, retry_owner
from ..core.clock import SYSTEM
from ..core.errors import CallRejected
from .gate import Gate, Place, is_items_own
from .leftovers import Leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    # item, value, error, attempts, sequential, seconds
    Slot = tuple[Any, Any, BaseException | None, int, bool, float]

KEPT_TRACEBACKS = 1000  # errors beyond so many are kept without theirs: a frame holds all its function had in hand


class Job:
    """One fan-out: its input, its gate and the slots of the outcomes, by index of the item.

    `look_ahead` None gathers everything; a number streams: at most so many items are read ahead of the consumer.
    `finished(index, slot)` hears of each outcome that will not change any more, outside of all locks.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        gate: Gate,
        *,
        look_ahead: int | None = None,
        finished: Callable[[int, Slot], object] | None = None,
    ) -> None:
        self.name = "fan_out"
        self.fn = fn
        self.gate = gate
        self.changed = gate.changed
        self.reading = threading.Lock()
        self.source: Iterator[Any] = iter(items)
        self.source_error: BaseException | None = None
        self.exhausted = False
        self.read = 0  # items taken from the source
        self.consumed = 0  # items the consumer of a stream has taken
        self.look_ahead = look_ahead
        self.slots: dict[int, Slot] = {}
        self.holding: list[tuple[int, Any] | None] = [None] * len(gate.running)
        self.failed_once: dict[int, Slot] = {}  # to be repeated if the job falls back
        self.again: deque[tuple[int, Slot]] = deque()  # to be repeated now, with their first outcome
        self.active = 0  # workers that are not through
        self.stopped_by: BaseException | None = None
        self.finished = finished
        self.leftovers = Leftovers()
        self.is_sealed = False  # whether every item has its outcome: what comes now is too late
        self._tracebacks = 0
        gate.on_fall_held = self._repeat_failed_held

    # -- the workers' side -------------------------------------------------------------------------------------

    def work(self, number: int) -> None:
        """The life of one worker, in a context of its own: a new retry tree, with the gate in it."""
        self.leftovers.begin(number)
        try:
            place = Place(self.gate, number)
            self.surroundings(place).run(self._pull, place)
        except BaseException as error:
            self.stopped_by = self.stopped_by or error
            self.gate.close()
        finally:
            self.gate.running[number] = 0
            self.leftovers.end(number)
            with self.changed:
                self.active -= 1
                self.changed.notify_all()

    def surroundings(self, place: Place) -> contextvars.Context:
        """What the items of a worker run in."""
        context = context_for_a_thread()
        context.run(retry_owner.set, None)
        context.run(attempt_gate.set, place)
        return context

    def work_here(self, context: contextvars.Context, place: Place) -> bool:
        """Runs one item in the caller's thread; False when there is none."""
        return context.run(self._pull, place, True)

    def _pull(self, place: Place, only_one: bool = False) -> bool:
        """Runs items until there are none; the last worker judges the pass and repeats what failed."""
        gate, fn, now, holding, number = self.gate, self.fn, SYSTEM.monotonic, self.holding, place.number
        running = gate.running
        while place.enter():
            taken = self._take(number)
            if taken is None:
                running[number] = 0
                if self._is_over():
                    return False
                self._await_an_item()
                continue
            index, item = taken
            started = now()
            try:
                value = fn(item)
                if value.__class__ is CoroutineType:
                    raise self._refused(value)
            except Exception as error:
                running[number] = 0
                self._settle_failure(index, item, error, now() - started, place)
            else:
                running[number] = 0
                gate.successes += 1
                attempts = 1 if not place.repeats else self._attempts(place)
                self._store(index, (item, value, None, attempts, place.sequential, now() - started))
                if gate.narrow:
                    gate.widen(place)
            holding[number] = None
            if only_one:
                return True
        running[number] = 0
        return False

    def _refused(self, value: Any) -> TypeError:
        from ..core.pipeline import refuse_awaitable

        try:
            refuse_awaitable(self.fn, value)
        except TypeError as error:
            return error
        raise AssertionError("a coroutine is always refused")

    @staticmethod
    def _attempts(place: Place) -> int:
        repeats, place.repeats = place.repeats, 0
        return 1 + repeats

    def _take(self, number: int) -> tuple[int, Any] | None:
        """The next item to run; None when there is none for now."""
        if self.again:
            with self.changed:
                if self.again and not self.gate.closed:
                    index, slot = self.again.popleft()
                    self.slots[~index] = slot  # its first outcome, in case that the second never comes
                    self.holding[number] = taken = (index, slot[0])
                    return taken
        if self.exhausted:
            return None
        with self.reading:
            if self.exhausted or not self._has_room():
                return None
            try:
                item = next(self.source)
            except StopIteration:
                self.exhausted = True
                return None
            except Exception as error:
                self.source_error, self.exhausted = error, True
                return None
            except BaseException:  # it stops everything
                self.exhausted = True
                raise
            if self.gate.closed:
                self.source = itertools.chain((item,), self.source)
                return None
            index = self.read
            self.holding[number] = taken = (index, item)
            self.read = index + 1
            return taken

    def _has_room(self) -> bool:
        return self.look_ahead is None or self.read - self.consumed < self.look_ahead

    def _await_an_item(self) -> None:
        """Waits, without a place, until the consumer of a stream comes nearer or something is to be repeated."""
        with self.changed:
            self.changed.notify_all()
            while not (self.gate.closed or self.again or self.exhausted or self._has_room()):
                SYSTEM.wait(self.changed, 1.0)

    def _is_over(self) -> bool:
        """Whether this worker is through: nothing to read and nothing to repeat, also after judging the pass."""
        with self.changed:
            if self.gate.closed:
                return True
            if self.again or not self.exhausted:
                return False
            last = not any(self.gate.running) and not any(self.holding)
        return not (last and self.failed_once and self.gate.judge_the_end() and self.again)

    def _settle_failure(self, index: int, item: Any, error: Exception, duration: float, place: Place) -> None:
        """Keeps a failure: as the final outcome, or as one that is repeated one by one."""
        from ..core.classify import classify

        verdict = classify(error)
        self._tracebacks += 1
        trace = error.__traceback__
        keep = trace is not None and self._tracebacks <= KEPT_TRACEBACKS
        error.with_traceback(trace.tb_next if trace is not None and keep else None)
        first = self.slots.get(~index)
        slot: Slot = (item, None, error, self._attempts(place), place.sequential, duration)
        if first is not None or place.sequential or is_items_own(verdict):
            self._store(index, slot)
        else:
            with self.changed:
                if self.gate.has_fallen:  # it fell while the item ran
                    self.again.append((index, slot))
                elif not self.is_sealed:
                    self.failed_once[index] = slot
                    self.slots[index] = slot
                self.changed.notify_all()
        self.gate.count_failure(verdict)

    def _repeat_failed_held(self) -> None:
        """Lets what failed at full width run again, one by one; a stream's consumer keeps what it has taken."""
        for index, slot in sorted(self.failed_once.items(), key=_by_index):
            if index >= self.consumed:
                self.slots.pop(index, None)
                self.again.append((index, slot))
        self.failed_once.clear()

    def _store(self, index: int, slot: Slot) -> None:
        """Puts an outcome into its slot, unless it comes too late."""
        if self.gate.closed or self.gate.narrow:
            kept = self._store_alone(index, slot)
            if kept is None:
                return
            slot = kept
        else:  # at once after the look, with no call in between: no other thread closes the gate meanwhile
            self.slots[index] = slot
        if self.look_ahead is not None and index == self.consumed:
            with self.changed:
                self.changed.notify_all()
        if self.finished is not None:
            self.finished(index, slot)

    def _store_alone(self, index: int, slot: Slot) -> Slot | None:
        """Gives what it has put there, which tells of both attempts of a repeated item; None when it came too late."""
        with self.changed:
            if self.is_sealed:
                return None
            first = self.slots.pop(~index, None)
            if first is not None:
                item, value, error, attempts, sequential, duration = slot
                slot = (item, value, error, first[3] + attempts, sequential, duration + first[5])
            self.slots[index] = slot
            return slot

    # -- the caller's side ---------------------------------------------------------------------------------------

    def start(self, submit: Callable[..., Any], workers: int) -> int:
        """Starts the workers; gives how many could be started."""
        for number in range(workers):
            with self.changed:
                self.active += 1
            try:
                submit(self.work, number)
            except (RuntimeError, CallRejected):
                with self.changed:
                    self.active -= 1
                return number
        return workers

    def wait(self, until: float | None, look: Callable[[float], float | None]) -> bool:
        """Waits for all workers, or until the gate is closed; False when `until` (monotonic) came first.

        `look(now)` is asked now and then, and says when it wants to be asked again.
        """
        while True:
            now = SYSTEM.monotonic()
            again = look(now)
            with self.changed:
                if self.active == 0 or self.gate.closed:
                    return True
                if until is not None and now >= until:
                    return False
                ends = [end - now for end in (until, again) if end is not None]
                SYSTEM.wait(self.changed, min([*ends, 1.0]))

    def tell_the_rest(self) -> None:
        """Tells of the failures that might have been repeated, at the end of a job that never fell back again."""
        if self.finished is not None:
            for index, slot in sorted(self.failed_once.items(), key=_by_index):
                self.finished(index, slot)
        self.failed_once.clear()

    def give_up(self, name: str, late: Callable[..., BaseException], patience: float | None) -> None:
        """Closes the job with an outcome for every item: `late(started, stack)` gives the error of those without one.

        Items not yet read have theirs too, as far as they can be read within `patience` seconds (None: all).
        """
        self.gate.close()
        rest = self.leftovers.read_on(self, patience)
        told = []
        with self.changed:
            self.is_sealed = True
            once = list(self.again) + [(~index, self.slots[index]) for index in list(self.slots) if index < 0]
            for index, slot in once:
                self.slots.pop(~index, None)
                self.slots.setdefault(index, slot)
                told.append(index)
            self.again.clear()
            held = [(number, *taken) for number, taken in enumerate(self.holding) if taken is not None]
            lost = [(number, index, item) for number, index, item in held if index not in self.slots]
            stacks = self.leftovers.abandon(name, [number for number, _, _ in lost])
            for number, index, item in lost:
                self.slots[index] = (item, None, late(True, stacks.get(number, "")), 1, self.gate.narrow, 0.0)
                told.append(index)
            unread = late(False) if rest else None  # one error for all of them: none was begun
            for item in rest:
                self.slots[self.read] = (item, None, unread, 0, self.gate.narrow, 0.0)
                told.append(self.read)
                self.read += 1
        if self.finished is not None:
            for index in sorted(told):
                self.finished(index, self.slots[index])

    def stream(
        self, until: float | None, look: Callable[[float], float | None], here: Callable[[], bool] | None = None
    ) -> Iterator[tuple[int, Slot]]:
        """The outcomes in input order, as they come; ends early where the workers end or `until` comes.

        Where no worker runs, `here()` runs the next item; False when there is none.
        """
        while True:
            if until is not None and SYSTEM.monotonic() >= until:
                return
            position = self.consumed
            slot = self.slots.get(position)
            if slot is None:
                if here is not None:
                    if not here() and position not in self.slots:
                        return
                elif not self._await_slot(position, until, look):
                    return
                continue
            if slot[2] is None:
                del self.slots[position]
                self.consumed = position + 1
            elif not self._consume_failed(position):
                continue
            yield position, slot
            ahead = self.look_ahead or 1
            if position % max(1, ahead // 2) == 0 or ahead < 4:
                look(SYSTEM.monotonic())
                with self.changed:
                    self.changed.notify_all()

    def _consume_failed(self, position: int) -> bool:
        """Makes a failure final by taking it; False when it has just been put back to be repeated."""
        with self.changed:
            slot = self.slots.pop(position, None)
            if slot is None:
                return False
            self.consumed = position + 1
            was_open = self.failed_once.pop(position, None) is not None
        if was_open and self.finished is not None:
            self.finished(position, slot)
        return True

    def _await_slot(self, position: int, until: float | None, look: Callable[[float], float | None]) -> bool:
        while True:
            now = SYSTEM.monotonic()
            again = look(now)
            with self.changed:
                self.changed.notify_all()
                if position in self.slots:
                    return True
                if self.active == 0 or self.gate.closed or (until is not None and now >= until):
                    return False
                ends = [end - now for end in (until, again) if end is not None]
                SYSTEM.wait(self.changed, min([*ends, 1.0]))


def _by_index(entry: tuple[int, Slot]) -> int:
    return entry[0]
