"""`resilience VERB`: each verb is a module of its own, imported when it is used."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

import click

from . import exits
from .streams import flush_stderr, is_unread, open_standard_streams, silence_stdout

# verb -> (module, attribute, one line of help)
VERBS = {
    "breakers": (".breakers", "breakers", "Shared circuit breakers: list, show, trip, reset, check, from any shell."),
    "collect": (".collect.command", "collect", "Fetch many URLs: retries, breakers and deadlines per host; resumable."),
    "config": (".config", "config", "Write, check and show the configuration, with the origin of each value."),
    "demo": (".demo", "demo", "Six local hosts, four of them bad: a plain loop beside collect. No network."),
    "exec": (".execute.command", "exec_", "Run one command with attempts, timeout, breaker and lock; for cron."),
    "explain": (".explain", "explain", "What a policy can cost at worst: calls, time, sleeps; and contradictions."),
    "probe": (".probe.command", "probe", "Do services answer as they should? http, tcp, redis, postgresql; --wait."),
    "status": (".live.status", "status", "The health of a running process as JSON: 0 healthy, 1 not, 69 unreachable."),
    "doctor": (".live.doctor", "doctor", "What ails a running process: the troubleshooting lists, measured."),
    "report": (".report.command", "report", "Rates by operation, errors by group, alerts; from journals and stores."),
    "top": (".live.top", "top", "What a running process is doing: operations, breakers, rates, stacks; no ptrace."),
    "completion": (".completion", "completion", "Print the completion script for bash, zsh or fish."),
}

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

EPILOG = """\b
Examples:
  resilience demo
  resilience collect urls.txt --workers 16 --per-host 4 --failed failed.txt
  resilience config check
  resilience explain api_call
"""


class LazyGroup(click.Group):
    """A group whose verbs are imported when they run; the list of them needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        from importlib import import_module

        module, attribute, _ = VERBS[cmd_name]
        command: click.Command = getattr(import_module(module, __package__), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Verbs: {', '.join(sorted(VERBS))}."
            raise click.UsageError(f"there is no verb {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, VERBS[verb][2]) for verb in sorted(VERBS)])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from resilience import __version__

        click.echo(f"resilience {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings=CONTEXT, epilog=EPILOG)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Its version.")
def cli() -> None:
    """Resilience for scripts, batch jobs and people at a shell.

    Data goes to stdout, talk to stderr. Every verb has -h.
    """


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and ends the process with its exit code; no traceback reaches the user."""
    if argv is None:
        open_standard_streams()
    code = run(sys.argv[1:] if argv is None else argv)
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left but to end: no traceback from that, either
    code = _flushed(code)
    flush_stderr()
    if argv is None:
        sys.exit(code)
    return code


def run(argv: list[str]) -> int:
    """Runs the command line; gives its exit code."""
    previous = _on_term(_Terminated.raise_now)
    try:
        result = cli.main(args=argv, prog_name="resilience", standalone_mode=False)
        return result if isinstance(result, int) else exits.OK
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except SystemExit as ended:
        if ended.code == 1 and is_unread():  # what click makes of a help that nobody reads
            silence_stdout()
            return exits.OK
        return ended.code if isinstance(ended.code, int) else exits.NO
    except click.ClickException as refused:
        with suppress(OSError):  # a full or closed stderr
            refused.show()
        return exits.USAGE if isinstance(refused, click.UsageError) else refused.exit_code
    except BrokenPipeError:
        silence_stdout()
        return exits.OK
    except Exception as error:
        return _explained(error)
    finally:
        _on_term(previous)


def _explained(error: Exception) -> int:
    """The exit code of an error, said in one line on stderr."""
    from resilience.core.errors import ConfigError, DeadlineExceeded, StoreUnavailable

    from .output import OutputError, say

    if isinstance(error, OSError) and _is_of_stdout(error):
        error = OutputError(f"cannot write to standard output: {error.strerror or error}")
        silence_stdout()
    say(f"resilience: {error}")
    if isinstance(error, ConfigError):
        return exits.CONFIG
    if isinstance(error, OutputError) or type(error).__name__ == "OutputError":
        return exits.OUTPUT
    if isinstance(error, StoreUnavailable):
        return exits.UNREACHABLE
    if isinstance(error, DeadlineExceeded):
        return exits.TIMED_OUT
    if os.environ.get("RESILIENCE_DEBUG"):
        import traceback

        traceback.print_exception(error)
    else:
        say(f"resilience: {type(error).__name__} is a defect; RESILIENCE_DEBUG=1 shows where")
    return exits.NO


def _is_of_stdout(error: OSError) -> bool:
    """Whether what click writes itself, such as the help, did not fit: such an error names no file."""
    import errno

    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)


class _Terminated(SystemExit):
    """SIGTERM came while a verb ran that has no handler of its own. Wherever it is raised, it is an exit code."""

    @classmethod
    def raise_now(cls, number: int, frame: object) -> None:
        raise cls(exits.TERMINATED)


def _on_term(handler: Any) -> Any:
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread: whoever runs us there keeps its handlers
        return None


def _flushed(code: int) -> int:
    """Flushes stdout; a full disk is exit code 74 even when only the last buffer does not fit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    except (OSError, ValueError) as error:
        from .output import say

        say(f"resilience: cannot write to standard output: {getattr(error, 'strerror', None) or error}")
        silence_stdout()
        return exits.worst((code, exits.OUTPUT)) if code in (exits.OK, exits.NO, exits.TRANSIENT) else code
    return code
