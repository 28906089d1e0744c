"""`resilience report`: errors grouped, rates of operations, alerts that fired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .. import exits
from ..live.words import share, short
from ..output import emit, emit_json, emit_line, say, table

if TYPE_CHECKING:
    from .figures import Figures

EPILOG = """\b
Examples:
  resilience report urls.txt.journal.jsonl
  resilience report night-*.jsonl --json
  resilience report --store file:///var/lib/job/state     # what managers with this store have left there
  resilience report rules --prometheus > rules.yaml

\b
Without a journal it reads the store: --store, RESILIENCE_STORE, or the one in the state directory. Managers made with
store= write there every 2 s and at their end; those of processes that have ended or were killed are read as well.

\b
Exit codes: 0 reported; 2 no journal; 69 the store cannot be reached.
"""


@click.command(epilog=EPILOG)
@click.argument("journals", nargs=-1, metavar="[JOURNAL...] | rules")
@click.option("--store", metavar="URL", help="Read what managers have left in this store.")
@click.option("--prometheus", is_flag=True, help="With `rules`: the five alerts as rules for a Prometheus server.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document: operations, errors, alerts, sources.")
@click.option("--nl", is_flag=True, help="A JSON object a line: each operation, error group and alert.")
@click.option("-v", "--verbose", is_flag=True, help="With a sample of each error.")
def report(
    journals: tuple[str, ...], store: str | None, prometheus: bool, as_json: bool, nl: bool, verbose: bool
) -> int:
    """What runs came to: rates by operation, errors by group, alerts that fired.

    From journals of collect, from a store, or from both.
    """
    if journals == ("rules",):
        return _rules(prometheus)
    if prometheus:
        raise click.UsageError("--prometheus goes with rules: resilience report rules --prometheus")
    if as_json and nl:
        raise click.UsageError("--nl and --json are two formats for one standard output: choose one")
    figures = _read(journals, store)
    told = figures.as_dict()
    if as_json:
        emit_json(told)
    elif nl:
        for name, entry in told["operations"].items():
            emit_line({"operation": name, **entry})
        for group in told["errors"]["groups"]:
            emit_line({"error": group["type"], **group})
        for alert in told["alerts"]:
            emit_line({"alert": alert["rule"], **alert})
    else:
        for line in lines_of(told, verbose):
            emit(line)
    return exits.OK


def _rules(prometheus: bool) -> int:
    from resilience.monitoring.alert_rules import prometheus_rules

    if not prometheus:
        raise click.UsageError("rules are written for Prometheus: resilience report rules --prometheus")
    emit(prometheus_rules().rstrip())
    return exits.OK


def _read(journals: tuple[str, ...], store: str | None) -> Figures:
    from .figures import Figures

    figures = Figures()
    for path in journals:
        _add_journal(figures, path)
    if store is not None or not journals:
        _add_store(figures, store)
    return figures


def _add_journal(figures: Figures, path: str) -> None:
    from ..collect.journal import NotAJournal, read_past, read_records

    try:
        open(path, "rb").close()  # one that is not there is no empty journal
        read_past(path)
        figures.add_journal(path, list(read_records(path)))
    except NotAJournal as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _add_store(figures: Figures, given: str | None) -> None:
    from resilience.core.errors import StoreUnavailable
    from resilience.monitoring.accounts import PREFIX
    from resilience.stores.opening import open_store

    from ..lookup import store_url

    url = store_url(given)
    if url is None:
        raise StoreUnavailable("no journal was named and there is no store: give a JOURNAL or --store URL")
    with open_store(url) as store:
        for key in store.keys(PREFIX):
            if (account := store.read(key)) is None:  # gone meanwhile
                continue
            try:
                figures.add_account(key, account)
            except (AttributeError, KeyError, TypeError, ValueError):  # garbage, or of another version
                say(f"resilience: {key} in {url} is no account that can be read")
    if not figures.sources:
        say(f"resilience: nobody has left an account in {url}; a manager made with store= does")


def lines_of(told: dict[str, Any], verbose: bool = False) -> list[str]:
    """The report as text."""
    lines = [_source_line(source) for source in told["sources"]]
    rows = [
        (name, entry["calls"], share(entry["successes"], entry["successes"] + entry["failures"]), entry["failures"],
         share(entry["retries"], entry["calls"]), share(entry["timeouts"], entry["calls"]), entry["rejections"],
         short(entry["p50"]), short(entry["p95"]), short(entry["p99"]))
        for name, entry in told["operations"].items()
    ]  # fmt: skip
    if rows:
        headers = ("OPERATION", "CALLS", "OK", "FAILED", "RETRIES", "TIMEOUTS", "REJECTED", "P50", "P95", "P99")
        lines += ["", table(headers, rows)]
    errors = told["errors"]
    lines += ["", f"{errors['errors']} errors out of {errors['total']}"]
    for group in errors["groups"]:
        place = f" at {group['where']}" if group["where"] else ""
        lines.append(f"{group['count']:>7}x {group['category']:<9} {group['type']}: {group['message']}{place}")
        if verbose and group["sample"]:
            lines += [f"           {line}" for line in group["sample"].rstrip().splitlines()]
    lines += ["", f"{len(told['alerts'])} alerts"]
    for alert in told["alerts"]:
        subject = alert.get("operation") or alert.get("resource") or "-"
        state = "FIRES" if alert.get("firing") else "fired"
        lines.append(
            f"  {state} {alert['rule']} of {subject}: {alert['value']:.3g}, threshold {alert['threshold']:g}"
            f" ({alert['process']})"
        )
    return lines


def _source_line(source: dict[str, Any]) -> str:
    if "journal" in source:
        torn = f", {source['torn']} lines torn" if source["torn"] else ""
        return f"{source['journal']}: {source['ok']} of {source['items']} items ok{torn}"
    state = "ended" if source["ended"] else "running or killed"
    return f"{source['host']}:{source['pid']} {source['program']} ({state})"
