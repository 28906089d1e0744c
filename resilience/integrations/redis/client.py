"""A redis-py client whose commands are calls of a named operation.

A reply that was lost is the crux: the command may have run. Those of the table of `commands` are repeated, every other
one raises `OutcomeUnknown` and is left to the caller. redis-py's own retries are off: by default it would repeat INCR.
"""

from __future__ import annotations

import functools
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.connection import BlockingConnectionPool, ConnectionPool
from redis.retry import Retry

from ...core.ambient import current
from ...core.ambient import remaining as ambient_remaining
from ...core.errors import ConfigError
from .commands import is_idempotent, words_of
from .connection import scope_of_call, watched_class
from .guard import WITHOUT_DEADLINE, Guard, is_inside

if TYPE_CHECKING:
    from ...manager import ErrorRecoveryManager

_OF_THE_OLD_POOL = (
    "retry", "retry_on_timeout", "retry_on_error", "maint_notifications_pool_handler", "maint_notifications_config",
    "orig_host_address", "orig_socket_timeout", "orig_socket_connect_timeout", "event_dispatcher", "cache",
    "cache_config",
)  # fmt: skip


def resilient_redis(
    url_or_client: str | redis.Redis, manager: ErrorRecoveryManager, *, operation: str = "redis_operation"
) -> Any:
    """A client for the server of `url_or_client` whose commands run under everything registered for `operation`.

    Given a client, the new one has its settings and connections of its own. The breaker is the operation's:
    `manager.circuit_breaker(operation)`. The operation's timeout bounds one attempt, from the wait for a connection to
    the last byte; a blocking command may wait as long as it says, within the ambient `deadline()`. A pipeline is one
    call, repeated when all its commands may be. Inside a call of the same operation, retries and counters are that
    call's.

    Commands raise `DeadlineExceeded`, `OutcomeUnknown` (the reply was lost, see `idempotent()`), `CircuitOpenError`,
    and what redis-py raises. As safe to share between threads as redis-py's client. Raises `ConfigError` for a cluster
    or an asynchronous client.
    """
    client = redis.Redis.from_url(url_or_client) if isinstance(url_or_client, str) else url_or_client
    if not isinstance(client, redis.Redis) or isinstance(client, Pipeline):
        raise ConfigError(
            "expected a URL or a redis.Redis; clusters and asynchronous clients are not supported",
            key="url_or_client", value=url_or_client,
        )  # fmt: skip
    guard = Guard(manager, operation)
    kind = type(f"Resilient{type(client).__name__}", (_Commands, type(client)), {"guard": guard})
    made = kind(connection_pool=_own_pool(client.connection_pool, guard))
    made.response_callbacks = client.response_callbacks
    made.owns_pool = True
    if client is not url_or_client:
        client.close()
    return made


def _own_pool(pool: ConnectionPool, guard: Guard) -> ConnectionPool:
    """A pool like `pool`, of connections that end at the deadline, without the driver's own retries."""
    settings = {key: value for key, value in pool.connection_kwargs.items() if key not in _OF_THE_OLD_POOL}
    settings["retry"] = Retry(NoBackoff(), 0)
    for key in ("socket_timeout", "socket_connect_timeout"):
        if settings.get(key) is None:  # for what no call of ours bounds
            settings[key] = guard.calls.parts.timeout or WITHOUT_DEADLINE
    try:
        from redis.maint_notifications import MaintNotificationsConfig

        settings["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    except ImportError:  # before redis-py 7
        pass
    settings["connection_class"] = watched_class(pool.connection_class, guard.operation, guard.register)
    settings["max_connections"] = pool.max_connections
    if isinstance(pool, BlockingConnectionPool):
        settings.update(timeout=pool.timeout, queue_class=_hasty(pool.queue_class))
    try:
        return type(pool)(**settings)
    except TypeError as error:
        what = f"connections of a {type(pool).__name__} cannot be made anew: give a URL, or a client with a plain pool"
        raise ConfigError(what, key="url_or_client", value=pool) from error


@functools.cache
def _hasty(queue_class: Any) -> Any:
    """The queue class of a blocking pool whose waits end at the deadline."""

    class Hasty(queue_class or LifoQueue):  # type: ignore[misc]  # known at run time only
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            scope = scope_of_call.get()
            left = None if scope is None else scope.remaining()
            if scope is None or left is None or (timeout is not None and timeout < left):
                return super().get(block, timeout)
            try:
                return super().get(block, left)
            except Empty:
                scope.expired = True
                raise scope.error() from None

    return Hasty


class _Commands:
    """What a client adds to redis-py's."""

    guard: Guard
    owns_pool = False

    def close(self) -> None:
        """Closes the client and, unless it was made by another one (`client.client()`), all connections."""
        super().close()  # type: ignore[misc]  # of redis-py's client
        if self.owns_pool:
            self.connection_pool.disconnect()  # type: ignore[attr-defined]  # of redis-py's client

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self.guard.command(super().execute_command, args, options)  # type: ignore[misc]  # of redis-py's client

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """What redis-py makes, with its `execute` as one call of the operation."""
        made = super().pipeline(*args, **kwargs)  # type: ignore[misc]  # of redis-py's client
        made.__class__ = _pipeline_class(made.__class__)
        made.guard = self.guard
        return made

    def pubsub(self, **kwargs: Any) -> Any:
        """What redis-py makes, with waits that end at the deadline."""
        made = super().pubsub(**kwargs)  # type: ignore[misc]  # of redis-py's client
        made.__class__ = _pubsub_class(made.__class__)
        made.guard = self.guard
        return made


@functools.cache
def _pipeline_class(kind: Any) -> type:
    return type("ResilientPipeline", (_Piped, kind), {})


@functools.cache
def _pubsub_class(kind: Any) -> type:
    return type("ResilientPubSub", (_Subscribed, kind), {})


class _Piped:
    """A pipeline: its `execute` is one call, repeated whole or not at all."""

    guard: Guard
    command_stack: list[Any]
    connection: Any
    explicit_transaction: bool
    watching: bool

    def execute(self, raise_on_error: bool = True) -> Any:
        """Runs the queued commands; a transaction that is watching is never repeated here: its reads are stale then."""
        stack = list(self.command_stack)
        watching = self.watching
        if not stack and not watching:
            return []
        run = super().execute  # type: ignore[misc]  # of redis-py's pipeline
        explicit = self.explicit_transaction

        def attempt() -> Any:
            self.command_stack = list(stack)
            self.explicit_transaction = explicit
            return run(raise_on_error)

        def repeatable() -> bool:
            return all(is_idempotent(*args) for args, _ in stack)

        return self.guard.several(attempt, "pipeline", repeatable, once=watching)

    def _execute_transaction(self, connection: Any, *args: Any) -> Any:
        return _to_the_end(connection, super()._execute_transaction, *args)  # type: ignore[misc]  # of redis-py's

    def _execute_pipeline(self, connection: Any, *args: Any) -> Any:
        return _to_the_end(connection, super()._execute_pipeline, *args)  # type: ignore[misc]  # of redis-py's

    def reset(self) -> None:
        """Forgets what is queued and watched; a connection that does not end its watch in time is closed."""
        connection = self.connection
        if self.watching and connection is not None:
            self.watching = False
            if connection._sock is not None:
                self._unwatch(connection)
        super().reset()  # type: ignore[misc]  # of redis-py's pipeline

    def _unwatch(self, connection: Any) -> None:
        def unwatch() -> None:
            connection.send_command("UNWATCH")
            connection.read_response()

        try:
            self.guard.attempt(unwatch, ("UNWATCH",), {}, _always)
        except Exception:
            connection.disconnect()

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """A command between WATCH and MULTI: runs at once, and once."""
        run = super().immediate_execute_command  # type: ignore[misc]  # of redis-py's pipeline
        if scope_of_call.get() is not None:
            return run(*args, **options)
        return self.guard.several(
            lambda: run(*args, **options), words_of(args)[0], lambda: is_idempotent(*args), once=True
        )


def _to_the_end(connection: Any, execute: Any, *args: Any) -> Any:
    """Runs what reads several replies; a Ctrl-C among them closes the connection, which has more to come."""
    try:
        return execute(connection, *args)
    except BaseException as error:
        if not isinstance(error, Exception):
            connection.disconnect()
        raise


def _always() -> bool:
    return True


class _Subscribed:
    """Pub/sub: waits end at the ambient deadline with the subscription intact; a lost connection is made again."""

    guard: Guard
    connection: Any

    def execute_command(self, *args: Any) -> Any:
        """Sends a SUBSCRIBE or its like within the deadline."""
        run = super().execute_command  # type: ignore[misc]  # of redis-py's pub/sub

        def send() -> Any:
            sent = run(*args)
            self.connection.owes_reply = False  # it comes among the messages
            return sent

        return self.guard.several(send, words_of(args)[0], _always, once=True)

    def parse_response(self, block: bool = True, timeout: float = 0) -> Any:
        """Waits for a message, within the deadline and as often as the operation's retry policy allows."""
        policy = self.guard.calls.parts.policy
        if policy is None or is_inside(current(), self.guard.operation):
            return self._wait(block, timeout)
        return policy.call(self._wait, block, timeout)

    def _wait(self, block: bool, timeout: float) -> Any:
        read = super().parse_response  # type: ignore[misc]  # of redis-py's pub/sub
        context = current()
        left = ambient_remaining()
        if context is None or left is None:
            return read(block=block, timeout=timeout)
        if left <= 0:
            raise context.deadline_error("waiting")
        if not block and timeout <= left:
            return read(block=False, timeout=timeout)
        response = read(block=False, timeout=left)
        if response is None and context.remaining() == 0:
            raise context.deadline_error("waiting")
        return response
