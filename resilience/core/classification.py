"""The verdict on an exception, as a value."""

from __future__ import annotations

from .errors import ConfigError, ErrorCategory, require

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OUTCOMES = ("not_sent", "answered", "partial", "unknown")  # from the surest to the least sure
_RETRYABLE = frozenset((ErrorCategory.TRANSIENT, ErrorCategory.RESOURCE))


class Classification:
    """What an exception means for its call; immutable, compared by value.

    - `category`: an `ErrorCategory` (or its name); it decides what a breaker counts.
    - `retryable`: whether repeating the call may help; by default TRANSIENT and RESOURCE are.
    - `outcome`: what became of the call. "not_sent": nothing reached the other side; "answered": it refused, so it did
      not act; "partial": its answer broke off, so it acted; "unknown": it may or may not have acted.
    - `retry_after`: seconds the other side asked to wait, or None.
    - `reason`: the rule that matched, a short stable id such as "errno:ECONNREFUSED", "http:429" or "sqlstate:40001".

    Raises `ConfigError` for a value outside of these.
    """

    __slots__ = ("category", "outcome", "reason", "retry_after", "retryable")

    category: ErrorCategory
    retryable: bool
    outcome: str
    retry_after: float | None
    reason: str

    def __init__(
        self,
        category: ErrorCategory | str,
        retryable: bool | None = None,
        outcome: str = "unknown",
        retry_after: float | None = None,
        reason: str = "user rule",
    ) -> None:
        try:
            kind = ErrorCategory(category)
        except ValueError:
            raise ConfigError(f"expected an ErrorCategory, not {category!r}", key="category", value=category) from None
        require(outcome in OUTCOMES, "outcome", outcome, f"expected one of {', '.join(OUTCOMES)}")
        sane = retry_after is None or (isinstance(retry_after, (int, float)) and 0 <= retry_after < float("inf"))
        require(sane, "retry_after", retry_after, "expected a finite number of seconds of 0 or more or None")
        put = object.__setattr__
        put(self, "category", kind)
        put(self, "retryable", kind in _RETRYABLE if retryable is None else bool(retryable))
        put(self, "outcome", outcome)
        put(self, "retry_after", retry_after)
        put(self, "reason", reason)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a classification is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a classification is immutable")

    def _key(self) -> tuple[Any, ...]:
        return self.category, self.retryable, self.outcome, self.retry_after, self.reason

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classification) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return Classification, self._key()

    def __repr__(self) -> str:
        wait = f", retry_after={self.retry_after:g}" if self.retry_after is not None else ""
        can = "retryable" if self.retryable else "final"
        return f"Classification({self.category}, {can}, {self.outcome}{wait}, reason={self.reason!r})"
