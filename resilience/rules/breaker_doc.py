"""A breaker in a store: its state as the document that all processes share, and what each makes of it. Pure.

Times in the document are the store's. Windows are each process's own and not in it; the failures in a row are.
`revision` grows with every change and is never repeated, also after the store was emptied, since it follows the time.
"""

from __future__ import annotations

from .breaker import COUNTED, SUPPRESSED, fail, failures_in_a_row
from .breaker_state import CLOSED, FOREVER, OPEN, VERSION, BreakerState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .breaker_state import Limits

_COMMON = ("changes", "generation", "left_closed_at", "mode", "next_probe", "opened_at", "probe_successes", "probes",
           "reason", "since", "suppressed", "until")  # fmt: skip
_KEPT = ("last_error", "last_at", "threshold")
LAST = 2**53  # revisions are microseconds: those of the year 2255 are garbage


def is_foreign(doc: Any) -> bool:
    """Whether the document was written by a later version, whose meaning is unknown here."""
    version = doc.get("version") if isinstance(doc, dict) else None
    return isinstance(version, int) and version > VERSION


def read(doc: Any, limits: Limits, now: float) -> BreakerState:
    """The state that a document describes; a closed one for none and for garbage."""
    state = state_of(doc)
    if state is None:
        state = BreakerState(limits, now)
        state.window = None
    return state


def state_of(doc: Any) -> BreakerState | None:
    """The state that a document describes; None for none and for garbage."""
    if not isinstance(doc, dict):
        return None
    try:
        state = BreakerState.from_plain(doc)
        state.window = None
        _shift(state, 0.0)  # finds out whether the times are numbers
        return state if _is_sound(state) else None
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _is_sound(state: BreakerState) -> bool:
    """Whether rules can go by the state: counts are whole numbers, times are finite."""
    times = state.since + (state.until or 0.0) + (state.opened_at or 0.0) + (state.left_closed_at or 0.0)
    return (
        int is type(state.generation) is type(state.changes) is type(state.failures) is type(state.mark)
        is type(state.successes) is type(state.suppressed) is type(state.next_probe) is type(state.probe_successes)
        and str is type(state.reason) and times - times == 0.0 and state.forget_at > -FOREVER
        and all(int is type(number) and end - end == 0.0 for number, end in state.probes.items())
    )  # fmt: skip


def revision_of(doc: Any) -> int:
    """The revision of a document, 0 for none and for garbage."""
    revision = doc.get("revision") if isinstance(doc, dict) else 0
    return revision if isinstance(revision, int) and revision < LAST else 0


def write(state: BreakerState, old: Any, now: float, **more: Any) -> dict[str, Any]:
    """The document of a state, after the document `old`; `more` is what people want to know beside it."""
    state.window = None
    kept = {name: old[name] for name in _KEPT if name in old} if isinstance(old, dict) else {}
    revision = max(revision_of(old) + 1, int(now * 1e6))
    return {**state.to_plain(), **kept, **more, "revision": revision}


def take_over(
    local: BreakerState, shared: BreakerState, limits: Limits, now: float, store_now: float, silent: int
) -> None:
    """Makes `local` (in local time) what the document of `shared` says; its window stays while its generation does."""
    failures = failures_in_a_row(shared, limits, store_now, 0)
    _shift(shared, now - store_now)
    if shared.generation != local.generation and limits.window is not None and shared.mode is CLOSED:
        local.window = limits.window.begin(local.successes + silent)
    for name in _COMMON:
        setattr(local, name, getattr(shared, name))
    local.failures = failures
    local.mark = local.successes + silent
    local.forget_at = shared.forget_at if failures else FOREVER


def put_back(local: BreakerState, limits: Limits, now: float, store_now: float, silent: int) -> BreakerState:
    """The local state as the one to share: after the store has lost it."""
    shared = BreakerState.from_plain({**local.to_plain(), "window": None})
    shared.failures = failures_in_a_row(local, limits, now, silent)
    shared.mark = shared.successes = 0
    _shift(shared, store_now - now)
    return shared


def merge(
    shared: BreakerState, local: BreakerState, limits: Limits, now: float, store_now: float, silent: int, known: int,
    opened: bool,
) -> bool:  # fmt: skip
    """Brings into `shared` what happened here while the store was away; whether anything did that still counts.

    `known` failures in a row were in the store when it was last there; `opened` says that the breaker opened here
    since. An opening counts where the shared breaker is closed; everything else that is there wins.
    """
    if shared.mode is not CLOSED:
        return False
    if opened and local.mode is OPEN:
        mine = put_back(local, limits, now, store_now, silent)
        mine.generation = max(local.generation, shared.generation) + 1
        mine.changes = max(local.changes, shared.changes + 1)
        for name in BreakerState.__slots__:
            setattr(shared, name, getattr(mine, name))
        return True
    if local.mode is not CLOSED or limits.window is not None:
        return False
    more = failures_in_a_row(local, limits, now, silent) - known
    for _ in range(more):
        if fail(shared, limits, store_now, shared.generation, 0, False, 0) not in (COUNTED, SUPPRESSED):
            break
    return more > 0


def _shift(state: BreakerState, by: float) -> None:
    """Moves all times by so many seconds."""
    state.since += by
    state.forget_at += by
    state.until = None if state.until is None else state.until + by
    state.opened_at = None if state.opened_at is None else state.opened_at + by
    state.left_closed_at = None if state.left_closed_at is None else state.left_closed_at + by
    state.probes = {number: end + by for number, end in state.probes.items()}
