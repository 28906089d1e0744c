"""A permit of a breaker: the right to one call, answered once, also from another frame or thread."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from .breaker_admission import Admission, Grant


class Permit:
    """The right to one call. Answer it once with `success`, `failure` or `ignore`; further answers change nothing.

    Answers count what they say, whatever the error is. As a context manager it answers by how the block ends, as
    `CircuitBreaker.call` would. One that is never answered costs a half-open breaker a place until `probe_lease` ends.
    Safe to answer from any thread.
    """

    __slots__ = ("_breaker", "_grants")

    def __init__(self, breaker: Admission, grant: Grant) -> None:
        self._breaker = breaker
        self._grants = [grant]  # popped by the first answer: one step, whatever the threads

    def success(self, duration: float | None = None) -> None:
        """The call succeeded, after `duration` seconds (None: the time since the permit was given)."""
        if (grant := self._take()) is not None:
            self._breaker.count_success(grant, duration)

    def failure(self, exc: BaseException | None = None, duration: float | None = None) -> None:
        """The call failed, after `duration` seconds (None: the time since the permit was given)."""
        if (grant := self._take()) is not None:
            self._breaker.count_failure(grant, exc, duration)

    def ignore(self) -> None:
        """The call says nothing about the dependency: its place is given back, its outcome counts nowhere."""
        if (grant := self._take()) is not None:
            self._breaker.on_ignored(grant)

    def _take(self) -> Grant | None:
        try:
            return self._grants.pop()
        except IndexError:
            return None

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (grant := self._take()) is None:
            return
        if error is None:
            self._breaker.count_success(grant, None)
        else:
            self._breaker.on_failure(grant, error)
