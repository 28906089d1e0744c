"""How far one call has come, and what follows a failure.

In this order: may this error be retried at all, are attempts left, does somebody outside own the retries, does the wait
fit, does the budget allow it. Then it sleeps, and wakes at once on cancel, shutdown and SIGTERM.
"""

from __future__ import annotations

import functools

from ..core import ambient
from ..core.classify import classify
from ..core.context import pause
from ..core.errors import (
    CallRejected,
    CircuitOpenError,
    DeadlineExceeded,
    OperationCancelled,
    ResilienceError,
    RetryAfterTooLong,
)
from ..core.history import Attempt, AttemptHistory, add_note, attach, error_text
from ..core.logs import logger
from .nesting import owned_outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger
    from typing import Any

    from ..core.classify import Classification
    from ..core.pipeline import Call
    from .retry import Retry
    from .retry_policy import RetryPolicy

OUTSIDE = 4  # frames from `owned_outside` to who called the loop: _decide, failed, Retry.run or Attempting.__exit__


class Stop:
    """No further attempt: why, and the error to raise instead of the last one."""

    __slots__ = ("instead", "reason")

    def __init__(self, reason: str, instead: BaseException | None = None) -> None:
        self.reason = reason
        self.instead = instead


class Progress:
    """How far one call has come: its history, its retries so far, the last error of an attempt that ran."""

    __slots__ = (
        "attempt_started",
        "call",
        "ended",
        "last_error",
        "policy",
        "previous",
        "retries",
        "retry",
        "started",
    )

    def __init__(self, retry: Retry, call: Call) -> None:
        self.retry = retry
        self.policy = retry.policy
        self.call = call
        self.ended = False
        self.last_error: Exception | None = None
        self.previous: float | None = None
        self.retries = 0
        self.started = self.attempt_started = retry.clock.monotonic() if call.started is None else call.started
        if self.policy.budget is not None:
            self.policy.budget.first_attempt()

    @property
    def name(self) -> str:
        """The operation's name, as far as one is known."""
        return self.retry.name or self.call.name

    def succeeded(self) -> None:
        """Ends the call well."""
        self.ended = True
        history = self.call.history
        if history is not None:
            clock = self.retry.clock
            duration = clock.monotonic() - self.attempt_started
            history.attempts.append(Attempt(self.call.attempt, clock.time() - duration, duration))
            history.stop_reason = "succeeded"
            self._emit("recovered", attempts=self.call.attempt)

    def failed(self, error: Exception, *, is_result: bool = False) -> BaseException | None:
        """Waits for the next attempt, or gives the error that ends the call; `is_result`: a failing result of ours."""
        verdict = classify(error)
        record = self._record(error, verdict)
        if _has_run(error):
            self.last_error = error
        if self.retry.events is not None:
            self._emit("attempt_failed", attempt=record.number, error=record.error, category=record.category)
        decision = self._decide(error, verdict, is_result)
        if isinstance(decision, Stop):
            return self._end(error, decision)
        record.delay = decision
        self._tell_retry(decision, record)
        stop = self._wait(decision)
        if stop is not None:
            return self._end(error, stop)
        call = self.call
        call.attempt += 1
        if call.context is not None:
            call.context.attempt = call.attempt
        self.attempt_started = self.retry.clock.monotonic()
        return None

    # -- deciding ------------------------------------------------------------------------------------------------

    def _decide(self, error: Exception, verdict: Classification, is_result: bool) -> float | Stop:
        """The seconds to wait before the next attempt, or why there is none."""
        policy = self.policy
        if isinstance(error, CircuitOpenError):
            return self._wait_for_breaker(error)
        why = policy.why_final(error, verdict) if not is_result else None if policy.idempotent else "not idempotent"
        if why is not None:
            return Stop(why)
        if policy.max_retries is not None and self.retries >= policy.max_retries:
            return Stop("attempts exhausted")
        if policy.nested == "owner" and owned_outside(self._asks_outside(error, verdict, is_result), OUTSIDE):
            return Stop("nested")
        self.previous = delay = policy.jittered_delay(self.retries, self.retry.draw, self.previous)
        if verdict.retry_after is not None:
            told = self._as_told(verdict.retry_after)
            if isinstance(told, Stop):
                return told
            delay = max(delay, told)
        stop = self._unfit(delay)
        if stop is not None:
            return stop
        if policy.budget is not None and not policy.budget.take_retry():
            return Stop("budget empty")
        self.retries += 1
        return delay

    def _asks_outside(
        self, error: Exception, verdict: Classification, is_result: bool
    ) -> Callable[[RetryPolicy], bool]:
        """What an outer policy is asked: would it retry what it will get from us, an error or the failing result?"""
        if is_result and not self.policy.raise_on_result:
            result = error.result  # type: ignore[attr-defined]  # a FailedResult
            return lambda outer: outer.would_retry_result(result)
        return lambda outer: outer.would_retry(error, verdict)

    def _wait_for_breaker(self, error: CircuitOpenError) -> float | Stop:
        """Until the breaker lets a probe through; no attempt was made, so this costs no retry."""
        if self.policy.on_open == "raise" or error.retry_after is None or self.policy.gives_up_on(error):
            return Stop("circuit open")
        return self._unfit(error.retry_after) or error.retry_after

    def _as_told(self, retry_after: float) -> float | Stop:
        """At least what the server asked for, and up to 10 % more; `RetryAfterTooLong` at once when it cannot be."""
        most = self.policy.max_retry_after
        left = ambient.remaining()
        if (most is not None and retry_after > most) or (left is not None and retry_after >= left):
            return Stop("retry after too long", RetryAfterTooLong(name=self.name, retry_after=retry_after))
        spread = retry_after * (1 + 0.1 * self.retry.draw())
        return spread if left is None or spread < left else retry_after

    def _unfit(self, delay: float) -> Stop | None:
        """Why a wait of `delay` is not begun: it would end where nothing could be tried any more."""
        left = ambient.remaining()
        if left is not None and delay >= left:
            return Stop("deadline")
        most = self.policy.max_elapsed
        if most is not None and self.retry.clock.monotonic() - self.started + delay >= most:
            return Stop("max_elapsed")
        return None

    # -- waiting -------------------------------------------------------------------------------------------------

    def _wait(self, delay: float) -> Stop | None:
        """Sleeps; gives what ends the call meanwhile. Inside a fan-out the place is another's for that time."""
        gate = ambient.attempt_gate.get()
        if gate is not None:
            gate.leave(True)
        context = ambient.current()
        try:
            pause(delay, context, self.retry.clock)
            if gate is not None and gate.enter() is False:
                return Stop("fan-out is over")
        except DeadlineExceeded:
            return Stop("deadline")
        except OperationCancelled as error:
            return Stop("cancelled", error)
        except ResilienceError as error:
            return Stop("shutdown", error)
        if context is not None and context.remaining() == 0:  # the sleep or the gate took longer than asked
            return Stop("deadline")
        return None

    # -- telling -------------------------------------------------------------------------------------------------

    def _record(self, error: Exception, verdict: Classification) -> Attempt:
        call, clock = self.call, self.retry.clock
        if call.history is None:
            call.history = AttemptHistory(self.name)
        duration = clock.monotonic() - self.attempt_started
        state = error.state if isinstance(error, CircuitOpenError) else None
        started = clock.time() - duration
        category = str(verdict.category)
        record = Attempt(call.attempt, started, duration, error_text(error), category, None, state)
        call.history.attempts.append(record)
        return record

    def _end(self, error: Exception, stop: Stop) -> BaseException:
        """The error that ends the call: the last one of an attempt that ran, where one did."""
        history = self.call.history
        assert history is not None
        history.stop_reason = stop.reason
        final: BaseException = error
        if stop.instead is not None:
            final = stop.instead
            final.__cause__ = error
        elif self.last_error is not None and self.last_error is not error:
            final = self.last_error
            add_note(final, f"the next attempt was not started: {error}")
        attach(final, history)
        if stop.reason != "nested":
            count = len(history)
            of = f" of operation {self.name!r}" if self.name else ""
            add_note(final, f"after {count} attempt{'s' if count != 1 else ''}{of} ({stop.reason})")
            self._emit("retries_exhausted", attempts=count, reason=stop.reason, error=error_text(final))
        self.ended = True
        self.last_error = None
        return final

    def _tell_retry(self, delay: float, record: Attempt) -> None:
        if self.retry.events is not None:
            self._emit("retry_scheduled", attempt=record.number, delay=delay, error=record.error)
        log = _logger()
        if log.isEnabledFor(10):  # logging.DEBUG
            name = self.name or "call"
            log.debug("%s: attempt %d failed (%s), next in %.3f s", name, record.number, record.error, delay)

    def _emit(self, kind: str, **fields: Any) -> None:
        events = self.retry.events
        if events is not None:
            events.emit(kind, self.name, **fields)


def _has_run(error: Exception) -> bool:
    """Whether the function was started in the attempt that ended so."""
    return not isinstance(error, CallRejected) and not (isinstance(error, DeadlineExceeded) and error.phase == "queued")


@functools.cache
def _logger() -> Logger:
    return logger("retry")
