"""The verb `probe`: is it there, and does it speak its protocol?"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import click

from .. import exits
from ..durations import Duration
from ..output import emit, emit_json, emit_line, one_format, redacted, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .handshakes import Seen

EPILOG = """\b
Examples:
  resilience probe http://localhost:8080/health redis://localhost:6379 postgresql://me@db/app
  resilience probe tcp://broker:9092 --timeout 1s
  resilience probe --wait 60s --consecutive 3 postgresql://me@db/app && ./migrate
  resilience probe --nagios https://example.org/

\b
http(s): GET is answered below 400. redis: PING after AUTH. postgresql: login and SELECT 1. tcp: a connection.
Exit codes: 0 all healthy; 1 one is not; 2 unknown scheme. With --nagios 0 OK, 2 CRITICAL.
"""
CRITICAL = 2  # of Nagios
AT_ONCE = 32
BETWEEN = 0.5  # seconds between two tries


@click.command(epilog=EPILOG)
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--timeout", type=Duration(), default="5s", show_default=True, help="For one try, names included.")
@click.option("--wait", type=Duration(), help="Try again until all are healthy, so long at most.")
@click.option("--consecutive", type=click.IntRange(1), default=1, show_default=True, help="Healthy so often in a row.")
@click.option("--nagios", is_flag=True, help="One line and the exit codes of a Nagios check.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option("--nl", is_flag=True, help="One JSON object a line.")
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
def probe(
    urls: tuple[str, ...], timeout: float, wait: float | None, consecutive: int, nagios: bool, as_json: bool, nl: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Do services answer as they should? http, https, tcp, redis, rediss, postgresql."""
    from .handshakes import HANDSHAKES, as_dict

    one_format(as_json, nl)
    for url in urls:
        scheme, mark, _ = url.partition("://")
        if not mark or scheme not in HANDSHAKES:
            schemes = ", ".join(f"{one}://" for one in HANDSHAKES)
            raise click.UsageError(f"{redacted(url)!r} cannot be probed: use {schemes}")
    seen = _all(urls, timeout, wait, consecutive, None if quiet else say)
    healthy = all(one.ok for one in seen)
    if as_json:
        emit_json([as_dict(one, redacted(one.url)) for one in seen])
    elif nagios:
        emit(_nagios(seen))
    elif nl:
        for one in seen:
            emit_line(as_dict(one, redacted(one.url)))
    elif not quiet:
        for one in seen:
            mark = "ok  " if one.ok else "FAIL"
            emit(f"{mark}  {redacted(one.url)}  {one.took * 1000:.1f} ms  {redacted(one.detail)}")
    if healthy:
        return exits.OK
    return CRITICAL if nagios else exits.NO


def _all(
    urls: Sequence[str], timeout: float, wait: float | None, consecutive: int, tell: Callable[[str], object] | None
) -> list[Seen]:
    """The last try of each; those that are healthy are not tried again. `tell` hears what is still waited for."""
    from .handshakes import unhealthy

    waiting = deque(enumerate(urls))
    seen: dict[int, Seen] = {}

    def work() -> None:
        while waiting:
            try:
                number, url = waiting.popleft()
            except IndexError:  # another was faster
                return
            try:
                seen[number] = _one(url, timeout, wait, consecutive, tell)
            except Exception as error:
                seen[number] = unhealthy(url, error)

    # Daemons, not a pool: those that wait for a service must not hold up who presses Ctrl-C.
    threads = [threading.Thread(target=work, name="resilience-probes", daemon=True) for _ in urls[:AT_ONCE]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [seen[number] for number in range(len(urls))]


def _one(url: str, timeout: float, wait: float | None, consecutive: int, tell: Callable[[str], object] | None) -> Seen:
    from resilience.core.clock import SYSTEM

    from .handshakes import try_once

    end = SYSTEM.monotonic() + (wait or 0.0)
    in_a_row, told = 0, ""
    while True:
        left = end - SYSTEM.monotonic()
        seen = try_once(url, timeout if wait is None else max(0.01, min(timeout, left)))
        in_a_row = in_a_row + 1 if seen.ok else 0
        if in_a_row >= consecutive:
            return seen
        if (wait is None and not seen.ok) or (wait is not None and end - SYSTEM.monotonic() <= BETWEEN):
            return seen if not seen.ok else _short(seen, in_a_row, consecutive)
        if tell is not None and wait is not None and not seen.ok and seen.detail != told:
            told = seen.detail
            tell(f"resilience: {url} is not there yet: {told}")
        SYSTEM.sleep(BETWEEN)


def _short(seen: Seen, in_a_row: int, consecutive: int) -> Seen:
    seen.ok = False
    seen.detail += f", but only {in_a_row} of {consecutive} in a row"
    return seen


def _nagios(seen: Sequence[Seen]) -> str:
    bad = [one for one in seen if not one.ok]
    told = "; ".join(f"{redacted(one.url)} {redacted(one.detail)}" for one in bad or seen)
    figures = " ".join(f"'{redacted(one.url)}'={one.took:.4f}s" for one in seen)
    return f"{'CRITICAL' if bad else 'OK'} - {told} | {figures}"
