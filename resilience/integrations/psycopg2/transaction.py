"""Whole transactions, tried again whole: the only unit that can be."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2

from ...core.ambient import current
from ...core.errors import DeadlineExceeded
from ...core.pipeline import Call, refuse_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...parts import Parts
    from ...strategies.circuit_breaker import CircuitBreaker
    from .connection import ResilientConnection
    from .pool import ResilientPool

    R = TypeVar("R")


def run_transaction(
    pool: ResilientPool,
    fn: Callable[[ResilientConnection], R],
    *,
    isolation_level: str | int | None = None,
    readonly: bool | None = None,
) -> R:
    """Calls `fn(connection)` in a transaction of its own, commits, and gives what it returned.

    One call of the pool's operation, under everything registered for it: on a serialization failure, a deadlock or a
    lost connection the transaction is rolled back and `fn` runs again from its start, so it must leave nothing behind
    outside of the database. Its timeout bounds one attempt, with the wait for a connection. `isolation_level` and
    `readonly` are psycopg2's, for this transaction.

    Raises `OutcomeUnknown` when the answer to COMMIT was lost, unless nothing was to be written (`readonly=True`):
    then it runs again. Inside a call of the same operation it is attempted once: the outer call repeats.
    """
    refuse_async(fn)
    arguments = (pool, fn, isolation_level, readonly)
    context = current()
    while context is not None:
        if context.operation == pool.operation_name:
            return _attempt(*arguments)
        context = context.parent
    return pool.operation.run(Call(_attempt, arguments, None, pool.operation_name), isolation="caller")  # type: ignore[no-any-return]  # what fn gives


def _attempt(
    pool: ResilientPool, fn: Callable[[ResilientConnection], R], level: str | int | None, readonly: bool | None
) -> R:
    with pool.lend() as connection:
        if level is not None or readonly is not None:
            connection.set_session(isolation_level=level, readonly=readonly)
        try:
            result = fn(connection)
            if readonly:
                connection.rollback()
            else:
                connection.commit()
        finally:
            if (level is not None or readonly is not None) and not connection.closed:
                connection.reset_session()
        return result


def is_conflict(error: BaseException) -> bool:
    """Whether transactions got in each other's way, which says nothing about the server's health (class 40)."""
    return isinstance(error, psycopg2.Error) and str(error.pgcode or "").startswith("40")


class ServerBreaker:
    """The breaker of a database, which takes neither conflicts of transactions nor an exhausted pool for failures."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self.breaker = breaker
        self.name = breaker.name

    @contextmanager
    def permit(self) -> Iterator[None]:
        """The right to one block."""
        with self.breaker.acquire() as permit:
            try:
                yield
            except Exception as error:
                if is_conflict(error) or _is_queued(error):
                    permit.ignore()
                raise

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline as one call."""
        with self.permit():
            return proceed(call)


def _is_queued(error: BaseException) -> bool:
    return isinstance(error, DeadlineExceeded) and error.phase == "queued"


def adapt(breaker: ServerBreaker) -> Callable[[Parts], Parts]:
    """What changes about an operation: its breaker, and that waiting for the pool once is enough."""

    def adapted(parts: Parts) -> Parts:
        policy = parts.policy
        if policy is not None:
            own = policy.gives_up_on
            policy = policy.replace(give_up_on=lambda error: _is_queued(error) or own(error))
        return parts.replaced(breaker=breaker, policy=policy)

    return adapted
