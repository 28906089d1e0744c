"""The specification's program as one running example: prices of several exchanges, collected whatever happens.

    python examples/collector.py                            # 60 s, with servers of its own (extra `test`)
    python examples/collector.py --redis redis://localhost:6379/0 --postgres postgresql://me@localhost/prices

The exchanges are fakes on this machine. They answer now and then with errors, or not at all, and one of them dies and
returns; the Redis that this program starts itself is killed in between. Ctrl-C ends it early. Either way it ends with
its report, and with 0 when nothing was lost, else 1 (130 and 143 after Ctrl-C and SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psycopg2
from collector.clients import CLIENTS
from collector.report import as_text, make_report
from collector.service import Service
from collector.stage import Stage
from collector.storage import Cache, Storage

import resilience
from resilience import ErrorRecoveryManager, Event

SETTINGS = Path(__file__).parent / "collector" / "error_recovery.yaml"
TOLD = ("breaker_state_changed", "degraded", "restored", "worker_lost", "store_lost", "store_restored")
PATIENCE = 15.0  # seconds for the first tickers to come, and for the last gaps to be filled


def main() -> int:
    """Runs the service on its stage, and reports."""
    options = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        report, code = run(options)
    except ModuleNotFoundError as missing:
        sys.exit(f"collector: {missing}")
    except psycopg2.Error as error:
        sys.exit(f"collector: PostgreSQL, where nothing may get lost: {str(error).splitlines()[0]}")
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return code or bool(report["problems"])


def run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The report, and what a signal wants for an exit code."""
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(Stage(options))
        store = stack.enter_context(resilience.open_store(stage.store))
        manager = stack.enter_context(ErrorRecoveryManager.from_config(str(SETTINGS), store=store))
        cache = stack.enter_context(contextlib.closing(Cache(stage.redis, manager)))
        storage = stack.enter_context(contextlib.closing(Storage(stage.postgres, manager)))
        storage.prepare()
        story = Story()
        manager.events.subscribe(story.event, TOLD)
        manager.alerts.notify(story.alert)
        urls = {name: exchange.url for name, exchange in stage.exchanges.items()}
        service = Service(manager, urls, cache, storage, CLIENTS[options.client])
        stack.enter_context(contextlib.closing(service))

        code = 0
        with service.workers():
            try:
                service.warm_up(PATIENCE)
                story.tell(f"collecting from {len(urls)} exchanges")
                stage.play(options.seconds, story.tell)
            except SystemExit as end:
                code = int(end.code or 0)
                story.tell("the end was asked for")
            seen = manager.monitor.report()
        service.finish(PATIENCE)
        return make_report(service, stage, seen, story.alerts, story.age), code


def leave(number: int, frame: object) -> None:
    """Ends the program in order: every `with` block is left."""
    raise SystemExit(128 + number)


class Story:
    """Tells what happens, on standard error."""

    def __init__(self) -> None:
        self.alerts: list[str] = []
        self._begun = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def tell(self, words: str) -> None:
        """One line with its time."""
        sys.stderr.write(f"{self.age:6.1f} s  {words}\n")

    def event(self, event: Event) -> None:
        """News of the manager."""
        fields: dict[str, Any] = event.as_dict()
        change = f"{fields['old']} -> {fields['new']}" if "new" in fields else event.kind.replace("_", " ")
        self.tell(f"{event.name}: {change}" + (f" ({fields['reason']})" if fields.get("reason") else ""))

    def alert(self, event: Event) -> None:
        """An alert that fires or is over."""
        fields: dict[str, Any] = event.as_dict()
        subject = fields.get("operation") or fields.get("resource")
        words = f"{event.kind.replace('_', ' ')}: {event.name} of {subject} at {fields['value']:.0%}"
        self.alerts.append(words)
        self.tell(words)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--redis", metavar="URL", help="a Redis for the cache, instead of one of its own")
    made.add_argument("--postgres", metavar="URL", help="a database for the table `tickers`, instead of one of its own")
    made.add_argument("--store", metavar="URL", help="where breakers are shared; the Redis, unless said otherwise")
    made.add_argument("--seconds", type=float, default=60.0, help="how long (60); 0: until Ctrl-C")
    made.add_argument("--client", choices=sorted(CLIENTS), default="requests", help="ccxt: pip install '.[ccxt]'")
    made.add_argument("--calm", action="store_true", help="nothing goes wrong")
    made.add_argument("--json", action="store_true", help="the report as JSON")
    return made


if __name__ == "__main__":
    sys.exit(main())
