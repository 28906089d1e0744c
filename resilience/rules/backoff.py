"""How long to wait before a retry: the backoff first, capped, and the jitter within it.

The cap comes before the jitter. The other way round most late delays fall exactly on the cap, and a fleet that failed
together retries together.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Jitter = bool | str | tuple[str, float]

EXPONENTS = 1100  # 2.0 ** 1024 overflows: beyond this the power is infinite anyway
FOREVER = 1e15  # seconds: what an uncapped delay stays below, so that arithmetic and clocks never meet infinity


def raw_delay(backoff: str | Callable[[int], float], number: int, base: float, factor: float) -> float:
    """The delay before retry `number` (from 0), neither capped nor jittered, in seconds."""
    if callable(backoff):
        value = float(backoff(number))
        return value if value >= 0 else 0.0
    if backoff == "constant":
        return base
    if backoff == "linear":
        return base * (number + 1)
    if base == 0:
        return 0.0
    try:
        return base * factor ** min(number, EXPONENTS)
    except OverflowError:
        return float("inf")


def capped(delay: float, max_delay: float | None) -> float:
    """The delay, not above the cap; without a cap it is still finite."""
    limit = FOREVER if max_delay is None else max_delay
    return delay if delay <= limit else limit


def jittered(
    value: float,
    jitter: Jitter,
    draw: Callable[[], float],
    max_delay: float | None,
    base: float,
    previous: float | None,
) -> float:
    """`value` spread by `jitter`; `draw()` gives a number in [0, 1), `previous` is the last delay of the call.

    full: U(0, v); equal: v/2 + U(0, v/2); decorrelated: U(base, min(cap, 3 * previous)) (AWS Architecture Blog,
    "Exponential Backoff And Jitter"); proportional f: U(v * (1-f), v * (1+f)); additive j: U(v, v + j). The last two
    end at the cap; an additive range keeps its width below it, for otherwise every late delay would be the cap itself.
    """
    if jitter is False:
        return value
    if jitter is True or jitter == "full":
        return value * draw()
    if jitter == "equal":
        return value / 2 + value / 2 * draw()
    if jitter == "decorrelated":
        low, top = capped(base, max_delay), capped(3 * (base if previous is None else previous), max_delay)
    else:
        assert isinstance(jitter, tuple)
        kind, amount = jitter
        if kind == "proportional":
            low, top = value * (1 - amount), capped(value * (1 + amount), max_delay)
        else:
            top = capped(value + amount, max_delay)
            low = max(0.0, min(value, top - amount))
    return capped(low + max(0.0, top - low) * draw(), max_delay)
