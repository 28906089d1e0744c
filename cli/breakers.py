"""The verb `breakers`: what the breakers in a store are doing, and orders that reach every process that uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from . import exits
from .durations import Duration
from .names import Name
from .output import emit, emit_json, emit_line, one_format, say, table
from .shared_store import HELP, opened

if TYPE_CHECKING:
    from resilience.rules.breaker_state import CircuitState
    from resilience.stores.port import Store

EPILOG = """\b
Examples:
  resilience breakers list
  resilience breakers show backup --json
  resilience breakers trip backup --for 10m --reason "maintenance until noon"
  resilience breakers reset backup
  resilience breakers check backup && ./restore
  resilience breakers --store redis://cache:6379/0 list

\b
Orders reach running processes that share the store within a second.
Exit codes: 0 done; 1 there is no such breaker, or `check` found one that refuses calls; 69 the store is away.
"""
PREFIX, EVENTS = "breaker/", "breaker-events/"
YEAR_3000 = 32_503_680_000  # seconds since 1970
_json = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
_nl = click.option("--nl", is_flag=True, help="One JSON object a line.")
_store = click.option("--store", metavar="URL", help=HELP)


@click.group(epilog=EPILOG)
@click.option("--store", metavar="URL", help=HELP)
@click.pass_context
def breakers(ctx: click.Context, store: str | None) -> None:
    """Circuit breakers in a store: look at them, open and close them, from any shell."""
    ctx.obj = store


def _opened(ctx: click.Context, store: str | None) -> Store:
    return opened(store or ctx.obj)


def view(name: str, doc: Any, now: float) -> dict[str, Any]:
    """A breaker as people and scripts see it; durations are seconds, counted from the store's `now`."""
    from resilience.rules import breaker as rules
    from resilience.rules import breaker_doc as document
    from resilience.strategies.breaker_config import CircuitBreakerConfig

    config = CircuitBreakerConfig(reset_timeout=None)
    state = document.read(doc, config, now)
    known = doc if isinstance(doc, dict) else {}
    last_at = known.get("last_at")
    left = rules.retry_after(state, config, now)
    return {
        "name": name,
        "state": state.mode.value,
        "failures": rules.failures_in_a_row(state, config, now, 0),
        "threshold": threshold if isinstance(threshold := known.get("threshold"), int) else None,
        "reason": state.reason,
        "opened_s_ago": None if state.opened_at is None else round(now - state.opened_at, 3),
        "since_s_ago": round(now - state.since, 3),
        "retry_after_s": None if left is None else round(left, 3),
        "probes": sum(1 for end in state.probes.values() if now < end),
        "changes": state.changes,
        "last_error": last_error if isinstance(last_error := known.get("last_error"), str) else None,
        "last_failure_s_ago": round(now - last_at, 3) if isinstance(last_at, (int, float)) else None,
    }


def _views(store: Store) -> list[dict[str, Any]]:
    now = store.now()
    names = [key[len(PREFIX) :] for key in store.keys(PREFIX)]
    return [view(name, doc, now) for name in names if (doc := store.read(PREFIX + name)) is not None]


def refuses(seen: dict[str, Any]) -> bool:
    """Whether a call would be refused now."""
    return bool(seen["retry_after_s"] != 0.0)


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.0f}s" if value >= 10 else f"{value:.1f}s"
    return f"{value / 60:.0f}m" if value < 6000 else f"{value / 3600:.0f}h"


@breakers.command("list")
@_store
@_json
@_nl
@click.pass_context
def list_(ctx: click.Context, store: str | None, as_json: bool, nl: bool) -> int:
    """All breakers in the store."""
    one_format(as_json, nl)
    with _opened(ctx, store) as there:
        seen = _views(there)
    if as_json:
        emit_json(seen)
    elif nl:
        for one in seen:
            emit_line(one)
    elif seen:
        emit(table(("NAME", "STATE", "FAILURES", "OPENED", "RETRY IN", "LAST ERROR"), [_row(one) for one in seen]))
    else:
        say(f"resilience: no breaker in {there.url} yet; one appears with its first call")
    return exits.OK


def _row(seen: dict[str, Any]) -> tuple[str, ...]:
    is_closed = seen["state"] == "closed"
    state = seen["state"] if is_closed else seen["state"].upper()
    failures = f"{seen['failures']}/{seen['threshold']}" if seen["threshold"] else str(seen["failures"])
    ago, retry = seen["opened_s_ago"], seen["retry_after_s"]
    opened_at = "-" if ago is None or is_closed else f"{seconds(ago)} ago"
    wait = "-" if is_closed else "reset" if retry is None else seconds(retry)
    return seen["name"], state, failures, opened_at, wait, _first_line(seen["last_error"])


def _first_line(text: str | None) -> str:
    return next(iter((text or "").splitlines()), "")[:60] or "-"


@breakers.command()
@click.argument("name", type=Name())
@_store
@_json
@_nl
@click.pass_context
def show(ctx: click.Context, name: str, store: str | None, as_json: bool, nl: bool) -> int:
    """One breaker, with the last changes of its state."""
    one_format(as_json, nl)
    with _opened(ctx, store) as there:
        doc = there.read(PREFIX + name)
        if doc is None:
            return _unknown(name, there)
        seen = {**view(name, doc, there.now()), "events": _events(there, name)}
    if as_json or nl:
        (emit_json if as_json else emit_line)(seen)
        return exits.OK
    for key, value in seen.items():
        if key != "events":
            emit(f"{key:18}  {'-' if value in (None, '') else value}")
    for event in seen["events"]:
        emit(_line(event))
    return exits.OK


def _unknown(name: str, store: Store) -> int:
    from difflib import get_close_matches

    names = [key[len(PREFIX) :] for key in store.keys(PREFIX)]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names[:10]) or 'none'}"
    say(f"resilience: no breaker {name!r} in {store.url}; {hint}")
    return exits.NO


def _events(store: Store, name: str) -> list[dict[str, Any]]:
    kept = store.read(EVENTS + name)
    told = kept.get("events") if isinstance(kept, dict) else None
    return [event for event in told if _is_event(event)] if isinstance(told, list) else []


def _is_event(event: Any) -> bool:
    """Whether it is one that a breaker has told: a store may hold what anybody put there."""
    if not isinstance(event, dict) or not (isinstance(event.get("old"), str) and isinstance(event.get("new"), str)):
        return False
    at = event.get("at")
    return isinstance(at, (int, float)) and 0 <= at < YEAR_3000


def _line(event: dict[str, Any]) -> str:
    from datetime import datetime

    at = datetime.fromtimestamp(event["at"]).astimezone().isoformat(timespec="seconds")
    last = f" (last error: {event['last_error']})" if event.get("last_error") else ""
    return f"{at}  {event['old']} -> {event['new']}  pid {event.get('pid')}  {event.get('reason', '')}{last}"


@breakers.command()
@click.argument("name", required=False, type=Name())
@_store
@_json
@_nl
@click.pass_context
def events(ctx: click.Context, name: str | None, store: str | None, as_json: bool, nl: bool) -> int:
    """The last changes of state, oldest first, of one breaker or of all."""
    one_format(as_json, nl)
    with _opened(ctx, store) as there:
        names = [name] if name else [key[len(EVENTS) :] for key in there.keys(EVENTS)]
        told = [{"name": one, **event} for one in names for event in _events(there, one)]
    told.sort(key=lambda event: event["at"])
    if as_json:
        emit_json(told)
        return exits.OK
    for event in told:
        if nl:
            emit_line(event)
        else:
            emit(f"{event['name']}  {_line(event)}")
    return exits.OK


@breakers.command()
@click.argument("name", required=False, type=Name())
@_store
@_json
@click.pass_context
def check(ctx: click.Context, name: str | None, store: str | None, as_json: bool) -> int:
    """Exits with 1 when the breaker (without NAME: any) would refuse a call now, else with 0."""
    with _opened(ctx, store) as there:
        seen = [view(name, there.read(PREFIX + name), there.now())] if name else _views(there)
    refusing = [one for one in seen if refuses(one)]
    if as_json:
        emit_json(seen)
    for one in refusing:
        wait = one["retry_after_s"]
        until = "until a reset" if wait is None else f"for {seconds(wait)} more"
        say(f"resilience: breaker {one['name']!r} is {one['state'].upper()} {until}")
    return exits.NO if refusing else exits.OK


# -- orders ------------------------------------------------------------------------------------------------------------


def order(store: Store, name: str, mode: CircuitState, reason: str, lasts: float | None = None) -> dict[str, Any]:
    """Gives the breaker an order, for all processes that share it; what it is then."""
    from resilience.core.clock import SYSTEM
    from resilience.rules import breaker as rules
    from resilience.rules import breaker_doc as document
    from resilience.strategies.breaker_config import CircuitBreakerConfig
    from resilience.strategies.breaker_fleet import appended, event_of

    config = CircuitBreakerConfig()

    def change(old: Any, now: float) -> tuple[Any, Any]:
        state = document.read(old, config, now)
        before = state.mode
        rules.order(state, config, mode, now, reason, 0, None if lasts is None else now + lasts)
        doc = document.write(state, old, now)
        return doc, (before, doc, now)

    before, doc, now = store.transact(PREFIX + name, change)
    if before is not mode:
        store.transact(EVENTS + name, appended(event_of(SYSTEM.time(), before, mode, reason)))
    return view(name, doc, now)


def _obey(
    ctx: click.Context, store: str | None, name: str, as_json: bool, give: Callable[[Store], dict[str, Any]]
) -> int:
    with _opened(ctx, store) as there:
        seen = give(there)
    if as_json:
        emit_json(seen)
    else:
        wait = seen["retry_after_s"]
        lasting = f" for {seconds(wait)}" if wait else " until a reset" if wait is None else ""
        say(f"resilience: breaker {name!r} is {seen['state']}{lasting}")
    return exits.OK


@breakers.command()
@click.argument("name", type=Name())
@click.option("--for", "lasts", type=Duration(), help="So long; without it until a reset.")
@click.option("--reason", help="Why: shown to whoever is refused.")
@_store
@_json
@click.pass_context
def trip(
    ctx: click.Context, name: str, lasts: float | None, reason: str | None, store: str | None, as_json: bool
) -> int:
    """Opens a breaker: every call is refused, in every process."""
    from resilience.rules.breaker_state import FORCED_OPEN

    return _obey(ctx, store, name, as_json, lambda there: order(there, name, FORCED_OPEN, reason or "tripped", lasts))


@breakers.command()
@click.argument("name", type=Name())
@_store
@_json
@click.pass_context
def reset(ctx: click.Context, name: str, store: str | None, as_json: bool) -> int:
    """Closes a breaker, with nothing counted against it."""
    from resilience.rules.breaker_state import CLOSED

    return _obey(ctx, store, name, as_json, lambda there: order(there, name, CLOSED, "reset"))


@breakers.command()
@click.argument("name", type=Name())
@click.option("--reason", help="Why.")
@_store
@_json
@click.pass_context
def disable(ctx: click.Context, name: str, reason: str | None, store: str | None, as_json: bool) -> int:
    """Lets every call through, uncounted, until a reset."""
    from resilience.rules.breaker_state import DISABLED

    return _obey(ctx, store, name, as_json, lambda there: order(there, name, DISABLED, reason or "disabled"))


@breakers.command("metrics-only")
@click.argument("name", type=Name())
@click.option("--reason", help="Why.")
@_store
@_json
@click.pass_context
def metrics_only(ctx: click.Context, name: str, reason: str | None, store: str | None, as_json: bool) -> int:
    """Counts every call and refuses none until a reset."""
    from resilience.rules.breaker_state import METRICS_ONLY

    return _obey(ctx, store, name, as_json, lambda there: order(there, name, METRICS_ONLY, reason or "metrics only"))
