"""What has passed a breaker, as its readers see it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class BreakerStats:
    """What passed a breaker, at one moment; fields by attribute, by key or as `as_dict()`.

    Every permitted call that has ended is one of `successes`, `failures`, `ignored` and `late_results` (its answer came
    after the state had changed or its place was lost). `slow` ones are successes or failures as well. `opened_at`,
    `since` (when this state began) and `not_closed_since` are seconds of the breaker's `clock.monotonic()`.
    `suppressed` counts the openings that `metrics_only()` has held back.
    """

    __slots__ = ("failure_rate", "failures", "failures_in_a_row", "generation", "ignored", "in_flight", "last_error",
                 "late_results", "name", "not_closed_since", "opened_at", "permitted", "reason", "rejected",
                 "retry_after", "since", "slow", "slow_rate", "state", "state_changes", "successes",
                 "suppressed")  # fmt: skip

    if TYPE_CHECKING:
        name: str
        state: str
        reason: str
        generation: int
        permitted: int
        rejected: int
        successes: int
        failures: int
        ignored: int
        slow: int
        late_results: int
        state_changes: int
        suppressed: int
        failures_in_a_row: int
        in_flight: int
        failure_rate: float | None
        slow_rate: float | None
        retry_after: float | None
        since: float | None
        opened_at: float | None
        not_closed_since: float | None
        last_error: str | None

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain data, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __getitem__(self, name: str) -> Any:
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> Iterator[str]:
        """The names of the fields."""
        return iter(self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BreakerStats) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]  # compares by value

    def __repr__(self) -> str:
        return f"BreakerStats({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"
