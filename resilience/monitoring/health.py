"""The health score: 100 less what is wrong, each deduction with its reason.

| deduction | for |
|---|---|
| 30 | fewer than half of the workers run (specification, "Health Checks": at least 50 %) |
| up to 30 | calls of the last five minutes that failed: the share of the worst operation with at least 20 calls |
| 10 each, up to 30 | breakers that refuse calls |
| 10 each | memory, file descriptors or threads above 80 % of their limit (25 above 95 %) |
| 5 each, up to 20 | abandoned calls that still run |
| 5 each, up to 20 | leaked resources |
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MIN_CALLS = 20
PRESSURE, CRITICAL = 0.80, 0.95


def health(
    *,
    workers_healthy: bool | None,
    recent: Mapping[str, Mapping[str, int]],
    breakers: Mapping[str, str],
    usage: Mapping[str, float | None],
    abandoned: int = 0,
    leaks: int = 0,
) -> dict[str, Any]:
    """The score (0 to 100) and the list of its deductions with their reasons; `workers_healthy` None: no workers."""
    deductions: list[dict[str, Any]] = []

    def deduct(points: float, reason: str) -> None:
        if points > 0:
            deductions.append({"points": round(points, 1), "reason": reason})

    if workers_healthy is False:
        deduct(30, "fewer than half of the workers run")
    shares = {
        name: counts["failures"] / (counts["failures"] + counts["successes"])
        for name, counts in recent.items()
        if counts["failures"] + counts["successes"] >= MIN_CALLS
    }
    if shares:
        worst = max(shares, key=lambda name: shares[name])
        deduct(30 * shares[worst], f"{shares[worst]:.0%} of the calls of {worst!r} failed in the last five minutes")
    refusing = [name for name, state in sorted(breakers.items()) if state in ("open", "forced_open")]
    if refusing:
        deduct(min(30, 10 * len(refusing)), f"breakers refuse calls: {', '.join(refusing[:5])}")
    for name, share in usage.items():
        if share is not None and share > PRESSURE:
            deduct(25 if share > CRITICAL else 10, f"{share:.0%} of the limit of {name} in use")
    if abandoned:
        deduct(min(20, 5 * abandoned), f"{abandoned} abandoned calls still run")
    if leaks:
        deduct(min(20, 5 * leaks), f"{leaks} resources leaked")
    score = max(0.0, 100.0 - sum(deduction["points"] for deduction in deductions))
    return {"score": round(score, 1), "deductions": deductions}
