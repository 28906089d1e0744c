"""`resilience status`: the health of a running process, as JSON."""

from __future__ import annotations

from typing import Any

import click

from resilience.agent.client import Unreachable

from .. import exits
from ..durations import Duration
from ..output import emit_json, emit_line, one_format, say
from .top import NONE_FOUND

HEALTHY_FROM = 70.0  # points of the health score

EPILOG = """\b
Examples:
  resilience status                  # every process with an agent
  resilience status 4711
  resilience status 4711 -q && echo healthy

\b
Not healthy is: an alert fires, a breaker refuses calls, fewer than half of the workers run, or the health score is
below --min-score. The reasons are in the answer.

\b
Exit codes: 0 healthy; 1 not; 69 no such process, none with an agent, or no answer.
"""


@click.command(epilog=EPILOG)
@click.argument("pid", required=False, type=click.IntRange(1))
@click.option("--min-score", type=click.FloatRange(0, 100), default=HEALTHY_FROM, show_default=True, help="0 to 100.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; the default.")
@click.option("--nl", is_flag=True, help="A JSON object a line.")
@click.option("-q", "--quiet", is_flag=True, help="The exit code only.")
@click.option("--timeout", type=Duration(), default="2s", show_default=True, help="For its agent to answer.")
def status(pid: int | None, min_score: float, as_json: bool, nl: bool, quiet: bool, timeout: float) -> int:
    """The health of a process as JSON, for health checks.

    Without PID: of every process of yours that has an agent; healthy when all are.
    """
    from .view import View, every_report

    one_format(as_json, nl)
    try:
        reports = every_report(timeout) if pid is None else [View(pid, timeout).look()]
        if not reports:
            raise Unreachable(NONE_FOUND, "no agent")
    except Unreachable as missing:
        say(f"resilience: {missing}")
        return exits.UNREACHABLE
    verdicts = [health_of(seen, min_score) for seen in reports]
    if not quiet and nl:
        for verdict in verdicts:
            emit_line(verdict)
    elif not quiet:
        emit_json(verdicts[0] if pid is not None else verdicts)
    unknown = [verdict for verdict in verdicts if verdict["healthy"] is None]
    for verdict in unknown:
        say(f"resilience: {verdict['reasons'][0]}")
    if any(verdict["healthy"] is False for verdict in verdicts):
        return exits.NO
    return exits.UNREACHABLE if unknown else exits.OK


def health_of(seen: dict[str, Any], min_score: float = HEALTHY_FROM) -> dict[str, Any]:
    """The verdict on one process, with its reasons; `healthy` None where its agent does not answer."""
    if seen["agent"] != "answered":
        return {"pid": seen["pid"], "healthy": None, "status": "unknown", "score": None, "reasons": [seen["hint"]]}
    deductions = [deduction for health in seen["health"] for deduction in health["deductions"]]
    score = min((health["score"] for health in seen["health"]), default=100.0)
    reasons = [deduction["reason"] for deduction in deductions]
    refusing = sorted(name for name, entry in seen["breakers"].items() if entry["state"] in ("open", "forced_open"))
    if refusing and not any("breakers refuse" in reason for reason in reasons):
        reasons.append(f"breakers refuse calls: {', '.join(refusing)}")
    reasons += [_alert(alert) for alert in seen["alerts"]]
    running = [entry["is_running"] for entry in seen["workers"].values()]
    too_few = bool(running) and sum(running) / len(running) < 0.5
    healthy = not (seen["alerts"] or refusing or too_few or score < min_score)
    return {
        "pid": seen["pid"],
        "healthy": healthy,
        "status": "healthy" if healthy else "unhealthy",
        "score": score,
        "reasons": reasons,
        "command": seen["command"],
        "breakers": {name: entry["state"] for name, entry in seen["breakers"].items()},
        "workers": seen["workers"],
        "abandoned": seen["abandoned"],
        "alerts": seen["alerts"],
        "operations": seen["rates"],
        "degradation_mode": any(seen["degradation_mode"]),
    }


def _alert(alert: dict[str, Any]) -> str:
    subject = alert.get("operation") or alert.get("resource") or ""
    return f"alert {alert['rule']} {subject}: {alert['value']:.3g} is above {alert['threshold']:g}"
