"""One run of a collection, from a checked list to an exit code: it puts the parts together and owns their order."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilience.core.clock import SYSTEM
from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from resilience.strategies.retry import RetryPolicy

from .. import exits
from ..output import redacted
from ..streams import is_open_file
from .answer import Answer
from .hosts import Host
from .journal import Journal, OutputError, Past
from .pace import Pace
from .records import breaker_record, final_record, pause_record, run_record, started_record
from .run import Run
from .scheduler import Scheduler
from .seen import make_known
from .summary import FINAL_CATEGORIES, Tally
from .tasks import MAX_RETRY_AFTER, NEVER, Final, Rules, Task

if TYPE_CHECKING:
    from resilience.stores.port import Store

    from .inputs import Item, Listing
    from .progress import Progress
    from .run import Fetch
    from .signals import Signals

ENDING = 0.3  # seconds that requests cut by the run's deadline have to come back
CLOSING = 0.2  # the same after a signal
KEEPING = 0.5  # seconds that the ends of items under way have to be written


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. Times in seconds."""

    resume: bool = False
    retry_permanent: bool = False
    workers: int = 16
    per_host: int = 4
    attempts: int = 4
    timeout: float = 10.0
    deadline: float | None = None
    wait_open: bool = False
    max_retry_after: float = MAX_RETRY_AFTER
    failed: Path | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    store: Store | None = None  # where the breakers of the hosts are shared


class Job:
    """A run of `listing`: `run()` once, then look at `tally`, `skipped`, `hosts`, `code`, `took`."""

    def __init__(
        self,
        listing: Listing,
        options: Options,
        past: Past,
        journal: Journal,
        new_fetch: Callable[[], Fetch],
        emit: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.listing = listing
        self.options = options
        self.tally = Tally(len(listing.items))
        self.skipped = 0
        self.skipped_failed = 0
        self.unfinished = 0
        self.took = 0.0
        self.code = 0
        self.error: Exception | None = None
        self.hosts: list[Host] = []
        self._past = past
        self._journal = journal
        self._new_fetch = new_fetch
        self._emit = emit
        self._counting = threading.Condition()
        self._recording = 0  # ends of items that are just being kept
        self._is_closed = False
        self._not_ok: dict[str, Item] = {item.key: item for item in listing.items}
        self.pace = Pace(options.workers)

    def run(self, signals: Signals, progress: Progress) -> int:
        """Does the work, writes what is to be written, and gives the exit code. Raises what no item is to blame for."""
        began = SYSTEM.monotonic()
        options = self.options
        deadline = NEVER if options.deadline is None else began + options.deadline
        items, unknown = self._choose()
        rules = Rules(
            options.retry, options.attempts, options.timeout, options.per_host, options.max_retry_after, deadline,
            options.wait_open,
        )  # fmt: skip
        scheduler = Scheduler(items, self._new_host, rules, self.pace, random.random)
        workers = min(options.workers, len(items))
        run = Run(scheduler, self._new_fetch, self._record, self._announce, self._tell, workers=workers)
        make_known(run)
        out_of_time = False
        try:
            self._journal.write(run_record(len(self.listing.items), self.skipped, SYSTEM.time()))
            for item in unknown:
                self._record(Final(Task(item, self._new_host(item.host)), _unknown(), 0.0))
            if items:
                run.start()
                out_of_time = self._supervise(run, scheduler, signals, progress, deadline)
            if signals.received is None and run.error is None:
                for final in scheduler.leftovers(SYSTEM.monotonic(), out_of_time):
                    self._record(final)
                    if signals.received is not None:  # there may be a million of them
                        break
        except OutputError as error:
            run.fail(error)
        self.error = run.error
        self.hosts = list(scheduler.hosts.values())
        self._close()
        self.took = SYSTEM.monotonic() - began
        self.unfinished = len(items) + len(unknown) - self.tally.ok - self.tally.failed + self.skipped_failed
        self._end(signals.received, out_of_time)
        return self.code

    # -- before --------------------------------------------------------------------------------------------------

    def _choose(self) -> tuple[list[Item], list[Item]]:
        """What is to be fetched, and what nobody knows to have been sent or not."""
        if not self.options.resume:
            return self.listing.items, []
        chosen, unknown = [], []
        again = self.options.retry_permanent
        for item in self.listing.items:
            last = self._past.finals.get(item.key)
            if last is not None and last["ok"]:
                self.skipped += 1
                self._not_ok.pop(item.key)
            elif not again and last is not None and last.get("category") in FINAL_CATEGORIES:
                self.skipped += 1
                self.skipped_failed += 1
                error = f"{last.get('error', 'failed')} (in an earlier run)"
                self.tally.fell(str(last["category"]), item.host, error, redacted(item.url))
            elif not again and item.key in self._past.started and not item.is_idempotent:
                unknown.append(item)
            else:
                chosen.append(item)
        return chosen, unknown

    def _new_host(self, name: str) -> Host:
        breaker = CircuitBreaker(name, self.options.breaker, store=self.options.store)
        host = Host(name, breaker, self.options.per_host)
        if self.options.resume and name in self._past.open_hosts:
            # whoever resumes says "look again": one probe first, as after the breaker's timeout
            breaker.force_open(reason="open at the end of the last run", until=SYSTEM.monotonic())
            host.states.append("open")
        host_wants = self._past.pause(name, SYSTEM.time()) if self.options.resume else 0.0
        if host_wants > 0:
            now = SYSTEM.monotonic()
            host.keep_pause(now, host_wants, self.options.max_retry_after)
        return host

    # -- meanwhile -----------------------------------------------------------------------------------------------

    def _supervise(self, run: Run, scheduler: Scheduler, signals: Signals, progress: Progress, deadline: float) -> bool:
        """Waits for the end, a signal or the deadline; True when there was no time left."""
        try:
            while True:
                now = SYSTEM.monotonic()
                self._show(run, scheduler, progress, now, deadline)
                if run.wait(min(progress.interval, deadline - now), signals.fd):
                    return self._ran_out(scheduler, deadline)
                if signals.received is not None:
                    run.stop(CLOSING)
                    return False
                if SYSTEM.monotonic() >= deadline:
                    run.stop(ENDING)
                    return self._ran_out(scheduler, deadline)
                run.replace_overdue()
        finally:
            progress.clear()

    def _ran_out(self, scheduler: Scheduler, deadline: float) -> bool:
        return SYSTEM.monotonic() >= deadline and (scheduler.has_left or scheduler.cut_short > 0)

    def _show(self, run: Run, scheduler: Scheduler, progress: Progress, now: float, deadline: float) -> None:
        with run.lock:
            snapshot = scheduler.snapshot()
        snapshot.total = self.tally.total - self.skipped
        snapshot.ok = self.tally.ok
        snapshot.failed = self.tally.failed - self.skipped_failed
        snapshot.left = None if deadline == NEVER else deadline - now
        progress.show(now, snapshot)

    def _record(self, final: Final) -> None:
        """Keeps the end of an item: journal first, then standard output, then the counts. From any thread."""
        record = final_record(final, SYSTEM.time())
        with self._counting:
            if self._is_closed:
                return
            self._recording += 1
        try:
            line = self._journal.write(record)
            with self._counting:
                if final.answer.ok:
                    self.tally.succeeded()
                    self._not_ok.pop(final.task.item.key, None)
                else:
                    host, url = final.task.host.name, record["url"]
                    self.tally.fell(record["category"], host, record["error"], url)
            self._emit(line)
        finally:
            with self._counting:
                self._recording -= 1
                self._counting.notify_all()

    def _announce(self, item: Item) -> None:
        self._journal.write(started_record(item, SYSTEM.time()))

    def _tell(self, host: str, news: str | float) -> None:
        """Writes down a new state of a host's breaker, or for how long the host asked for peace."""
        now = SYSTEM.time()
        self._journal.write(breaker_record(host, news, now) if isinstance(news, str) else pause_record(host, news, now))

    # -- after ---------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Keeps nothing more; what is just being kept counts still, unless it hangs."""
        end = SYSTEM.monotonic() + KEEPING
        with self._counting:
            self._is_closed = True
            while self._recording and (left := end - SYSTEM.monotonic()) > 0:
                SYSTEM.wait(self._counting, left)
        self._journal.sync()

    def _end(self, signal: int | None, out_of_time: bool) -> None:
        if self.options.failed is not None:
            try:
                write_list(self.options.failed, [item.line for item in self._not_ok.values()])
            except OutputError as error:
                self.error = self.error or error
        codes = {
            128 + (signal or 0): signal is not None,
            exits.TIMED_OUT: out_of_time,
            exits.OUTPUT: isinstance(self.error, OutputError),
            exits.NO: self.tally.is_permanent,
            exits.TRANSIENT: self.tally.is_transient,
        }
        self.code = exits.worst(code for code, holds in codes.items() if holds)

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain data, ready for JSON."""
        return {
            "items": self.tally.total,
            "ok": self.tally.ok,
            "failed": self.tally.failed,
            "skipped": self.skipped,
            "unfinished": self.unfinished,
            "duplicates": self.listing.duplicates,
            "seconds": round(self.took, 3),
            "exit_code": self.code,
            "journal": str(self._journal.path),
            "slowed": self.pace.times_slowed,
            "hosts": [
                {"host": host.name, "ok": host.ok, "failed": host.failed, "attempts": host.tries,
                 "breaker": str(host.breaker.state), "untried": host.untried, "waited_s": round(host.waited, 3)}
                for host in self.hosts
            ],
            "causes": [
                {"category": cause.category, "error": cause.text, "count": cause.hosts.total(),
                 "hosts": dict(cause.hosts), "example": cause.example}
                for cause in self.tally.causes.values()
            ],
        }  # fmt: skip


def _unknown() -> Answer:
    error = "was under way when an earlier run ended: it may have taken effect (--retry-permanent makes it again)"
    return Answer(False, error=error, category="permanent")


def write_list(path: Path, lines: list[str]) -> None:
    """Writes lines to a file, all of them or none. Raises `OutputError`."""
    text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    part = path.with_name(f".{path.name}.part")
    try:
        # a device, a pipe, /dev/stdout: nothing to replace
        if is_open_file(path) or (path.exists() and not stat.S_ISREG(path.stat().st_mode)):
            with open(path, "ab", buffering=0) as device:
                device.write(text)
            return
        part.write_bytes(text)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):  # mostly it is not there
            part.unlink()
        raise OutputError("the list of failed items to", path, error) from error
