"""The verb `collect`: options in, list and configuration checked, one run, what came of it on stderr."""

from __future__ import annotations

import os
import select
import shlex
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import exits
from ..durations import Duration
from ..output import emit_json, one_format, say, wants_colour
from ..shared_store import opened
from .journal import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .inputs import Listing
    from .job import Options

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # of certificates; what requests looks at, the first that is set
FILES, FILES_PER_WORKER = 64, 24  # a connection takes two descriptors

EPILOG = """\b
Examples:
  resilience collect urls.txt
  resilience collect urls.txt --workers 32 --per-host 2 --bodies pages/ --failed failed.txt
  resilience collect requests.jsonl --attempts 6 --timeout 5s --deadline 10m --nl > done.jsonl
  resilience collect urls.txt --resume          # after Ctrl-C, kill -9 or a bad night
  generate-urls | resilience collect - --journal night.jsonl

\b
FILE has a URL a line, or a JSON object: {"url": ..., "method": ..., "headers": {...}, "body": ..., "key": ...}.
Blank lines and lines starting with # are skipped. Without --journal the journal is FILE.journal.jsonl (for standard
input or a pipe: a file in the state directory that belongs to this very list); a run without --resume moves an older
one to *.previous.

\b
Exit codes: 0 all done; 1 permanent failures; 2 malformed input or options; 74 output cannot be written; 75 only
transient failures: run again with --resume; 78 configuration; 124 --deadline passed; 130/143 interrupted.
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are read and written."""

    source: str
    name: str  # of the list, for messages
    journal: Path
    bodies: Path | None
    nl: bool
    json: bool
    quiet: bool
    colour: bool


@click.command(epilog=EPILOG)
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--journal", type=click.Path(path_type=Path, dir_okay=False), help="Where the run keeps what is done.")
@click.option("--resume", is_flag=True, help="Go on where the journal ends: skips what is done or failed for good.")
@click.option("--retry-permanent", is_flag=True, help="With --resume: permanent failures as well.")
@click.option("--workers", type=click.IntRange(1, 1000), default=16, show_default=True, help="Requests at once.")
@click.option("--per-host", type=click.IntRange(1, 1000), default=4, show_default=True, help="... of them to one host.")
@click.option("--attempts", type=click.IntRange(1), help="Calls per item, the first included.  [4, or as configured]")
@click.option("--timeout", type=Duration(), help="Per request, its body included.  [10s, or as configured]")
@click.option("--deadline", type=Duration(), help="For the whole run; exit code 124 when it passes.")
@click.option("--nl", is_flag=True, help="Print each final record, one JSON object a line.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document.")
@click.option("--failed", type=click.Path(path_type=Path, dir_okay=False), help="List of what is not done, as FILE is.")
@click.option("--bodies", type=click.Path(path_type=Path, file_okay=False), help="Keep each body in a file there.")
@click.option("--wait-open", is_flag=True, help="Wait for open breakers instead of ending with 75.")
@click.option("--max-retry-after", type=Duration(), help="Longest Retry-After that is waited for.  [5m]")
@click.option("--store", metavar="URL", envvar="RESILIENCE_STORE", help="Share the breakers of hosts with other runs.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Configuration file.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Of the summary.  [auto]")
@click.option("-q", "--quiet", is_flag=True, help="Neither progress nor summary.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the library logs, such as breakers as they open.")
def collect(file: str, nl: bool, as_json: bool, quiet: bool, verbose: bool, **asked: Any) -> int:
    """Fetch many URLs from hosts that misbehave.

    Retries with backoff, Retry-After, a breaker and a limit per host, total deadlines, one request at a time while
    half of them fail, and a journal from which an interrupted run goes on.
    """
    one_format(as_json, nl)
    if asked["retry_permanent"] and not asked["resume"]:
        raise click.UsageError("--retry-permanent goes with --resume")
    log_to_stderr(verbose)
    name = "<stdin>" if file == "-" else file
    options = _options(asked)
    listing = _read(file, name)
    _check_certificates(listing)
    journal = asked["journal"] or _journal_for(file, listing)
    _refuse_one_file_for_two({"FILE": Path(file), "--journal": journal, "--failed": asked["failed"]})
    places = Places(file, name, journal, asked["bodies"], nl, as_json, quiet, wants_colour(asked["color"]))
    if asked["store"] is None:
        return _run(listing, options, places)
    with opened(asked["store"]) as store:
        return _run(listing, replace(options, store=store), places)


def _options(asked: dict[str, Any]) -> Options:
    """What was asked for, the configuration, the defaults: in this order."""
    from .settings import options_from

    return options_from(asked)


def _read(file: str, name: str) -> Listing:
    """The whole list, checked, before anything is sent."""
    from .inputs import InputError, read_items

    try:
        if file == "-":
            return read_items(sys.stdin.buffer.read().split(b"\n"), name)
        with open(file, "rb") as lines:
            return read_items(lines, name)
    except InputError as error:
        for problem in error.problems:
            say(problem)
        raise click.UsageError(f"{name} has malformed lines; nothing was sent") from None
    except OSError as error:
        raise click.UsageError(f"cannot read {name}: {error.strerror or error}") from None


def _check_certificates(listing: Listing) -> None:
    """A bundle that is not there would be a permanent failure of each https URL, and no run would resume them."""
    from resilience.core.errors import ConfigError

    name = next((name for name in BUNDLES if os.environ.get(name)), None)
    if name is None or os.path.exists(os.environ[name]):
        return
    if any(item.url.lower().startswith("https:") for item in listing.items):
        raise ConfigError(f"{os.environ[name]}: there is no such file; nothing was sent", origin=f"environment {name}")


def _refuse_one_file_for_two(places: dict[str, Path | None]) -> None:
    """The list may be the one that `--failed` shortens; a journal is nothing else."""
    for name, place in places.items():
        journal = places["--journal"]
        if name == "--journal" or place is None or journal is None:
            continue
        try:
            same = place.resolve() == journal.resolve() or (place.is_file() and place.samefile(journal))
        except OSError:
            continue
        if same:
            raise click.UsageError(f"{name} and --journal are the same file, {journal}; nothing was sent")


def _journal_for(file: str, listing: Listing) -> Path:
    if os.path.isfile(file):
        return Path(f"{file}.journal.jsonl")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "resilience" / "collect" / f"{listing.digest()}.jsonl"


def _run(listing: Listing, options: Options, places: Places) -> int:
    from .bodies import Bodies
    from .fetch import fetcher_factory
    from .job import Job
    from .journal import Journal, NotAJournal, Past, read_past
    from .progress import Progress
    from .seen import agent
    from .signals import Signals
    from .summary import end_lines

    try:
        past = read_past(places.journal)
    except NotAJournal as error:
        raise click.UsageError(f"{error}; give another --journal") from None
    except OSError:  # a place that cannot be read cannot be resumed from; whether it can be written shows below
        past = Past()
    _allow_files(options.workers)
    with agent(), Signals() as signals:
        bodies = Bodies(places.bodies) if places.bodies is not None else None
        journal = Journal(places.journal, anew=not options.resume, past=past)
        if journal.moved_to is not None and not places.quiet:
            say(f"resilience: the journal of an earlier run is now {journal.moved_to} (--resume would have gone on)")
        if journal.is_shared and not places.quiet:
            say(f"resilience: another run writes to {places.journal} as well")
        emit_line = line_emitter() if places.nl else lambda line: None
        job = Job(listing, options, past, journal, fetcher_factory(bodies), emit_line)
        progress = Progress(sys.stderr, quiet=places.quiet)
        code = job.run(signals, progress)
    if not places.quiet:
        *lines, verdict = end_lines(job)
        for line in lines:
            say(line)
        colour = {exits.OK: "green", exits.TRANSIENT: "yellow"}.get(code, "red")
        say(verdict, colour if places.colour else None)
    if job.unfinished or job.tally.is_transient:
        say(f"continue with: {_again(places)}")
    if job.error is not None:
        if not isinstance(job.error, OutputError):
            raise job.error
        say(f"resilience: {job.error}")
    if places.json:
        emit_json(job.as_dict())
    return code


def _allow_files(workers: int) -> None:
    """Raises this process's limit of open files as far as it may: each worker keeps connections to several hosts."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES + workers * FILES_PER_WORKER
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # not here: with too few, requests slow down to one at a time
            pass


def _again(places: Places) -> str:
    """The command that goes on where this one ended."""
    words = ["resilience", "collect", places.source, "--journal", str(places.journal), "--resume"]
    if places.bodies is not None:
        words += ["--bodies", str(places.bodies)]
    return shlex.join(words)


def line_emitter() -> Callable[[str], None]:
    """A function that writes lines to standard output whole, from any thread, and keeps nothing back.

    It goes past `sys.stdout`: a thread that hangs in a full pipe would hold its lock, and the end of the process.
    """
    lock = threading.Lock()
    file = sys.stdout.fileno()

    def write(line: str) -> None:
        rest = memoryview(line.encode("utf-8", "backslashreplace"))
        with lock:
            try:
                while rest:
                    try:
                        rest = rest[os.write(file, rest) :]
                    except BlockingIOError:  # somebody made it non-blocking, and it is full
                        select.select([], [file], [])
            except OSError as error:
                raise OutputError("to", "standard output", error) from error

    return write


def log_to_stderr(verbose: bool) -> None:
    """Shows what the library logs, or keeps it quiet."""
    if verbose:  # else what a breaker logs stands in the table
        import logging

        logging.basicConfig(stream=sys.stderr, format="resilience: %(message)s", level=logging.INFO)
