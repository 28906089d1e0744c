"""The verb `demo`: a plain loop and `collect` beside each other, on six local hosts of which four misbehave."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resilience.core.clock import SYSTEM

from . import exits
from .output import emit

if TYPE_CHECKING:
    from resilience.testing.dead_ports import DeadPort
    from resilience.testing.fault_connection import Connection, Request
    from resilience.testing.fault_server import FaultServer

    from .collect.inputs import Listing
    from .collect.job import Job

LOCAL = "127.0.0.1"
URLS = 10  # for each host
SEED = 7
FLAKY = 0.3
ALLOWED, PERIOD = 6, 1.0  # requests that the limited host answers before it asks for so many seconds of rest
DRIP_SIZE, DRIP_EVERY = 10, 0.1  # a body of so many bytes, one at a time: 1 s for an answer
PLAIN_TIMEOUT = 2

EPILOG = """\b
Examples:
  resilience demo
"""


@click.command(epilog=EPILOG)
def demo() -> int:
    """Six local hosts, four of them bad: a plain loop beside collect. No network, about 20 s."""
    from .collect.command import log_to_stderr

    log_to_stderr(False)
    os.environ["no_proxy"] = LOCAL  # where the environment names a proxy, it is not one to the hosts in this process
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="resilience-demo-")))
        hosts = stack.enter_context(_six_hosts())
        emit(
            f"6 local hosts x {URLS} URLs: 2 healthy, 1 flaky ({FLAKY:.0%} 503), 1 rate-limited (429 + Retry-After: 1),"
            " 1 dripping (1 s an answer), 1 dead\n"
        )
        emit(f"[1/3] a plain loop: for url in urls: requests.get(url, timeout={PLAIN_TIMEOUT})")
        emit(f"      {_plain_loop(hosts.urls)}\n")
        emit("[2/3] resilience collect urls.txt, the same list")
        first = _collect(hosts.urls, folder, resume=False)
        _show(first, hosts.names)
        if first.code in (exits.INTERRUPTED, exits.TERMINATED):
            return first.code
        emit("[3/3] dead.local comes back - the same command with --resume")
        stack.enter_context(hosts.revive())
        second = _collect(hosts.urls, folder, resume=True)
        _show(second, hosts.names)
        if second.code in (exits.INTERRUPTED, exits.TERMINATED):
            return second.code
        emit("Your own list:  resilience collect urls.txt --failed failed.txt")
        as_told = first.code == exits.TRANSIENT and second.code == exits.OK
        return exits.OK if as_told else exits.NO


class Hosts:
    """The six hosts: their URLs, the names they are shown by, and the dead one's return."""

    def __init__(self, servers: dict[str, str], dead: DeadPort) -> None:
        self.names = {url.removeprefix("http://"): name for name, url in servers.items()}
        self.urls = [f"{url}/{number}" for url in servers.values() for number in range(1, URLS + 1)]
        self._dead = dead

    def revive(self) -> FaultServer:
        """The dead host answers from now on."""
        from resilience.testing.fault_server import FaultServer

        self._dead.close()
        return FaultServer(host=self._dead.host, port=self._dead.port, behave=_healthy)


@contextmanager
def _six_hosts() -> Iterator[Hosts]:
    from resilience.testing.dead_ports import DeadPort
    from resilience.testing.fault_server import FaultServer

    behaviours: dict[str, Callable[[Request, Connection], None]] = {
        "a.local": _healthy, "b.local": _healthy, "flaky.local": _flaky, "limited.local": _Limit(), "drip.local": _drip,
    }  # fmt: skip
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(FaultServer(seed=SEED, behave=behave)).url for name, behave in behaviours.items()
        }
        dead = stack.enter_context(DeadPort())
        yield Hosts({**servers, "dead.local": dead.url}, dead)


def _healthy(request: Request, connection: Connection) -> None:
    connection.answer(200, b"here you are\n")


def _flaky(request: Request, connection: Connection) -> None:
    failing = connection.server.draw() < FLAKY and connection.server.count(request.target) % 4 != 0
    connection.answer(503 if failing else 200, b"flaky\n")


def _drip(request: Request, connection: Connection) -> None:
    connection.send(connection.head(200, DRIP_SIZE))
    connection.drip(b"x" * DRIP_SIZE, DRIP_EVERY)


class _Limit:
    """Answers `ALLOWED` requests, asks the next ones to come back in `PERIOD` seconds, and after that begins anew."""

    def __init__(self) -> None:
        self._answered = 0
        self._closed_until: float | None = None

    def __call__(self, request: Request, connection: Connection) -> None:
        if self._closed_until is not None and request.at >= self._closed_until:
            self._answered, self._closed_until = 0, None
        if self._answered >= ALLOWED:
            self._closed_until = self._closed_until or request.at + PERIOD
            connection.answer(429, b"slow down\n", Retry_After=f"{PERIOD:g}")
            return
        self._answered += 1
        connection.answer(200, b"within the limit\n")


def _plain_loop(urls: list[str]) -> str:
    """What people write first, and what comes of it."""
    import requests

    began = SYSTEM.monotonic()
    fetched = 0
    errors: Counter[str] = Counter()
    for url in urls:
        try:
            answer = requests.get(url, timeout=PLAIN_TIMEOUT)
        except requests.Timeout:
            errors["timed out"] += 1
            continue
        except requests.ConnectionError:
            errors["refused"] += 1
            continue
        if answer.ok:
            fetched += 1
        else:
            errors[str(answer.status_code)] += 1
    kinds = ", ".join(f"{number}x {kind}" for kind, number in sorted(errors.items()))
    return f"{fetched}/{len(urls)} in {SYSTEM.monotonic() - began:.1f} s   {kinds}"


def _collect(urls: list[str], folder: Path, *, resume: bool) -> Job:
    """The main job over these URLs, with the defaults of `resilience collect`."""
    from .collect.bodies import Bodies
    from .collect.fetch import fetcher_factory
    from .collect.inputs import read_items
    from .collect.job import Job, Options
    from .collect.journal import Journal, read_past
    from .collect.progress import Progress
    from .collect.signals import Signals

    listing: Listing = read_items([url.encode() for url in urls], "urls.txt")
    path = folder / "urls.txt.journal.jsonl"
    with Signals() as signals:
        journal = Journal(path, anew=not resume)
        job = Job(listing, Options(resume=resume), read_past(path), journal, fetcher_factory(Bodies(folder / "bodies")))
        job.run(signals, Progress(sys.stderr))
    return job


def _show(job: Job, names: dict[str, str]) -> None:
    from .collect.summary import host_table, verdict

    for line in [*host_table(job.hosts, names), verdict(job)]:
        emit(f"      {line}")
    emit("")
