"""What is left of a fan-out whose time is over: items that still run, and input that was not read."""

from __future__ import annotations

import threading

from ..core.stacks import stacks_of
from .ledger import LEDGER, Abandoned
from .worker_thread import WorkerThread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .fan_out import Job


class Leftovers:
    """The threads of a job by worker, and the ledger's entries of those that were left behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[int, threading.Thread] = {}
        self._entries: dict[int, Abandoned] = {}

    def begin(self, number: int) -> None:
        """Notes the thread of a worker."""
        self._threads[number] = threading.current_thread()

    def end(self, number: int) -> None:
        """Strikes a worker out that has ended, also where it was given up."""
        with self._lock:
            self._threads.pop(number, None)
            entry = self._entries.pop(number, None)
        if entry is not None:
            LEDGER.ended(entry)

    def abandon(self, name: str, numbers: list[int]) -> dict[int, str]:
        """Enters these workers into the ledger until they end; gives where each of them hangs, as text."""
        threads = {number: self._threads[number] for number in numbers if number in self._threads}
        stacks = stacks_of(thread.ident for thread in threads.values() if thread.ident is not None)
        found = {}
        for number, thread in threads.items():
            found[number] = stacks.get(thread.ident or -1, "")
            entry = Abandoned(name, thread.name, found[number], is_worker=True)
            with self._lock:
                if number not in self._threads:  # it has just ended
                    continue
                self._entries[number] = entry
                LEDGER.abandon(entry)
            if isinstance(thread, WorkerThread) and thread.owned is not None:
                thread.owned.abandon()
        return found

    def read_on(self, job: Job, patience: float | None) -> list[Any]:
        """What is left of the input, as far as it can be read within `patience` seconds (None: all of it)."""
        if patience is None:
            with job.reading:
                job.exhausted = True
                return list(job.source)
        items: list[Any] = []
        reader = threading.Thread(target=_read_on, args=(job, items), name="resilience-reader", daemon=True)
        try:
            reader.start()
        except RuntimeError:  # no thread to be had: what was not read stays unread
            return items
        reader.join(patience)
        job.exhausted = True
        return items[:]


def _read_on(job: Job, items: list[Any]) -> None:
    with job.reading:
        while not job.exhausted:
            try:
                item = next(job.source)
            except StopIteration:
                return
            except Exception as error:
                job.source_error = error
                return
            items.append(item)
