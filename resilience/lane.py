"""The express lane of a named operation: while all is well, a call in the caller's thread runs in one frame.

It does what the composed pipeline would do around a success - a bulkhead slot, a place of the rate limiter, the
deadline for who asks, the counters - each as single statements, which are exact under the GIL. Whatever is not plain
(a breaker that wants attention, a full bulkhead, an empty limiter, a failure) goes to `Operation`, which knows all.
"""

from __future__ import annotations

import sys
from types import CoroutineType

from .core.entries import around, context_seen, enter_lane, leave_lane
from .core.pipeline import Call, compose, express_lead, invoke, refuse_awaitable
from .core.signature import Template
from .monitoring.histogram import SPLIT
from .strategies.nesting import register_owner

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    from .operation import Operation
    from .parts import Parts
    from .strategies.bulkhead import Bulkhead

    P = ParamSpec("P")
    R = TypeVar("R")


class Lane:
    """What the express lane of an operation looks at (see `_LANE`): its parts, taken apart."""

    __slots__ = ("_guards", "_remainder", "lead", "parts")

    def __init__(self, operation: Operation, parts: Parts, lead: Any) -> None:
        clock, stats = operation.clock, operation.stats
        self._guards = parts
        self._remainder: Callable[[Call], Any] | None = None
        self.lead = lead
        entry = (operation.name, parts.total, parts.timeout, clock)
        self.parts = (lead, parts.bulkhead, parts.limiter, clock.monotonic, entry, stats.durations.counts, stats)

    @property
    def bulkhead(self) -> Bulkhead | None:
        """The bulkhead that a call of this lane has its slot from."""
        return self._guards.bulkhead

    def remainder(self, operation: Operation) -> Callable[[Call], Any]:
        """What guards the rest of a call whose first attempt failed: all but its slot."""
        if self._remainder is None:
            inner = operation.strategies(self._guards.replaced(bulkhead=None), "caller")
            self._remainder = compose(inner, invoke)
        return self._remainder

    @classmethod
    def of(cls, operation: Operation, isolation: str) -> Lane | None:
        """The lane of an operation; None where its attempts hop to another thread or something wants each call."""
        parts = operation.parts
        if not HAS_GIL or parts.fallback is not None or (isolation != "caller" and parts.timeout is not None):
            return None
        if any(part is not None and part.shared is not None for part in (parts.limiter, parts.bulkhead)):
            return None
        if parts.policy is not None and (parts.policy.retry_on_result is not None or parts.policy.budget is not None):
            return None
        return cls(operation, parts, HEALTHY if parts.breaker is None else express_lead((parts.breaker,)))


HEALTHY = express_lead(())  # stands for the breaker of every operation that has none
LANES = {None: 1, "caller": 2}  # of an operation's own isolation, and of calls in the caller's thread


def _guarded(operation: Operation, isolation: str | None, fn: Any, args: Any, kwargs: Any) -> Any:
    """The call under everything that guards it."""
    return operation.run(Call(fn, args, kwargs, operation.name), isolation=isolation)


def _resumed(
    operation: Operation, lane: Lane, fn: Any, args: Any, kwargs: Any, token: int, failed: BaseException,
    started: float, seen: Any,
) -> Any:  # fmt: skip
    """Goes on after a failed first attempt, in its context where somebody has `seen` that."""
    call = Call(fn, args, kwargs, operation.name)
    call.replay, call.token = failed, token
    del failed
    try:
        result = operation.resume(call, lane, started, context_seen(seen))
    except BaseException as error:
        _keep_slot(lane, error)
        raise
    _keep_slot(lane, call.saved_from)
    return result


def _keep_slot(lane: Lane, error: BaseException | None) -> None:
    if lane.bulkhead is not None:
        lane.bulkhead.keep_for(error)


def _unusual(operation: Operation, lane: Lane, fn: Any, token: int, result: R, started: float) -> R:
    """Ends a call whose breaker has changed meanwhile, or whose result is no result."""
    refuse_awaitable(fn, result)
    lead = lane.lead
    ended = operation.clock.monotonic()
    if lead.token == token:
        lead.successes += 1
    else:
        lead.on_success(lead.adopt(token), result, ended - started)
    operation.stats.record(ended, ended - started, "success")
    return result


# What a function protected by `manager.protect` does, in one frame.
_LANE = Template(
    """
    def wrapper({parameters}):
        lane = operation.caller_lane if in_caller else operation.own_lane
        if lane is None or not (token := lane.lead.token):
            if operation.open_lane(isolation):
                return wrapper({arguments})
            return guarded(operation, isolation, fn, {packed})
        lead, bulkhead, limiter, now, entry, counts, stats = lane.parts
        started = now()
        if limiter is not None and limiter.tat - limiter.slack > started:
            return guarded(operation, isolation, fn, {packed})
        if bulkhead is not None:
            if bulkhead.queue or bulkhead.in_flight >= bulkhead.max_concurrent:
                return guarded(operation, isolation, fn, {packed})
            bulkhead.in_flight += 1
        mark = None
        try:
            if limiter is not None:
                tat = limiter.tat
                limiter.tat = (tat if tat > started else started) + limiter.interval
            outside = around()
            try:
                mark = enter_lane((entry, started, outside))
                result = fn({arguments})
            except BaseException as error:
                seen = around()
                if mark is None:
                    enter_lane(outside)  # interrupted on the way in
                else:
                    leave_lane(mark)
                failed = error
            else:
                leave_lane(mark)
                if lead.token == token and result.__class__ is not CoroutineType:
                    lead.successes += 1
                    ended = now()
                    if ended >= stats.next_tally:
                        stats.keep_tally(ended)  # dated at the call before: this one is not in it yet
                    took = ended - started
                    split = took * SPLIT
                    try:
                        counts[split - (split - took)] += 1
                    except KeyError:  # the first one of its duration
                        stats.durations.add(took)
                    stats.last_at = ended
                    return result
                return unusual(operation, lane, fn, token, result, started)
            try:
                return resumed(operation, lane, fn, {packed}, token, failed, started, seen)
            finally:
                del failed
        finally:  # wherever a Ctrl-C falls
            if bulkhead is not None:
                bulkhead.in_flight -= 1
                if bulkhead.queue:
                    bulkhead.wake_queue()
""",
    names=("operation", "isolation", "in_caller"),
    scope={
        "CoroutineType": CoroutineType,
        "SPLIT": SPLIT,
        "around": around,
        "enter_lane": enter_lane,
        "guarded": _guarded,
        "leave_lane": leave_lane,
        "resumed": _resumed,
        "unusual": _unusual,
    },
)


def express(operation: Operation, fn: Callable[P, R], isolation: str | None) -> Callable[P, R]:
    """`fn` as a call of the operation, through the express lane where there is one."""
    return _LANE.wrap(fn, operation, isolation, isolation == "caller")  # type: ignore[no-any-return]  # of the signature of fn


def _policy_of(seen: dict[str, Any]) -> Any:
    """While the first attempt runs, the lane's frame speaks for the policy of its operation; then `Retry.run` does."""
    return seen["operation"].parts.policy if "mark" in seen and "failed" not in seen else None


_LANE.each_code(lambda code: register_owner(code, _policy_of))
