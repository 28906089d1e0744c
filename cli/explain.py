"""`resilience explain [OPERATION]`: what a policy can come to at worst."""

from __future__ import annotations

import click

from . import exits
from .lookup import settings
from .output import emit, emit_json, emit_line, one_format

PRESETS = ("api_call", "database_operation", "redis_operation", "concurrent_operation")


@click.command(
    epilog="""\b
Examples:
  resilience explain
  resilience explain api_call --json
"""
)
@click.argument("operation", required=False)
@click.option("--config", "file", metavar="FILE", help="The configuration file.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option("--nl", is_flag=True, help="As one JSON object a line.")
def explain(operation: str | None, file: str | None, as_json: bool, nl: bool) -> int:
    """Worst-case calls, time and sleeps of OPERATION (default: all that are known), and contradictions."""
    from resilience.config.durations import format_duration
    from resilience.config.explain import explain_operation

    one_format(as_json, nl)
    known = settings(file)
    names = [operation] if operation else [*dict.fromkeys((*PRESETS, *known.operation_names))]
    explained = [explain_operation(known, name) for name in names]
    if as_json:
        emit_json(explained[0] if operation else explained)
        return exits.OK
    for facts in explained:
        if nl:
            emit_line(facts)
            continue
        calls = "without limit" if facts["attempts"] is None else f"{facts['attempts']} ({facts['retries']} retries)"
        emit(f"{facts['operation']}")
        emit(f"  calls at worst        {calls}")
        emit(f"  one attempt           {format_duration(facts['attempt_timeout'])}, isolation {facts['isolation']}")
        emit(f"  sleeps at worst       {format_duration(facts['longest_sleeps'])}")
        wall = facts["worst_wall_time"]
        emit(f"  wall time at worst    {'without limit' if wall is None else format_duration(round(wall, 3))}")
        for warning in facts["warnings"]:
            emit(f"  note: {warning}")
    return exits.OK
