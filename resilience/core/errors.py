"""The tree of errors, and the four categories of the specification.

Every error composes its message when it is read, not when it is raised: raising is on the hot path of an open
breaker, reading is not. All of them survive pickling with their attributes.
"""

from __future__ import annotations

from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ErrorCategory(str, Enum):
    """What kind of trouble an error is; `str(category)` is its lower-case name (specification, "Error Categories")."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    RESOURCE = "resource"
    LOGIC = "logic"

    def __str__(self) -> str:
        return self.value


class ResilienceError(Exception):
    """The root of all errors of this toolkit."""

    message: str | None = None

    def __init__(self, message: str | None = None) -> None:
        if message is not None:
            self.message = message

    def describe(self) -> str:
        """The sentence shown when no message was given."""
        return type(self).__name__

    def __str__(self) -> str:
        return self.message if self.message is not None else self.describe()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        told = {name: value for name, value in self.__dict__.items() if name != "_resilience_lost"}
        return _rebuild, (type(self), told, self.args)


def _rebuild(cls: type[ResilienceError], attributes: dict[str, Any], args: tuple[Any, ...]) -> ResilienceError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} s"


class CallRejected(ResilienceError):
    """The function was not started."""

    name: str = ""


class CircuitOpenError(CallRejected):
    """A breaker refused the call.

    `retry_after` is the number of seconds until the next probe may pass, None when only a `reset()` ends the state.
    Its `args` are (until when, name, state, last error), now: an open breaker makes millions of these a second, by
    `__new__` alone.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        name: str = "",
        state: str = "open",
        retry_after: float | None = None,
        last_error: str | None = None,
    ) -> None:
        super().__init__(message)
        self.args = ((retry_after, name, state, last_error), 0.0)

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only here
        """The name of the breaker."""
        return self.args[0][1]  # type: ignore[no-any-return]  # set by __init__ or the breaker

    @property
    def state(self) -> str:
        """The state that refuses: "open", "half_open" (all probes are out) or "forced_open"."""
        return self.args[0][2]  # type: ignore[no-any-return]  # set by __init__ or the breaker

    @property
    def retry_after(self) -> float | None:
        """Seconds until the next probe may pass."""
        (until, *_), now = self.args
        return None if until is None or until == float("inf") else until - now

    @property
    def last_error(self) -> str | None:
        """The last failure that the breaker counted, as text."""
        return self.args[0][3]  # type: ignore[no-any-return]  # set by __init__ or the breaker

    def __repr__(self) -> str:
        facts = f"name={self.name!r}, state={self.state!r}, retry_after={self.retry_after!r}"
        return f"CircuitOpenError({facts}, last_error={self.last_error!r})"

    def describe(self) -> str:
        text = f"breaker {self.name!r} is {self.state}"
        if self.retry_after is not None:
            text += f", next probe in {_seconds(self.retry_after)}"
        return text + (f" (last error: {self.last_error})" if self.last_error else "")


class BulkheadFullError(CallRejected):
    """All slots of a bulkhead are taken; `abandoned` of them by calls that were given up and still run."""

    def __init__(self, message: str | None = None, *, name: str = "", limit: int = 0, abandoned: int = 0) -> None:
        super().__init__(message)
        self.name = name
        self.limit = limit
        self.abandoned = abandoned

    def describe(self) -> str:
        text = f"bulkhead {self.name!r} is full: {self.limit} of {self.limit} slots taken"
        return text + (f", {self.abandoned} by abandoned calls" if self.abandoned else "")


class RateLimitExceeded(CallRejected):
    """A rate limiter has no room in time; `retry_after` seconds from now it would have."""

    def __init__(self, message: str | None = None, *, name: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.retry_after = retry_after

    def describe(self) -> str:
        return f"rate limit {self.name!r} is used up, room again in {_seconds(self.retry_after)}"


class WorkersExhausted(CallRejected):
    """Too many calls of this operation were abandoned and still run."""

    def __init__(self, message: str | None = None, *, name: str = "", abandoned: int = 0) -> None:
        super().__init__(message)
        self.name = name
        self.abandoned = abandoned

    def describe(self) -> str:
        return (
            f"operation {self.name!r} has {self.abandoned} abandoned calls that still run; "
            "no more are started until one ends"
        )


class ShutdownInProgress(CallRejected):
    """The process is shutting down: waits end and nothing new is admitted."""

    def describe(self) -> str:
        return "shutdown in progress" + (f", {self.name!r} was not started" if self.name else "")


class DeadlineExceeded(ResilienceError):
    """A time limit passed.

    `phase` is "queued" (never started), "running" or "waiting" (in a sleep or wait of ours). `reclaimed` says whether
    whatever ran has ended for certain; `stack` is where it hung, as text. `ambient` is True when the limit was the
    surrounding `deadline()` rather than the operation's own timeout: only the latter blames the dependency.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        name: str = "",
        timeout: float | None = None,
        elapsed: float | None = None,
        phase: str = "running",
        reclaimed: bool = True,
        stack: str = "",
        ambient: bool = False,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.timeout = timeout
        self.elapsed = elapsed
        self.phase = phase
        self.reclaimed = reclaimed
        self.stack = stack
        self.ambient = ambient

    def describe(self) -> str:
        what = f"{self.name!r}" if self.name else "the call"
        text = f"{what} exceeded its deadline"
        if self.timeout is not None:
            text += f" of {_seconds(self.timeout)}"
        if self.elapsed is not None:
            text += f" after {_seconds(self.elapsed)}"
        text += f" while {self.phase}"
        if not self.reclaimed:
            text += "; it was abandoned and may still run"
        where = self.stack.strip().splitlines()
        return text + (f"; it hung at {where[-2].strip() if len(where) > 1 else where[-1].strip()}" if where else "")


class OperationCancelled(ResilienceError):
    """The caller cancelled the operation."""

    def __init__(self, message: str | None = None, *, name: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.name = name
        self.reason = reason

    def describe(self) -> str:
        what = f"{self.name!r} was cancelled" if self.name else "cancelled"
        return what + (f": {self.reason}" if self.reason else "")


class OutcomeUnknown(ResilienceError):
    """The call was cut and may have taken effect; no policy ever retries it."""

    def __init__(self, message: str | None = None, *, name: str = "", phase: str = "") -> None:
        super().__init__(message)
        self.name = name
        self.phase = phase

    def describe(self) -> str:
        what = f"{self.name!r}" if self.name else "the call"
        when = f" while {self.phase}" if self.phase else ""
        return f"{what} was cut{when} and may have taken effect; check before repeating it"


class RetryAfterTooLong(ResilienceError):
    """The server asked for a longer wait (`retry_after` seconds) than the deadline or the policy allows."""

    def __init__(self, message: str | None = None, *, name: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.name = name
        self.retry_after = retry_after

    def describe(self) -> str:
        return f"the server asks to wait {_seconds(self.retry_after)}, longer than allowed here"


class WorkerCrashed(ResilienceError):
    """A worker process died under the call."""

    def __init__(
        self,
        message: str | None = None,
        *,
        name: str = "",
        exitcode: int | None = None,
        signal: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.name = name
        self.exitcode = exitcode
        self.signal = signal
        self.reason = reason

    def describe(self) -> str:
        how = f"signal {self.signal}" if self.signal else f"exit code {self.exitcode}"
        return f"the worker process of {self.name!r} died: {self.reason or how}"


class StoreUnavailable(ResilienceError):
    """A store of shared state cannot be reached."""


class ConfigError(ResilienceError, ValueError):
    """A value that cannot be used: `key` names it, `value` is what was seen, `origin` says where it came from.

    `origin` is "file:line", "environment NAME" or None for a parameter given in Python.
    """

    def __init__(
        self, message: str | None = None, *, origin: str | None = None, key: str | None = None, value: object = None
    ) -> None:
        super().__init__(message)
        self.origin = origin
        self.key = key
        self.value = value

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.origin, self.key) if part)
        text = self.message or f"{self.value!r} cannot be used"
        return f"{where}: {text}" if where else text


def require(condition: bool, key: str, value: object, reason: str) -> None:
    """Raises `ConfigError` for the parameter `key` unless `condition` holds; `reason` says what is expected."""
    if not condition:
        raise ConfigError(f"{reason}, not {value!r}", key=key, value=value)


def require_seconds(key: str, value: object, *, positive: bool = False, optional: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a finite number of seconds, 0 or more (above 0 when `positive`)."""
    if value is None and optional:
        return
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
    expected = "expected a finite number of seconds " + ("above 0" if positive else "of 0 or more")
    require(fine and not (positive and value == 0), key, value, expected + (" or None" if optional else ""))


def require_count(key: str, value: object, *, minimum: int = 1, optional: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a whole number >= `minimum` (or None when `optional`)."""
    if value is None and optional:
        return
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    require(fine, key, value, f"expected a whole number of {minimum} or more" + (" or None" if optional else ""))
