"""What stands between a client and redis-py: the operation, each attempt's deadline, the verdict on its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.ambient import current, time_left
from ...core.errors import OutcomeUnknown, ResilienceError
from ...lane import express
from .commands import is_idempotent, wait_of, words_of
from .connection import free_scope, scope_of_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...core.context import OperationContext
    from ...manager import ErrorRecoveryManager
    from ...operation import Operation
    from ...parts import Parts
    from .commands import Wait
    from .connection import Scope

    Run = Callable[..., Any]

SERVER_TICKS = 0.25  # seconds that a wait on the server ends before the deadline: its clock ticks 10 times a second
WITHOUT_DEADLINE = 30.0  # seconds a connection waits for what no call bounds, where nobody says otherwise


class Guard:
    """What stands between a client and its driver: the operation, for commands that wait and for those that do not."""

    def __init__(self, manager: ErrorRecoveryManager, operation: str) -> None:
        self.operation = operation
        self._breaker = manager.circuit_breaker(operation)
        self._manager = manager  # it lives as long as its clients
        self.register = manager.resources.own
        self.calls: Operation = manager.adapted_operation(operation, _careful)
        self._waiting: Operation = manager.adapted_operation(operation, _unhurried)
        self._quick = express(self.calls, self.attempt, "caller")
        self._slow = express(self._waiting, self._attempt_waiting, "caller")

    def command(self, run: Run, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Runs a single command."""
        context = current()
        wait = wait_of(args)
        if context is not None and is_inside(context, self.operation):
            attempt: Run = self.attempt if wait is None else self._attempt_waiting
        else:
            attempt = self._quick if wait is None else self._slow
        return attempt(run, args, options) if wait is None else attempt(run, args, options, wait)

    def several(self, run: Run, name: str, repeatable: Callable[[], bool], *, once: bool = False) -> Any:
        """Runs what is more than one command: a pipeline, or (`once`) a step of a transaction.

        A step passes the breaker, but is no call of the operation: it has no retry of its own.
        """
        if is_inside(current(), self.operation):
            return self.attempt(run, (name,), {}, repeatable)
        if once:
            return self._breaker.call(self.attempt, run, (name,), {}, repeatable)
        return self._quick(run, (name,), {}, repeatable)

    def attempt(
        self, run: Run, args: tuple[Any, ...], options: dict[str, Any], repeatable: Callable[[], bool] | None = None
    ) -> Any:
        """One attempt of `run(*args, **options)` within what is left of the deadline.

        `repeatable()` judges a pipeline, whose `run` takes no arguments.
        """
        left, is_own = time_left()
        if left is None:
            left, is_own = self.calls.parts.timeout, True
        name = args[0] if isinstance(args[0], str) else words_of(args)[0]
        scope = free_scope()
        scope.begin_call(name, left, not is_own)
        if repeatable is None:
            return _within(scope, run, args, options)
        return _within(scope, run, (), options, repeatable)

    def _attempt_waiting(self, run: Run, args: tuple[Any, ...], options: dict[str, Any], wait: Wait) -> Any:
        """A command that waits on the server: that wait ends before the deadline, so that nothing is taken and lost."""
        left, is_own = time_left()
        limit, shortened = left, False
        if left is not None and (wait.seconds == 0 or wait.seconds > left):
            args, shortened = wait.shortened(args, left - min(SERVER_TICKS, left / 2)), True
        elif wait.seconds:
            own = wait.seconds + (self.calls.parts.timeout or WITHOUT_DEADLINE)
            limit, is_own = (own, True) if left is None else (min(own, left), is_own or own < left)
        scope = free_scope()
        scope.begin_call(words_of(args)[0], limit, not is_own, waits=True)
        reply = _within(scope, run, args, options)
        context = current()
        if shortened and not reply and context is not None and not isinstance(reply, int):
            raise context.deadline_error("waiting")
        return reply


def _within(
    scope: Scope,
    run: Run,
    args: tuple[Any, ...],
    options: dict[str, Any],
    repeatable: Callable[[], bool] | None = None,
) -> Any:
    """Runs one attempt; `repeatable()` judges a pipeline, a single command is judged by its name."""
    token = None
    try:
        scope.is_busy = True
        token = scope_of_call.set(scope)
        return run(*args, **options)
    except Exception as error:
        judge = repeatable or (lambda: is_idempotent(*args))
        final = _judged(scope, error, judge, repeatable is not None)
        if final is error:
            raise
        raise final from final.__cause__
    finally:
        scope.is_busy = False
        if token is not None:
            scope_of_call.reset(token)
        elif scope_of_call.get() is scope:  # a Ctrl-C as it was set
            scope_of_call.set(None)
        scope.end()


def _judged(scope: Scope, error: Exception, repeatable: Callable[[], bool], whole: bool) -> Exception:
    """What the caller hears of a failed attempt: the time was over, nobody knows what happened, or the error itself."""
    own: Exception = error
    answered = scope.is_sent and not scope.is_lost
    if scope.expired and not answered and not isinstance(error, ResilienceError):
        own = scope.error()
        own.__cause__ = error
    if scope.is_lost and not isinstance(error, OutcomeUnknown) and not repeatable():
        name = f"redis {scope.name}"
        lost = f"{name} was sent and its reply was lost: it may have taken effect, check before repeating it"
        unknown = OutcomeUnknown(lost, name=name, phase="sent")
        unknown.__cause__ = own
        return unknown
    if whole and answered and not repeatable():
        own.unrepeatable = True  # type: ignore[attr-defined]  # part of it was answered, so part of it ran
    return own


def is_inside(context: OperationContext | None, operation: str) -> bool:
    """Whether this call belongs to a call of the operation."""
    while context is not None:
        if context.operation == operation:
            return True
        context = context.parent
    return False


def _careful(parts: Parts) -> Parts:
    policy = parts.policy
    if policy is None:
        return parts
    own = policy.gives_up_on
    return parts.replaced(
        policy=policy.replace(give_up_on=lambda error: getattr(error, "unrepeatable", False) or own(error))
    )


def _unhurried(parts: Parts) -> Parts:
    return _careful(parts).replaced(timeout=None)
