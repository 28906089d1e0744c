"""`resilience config init|check|show`."""

from __future__ import annotations

import os

import click

from . import exits
from .lookup import LOCAL, config_path, settings
from .output import OutputError, emit, emit_json, emit_line, one_format, say, table

TEMPLATE = """\
# The configuration of resilience-toolkit. Every key may be left out; these are the defaults.
# Durations: 100ms, 5s, 1m30s; a bare number is seconds. The environment wins over this file
# (CIRCUIT_BREAKER_TIMEOUT=30s, RETRY_MAX_ATTEMPTS=5, API_CALL_TIMEOUT=10s, ...).
error_recovery:
  circuit_breaker:
    failure_threshold: 5      # failures in a row that open it
    success_threshold: 3      # successes of probes that close it
    timeout: 60s              # open for so long, then probes may pass
    max_requests: 10          # probes at once
    reset_timeout: 300s       # failures are forgotten after so much quiet

  retry:
    max_retries: 3            # repeats; max_attempts: 4 says the same in calls
    base_delay: 100ms
    max_delay: 5s
    backoff_factor: 2.0
    jitter: true

  timeouts:
    api_call: 10s
    database_query: 5s
    redis_operation: 2s
    concurrent_op: 15s

  # operations:
  #   market_data:
  #     timeout: 8s            # of one attempt
  #     total_timeout: 20s     # of the call with its retries
  #     isolation: thread      # or caller
  #     circuit_breaker: {failure_threshold: 10}
  #     retry: {max_retries: 1}
  #     retry_budget: {ratio: 20%, min_per_second: 1, ttl: 10s}
  #     bulkhead: {max_concurrent: 8, max_queue: 16, max_wait: 1s}
  #     rate_limit: {rate: 10, per: 1s}
"""


@click.group(
    epilog="""\b
Examples:
  resilience config init
  resilience config check resilience.yaml
  resilience config show --origin
"""
)
def config() -> None:
    """Write, check and show the configuration."""


@config.command(epilog="\b\nExamples:\n  resilience config init\n")
def init() -> int:
    """Write a commented ./resilience.yaml; never over an existing one."""
    try:
        file = open(LOCAL, "x", encoding="utf-8")  # noqa: SIM115 # whether it was there is one question, writing another
    except FileExistsError:
        say(f"resilience: {LOCAL} exists and is left as it is")
        return exits.NO
    except OSError as error:
        raise OutputError(f"cannot write {LOCAL}: {error.strerror or error}") from error
    try:
        with file:
            file.write(TEMPLATE)
    except OSError as error:
        os.unlink(LOCAL)
        raise OutputError(f"cannot write {LOCAL}: {error.strerror or error}") from error
    say(f"written: {LOCAL}")
    return exits.OK


@config.command(epilog="\b\nExamples:\n  resilience config check\n  resilience config check deploy/resilience.yaml\n")
@click.argument("file", required=False)
@click.option("--json", "as_json", is_flag=True, help="What is wrong as one JSON document on stdout.")
@click.option("--nl", is_flag=True, help="... as one JSON object a line.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr: the exit code says it.")
def check(file: str | None, as_json: bool, nl: bool, quiet: bool) -> int:
    """Check FILE (default: ./resilience.yaml) and the environment; names everything that is wrong."""
    from resilience.config.sources import check_sources

    one_format(as_json, nl)
    path = config_path(file)
    errors = check_sources(path)
    facts = [
        {"origin": error.origin, "key": error.key, "value": error.value, "reason": error.message} for error in errors
    ]
    if as_json:
        emit_json({"file": path, "ok": not errors, "errors": facts})
    elif nl:
        for fact in facts:
            emit_line(fact)
    if quiet:
        return exits.CONFIG if errors else exits.OK
    for error in errors:
        say(str(error))
    if errors:
        say(f"{len(errors)} error{'s' if len(errors) != 1 else ''}")
        return exits.CONFIG
    say(f"{path or 'defaults and environment'}: ok")
    return exits.OK


@config.command(epilog="\b\nExamples:\n  resilience config show --origin\n  resilience config show --json\n")
@click.option("--config", "file", metavar="FILE", help="The configuration file.")
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option("--nl", is_flag=True, help="As one JSON object a line.")
def show(file: str | None, origin: bool, as_json: bool, nl: bool) -> int:
    """Show every value in force; attempts (calls) and retries (repeats) both."""
    one_format(as_json, nl)
    rows = settings(file).rows()
    if nl:
        for path, value, where in rows:
            emit_line({"key": path, "value": value, "origin": where})
        return exits.OK
    if as_json:
        emit_json({path: {"value": value, "origin": where} for path, value, where in rows})
        return exits.OK
    shown = [(path, value, where) if origin else (path, value) for path, value, where in rows]
    emit(table(("KEY", "VALUE", "ORIGIN") if origin else ("KEY", "VALUE"), shown))
    return exits.OK
