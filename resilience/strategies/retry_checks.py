"""What the parameters of a retry policy may be, each refused by its name."""

from __future__ import annotations

from ..core.errors import require, require_count, require_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .retry_policy import RetryPolicy

BACKOFFS = ("exponential", "constant", "linear", "decorrelated")
JITTERS = ("full", "equal", "decorrelated")
CHOICES = {"on_open": ("raise", "wait"), "overlap": ("forbid", "allow"), "nested": ("owner", "multiply")}
JITTER_KINDS = "True, False, 'full', 'equal', 'decorrelated', ('proportional', 0 to 1) or ('additive', seconds)"


def check(policy: RetryPolicy) -> None:
    """Raises `ConfigError` for the first parameter of `policy` that makes no sense; its `key` is the parameter."""
    _check_numbers(policy)
    require(_is_jitter(policy.jitter), "jitter", policy.jitter, f"expected {JITTER_KINDS}")
    known = callable(policy.backoff) or policy.backoff in BACKOFFS
    require(known, "backoff", policy.backoff, f"expected one of {', '.join(BACKOFFS)} or a callable")
    for key in ("retry_on", "give_up_on"):
        value = getattr(policy, key)
        fine = value is None or are_types(value) or (callable(value) and not isinstance(value, type))
        require(fine, key, value, "expected exception types or a predicate")
    predicate = policy.retry_on_result
    require(predicate is None or callable(predicate), "retry_on_result", predicate, "expected a predicate")
    for key, allowed in CHOICES.items():
        value = getattr(policy, key)
        require(value in allowed, key, value, f"expected {' or '.join(map(repr, allowed))}")
    for key in ("idempotent", "raise_on_result"):
        require(isinstance(getattr(policy, key), bool), key, getattr(policy, key), "expected True or False")
    has_budget = policy.budget is None or hasattr(policy.budget, "take_retry")
    require(has_budget, "budget", policy.budget, "expected a RetryBudget")


def _check_numbers(policy: RetryPolicy) -> None:
    require_count("max_retries", policy.max_retries, minimum=0, optional=True)
    require_seconds("base_delay", policy.base_delay)
    require_seconds("max_delay", policy.max_delay, optional=True)
    require_seconds("max_elapsed", policy.max_elapsed, optional=True)
    require_seconds("max_retry_after", policy.max_retry_after, optional=True)
    if policy.max_delay is not None and not callable(policy.backoff):
        least = f"expected at least base_delay ({policy.base_delay:g})"
        require(policy.max_delay >= policy.base_delay, "max_delay", policy.max_delay, least)
    factor: Any = policy.backoff_factor
    number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    require(number and 1 <= factor < float("inf"), "backoff_factor", factor, "expected a number of 1 or more")


def _is_jitter(jitter: Any) -> bool:
    if isinstance(jitter, bool) or jitter in JITTERS:
        return True
    if not (isinstance(jitter, tuple) and len(jitter) == 2 and isinstance(jitter[1], (int, float))):
        return False
    kind, amount = jitter
    if isinstance(amount, bool) or not 0 <= amount < float("inf"):
        return False
    return bool(kind == "additive" or (kind == "proportional" and amount <= 1))


def are_types(value: Any) -> bool:
    """Whether `value` is an exception type or a tuple of them."""
    kinds = value if isinstance(value, tuple) else (value,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
