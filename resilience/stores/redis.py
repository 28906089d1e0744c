"""The store in Redis or Valkey (5 or newer): for the processes of many machines.

All state is one hash; a script compares, sets and publishes in one step. The rules stay in Python.
"""

from __future__ import annotations

import hashlib

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..core.clock import SYSTEM
from ..core.errors import ConfigError, StoreUnavailable
from .bell import PAUSE
from .distant import DRIFT, DistantStore
from .port import PATIENCE, NotMade, redacted, time_left
from .swap import Unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .swap import Seen

STATE = "resilience:1:state"  # field -> "version text"; the number is that of this form
CHANNEL = "resilience:1:news"  # and the number of the database: channels know none
DIGITS = 16  # of a version: microseconds since 1970
QUIET = 5.0  # seconds without news after which the server is asked whether it is there
SCRIPT = """
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local current = redis.pcall('HGET', KEYS[1], ARGV[1]) or ''
if type(current) == 'table' then
  redis.call('DEL', KEYS[1])
  current = ''
end
if #ARGV < 5 or current ~= ARGV[2] or math.abs(micros / 1000000 - ARGV[5]) > tonumber(ARGV[6]) then
  return string.format('0 %.0f ', micros) .. current
end
local version = micros
local before = tonumber(string.match(current, '^(%d+) ') or '0')
if before >= version and before < 2^53 then version = before + 1 end
local text = string.format('%.0f', version)
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], text .. ' ' .. ARGV[3])
end
redis.call('PUBLISH', ARGV[4], text .. ' ' .. ARGV[1] .. '\\0' .. ARGV[3])
return string.format('1 %.0f ', micros) .. text
"""
DIGEST = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
ERRORS = (redis.RedisError, OSError, ValueError)


class RedisStore(DistantStore):
    """`redis://[user:password@]host:port/db`, `rediss://` with TLS. Its time is the server's.

    A change takes one round trip, or two when another process has changed the key meanwhile.
    """

    def __init__(self, url: str) -> None:
        try:
            self._pool = redis.ConnectionPool.from_url(
                url, retry=Retry(NoBackoff(), 0), health_check_interval=0, decode_responses=True, encoding="utf-8",
                encoding_errors="surrogateescape", socket_connect_timeout=PATIENCE, socket_timeout=PATIENCE, protocol=2,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(
                f"{redacted(url)!r} is no URL of Redis: {error}", key="store", value=redacted(url)
            ) from None
        self._channel = f"{CHANNEL}:{self._pool.connection_kwargs.get('db') or 0}"
        self._question: Unanswered | None = None  # the answer to come first on the connection
        super().__init__(url)

    @property
    def is_near(self) -> bool:  # type: ignore[override]  # here it comes and goes
        return self._connection is not None

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command_held(self, end: float, *command: object) -> Any:
        """The reply to one command; a connection that has not delivered one in time is not used again."""
        if self._question is not None:
            self._settle_held(self._question, end)
        return self._exchange_held(end, command)

    def _exchange_held(self, end: float, command: tuple[object, ...]) -> Any:
        """The next reply, after sending a command where there is one."""
        is_asked = not command
        connection, left = self._connection, end - SYSTEM.monotonic()
        if self._is_hasty and (connection is None or left <= 0):
            raise NotMade(f"{self!r} is not connected, or busy")
        try:
            if connection is None:
                self._connection = connection = self._connect(end)
                left = time_left(end)
            connection._sock.settimeout(max(left, 0.001))
            if command:
                connection.send_command(*command)
                is_asked = True
            return connection.read_response(disconnect_on_error=False)
        except redis.ResponseError:
            raise
        except ERRORS as error:
            if is_asked and self._is_hasty and isinstance(error, redis.TimeoutError):
                if self._question is not None:
                    raise NotMade(f"{self!r} is busy") from error
                self._question = Unanswered(self)
                raise self._question from error
            self._stop_held()
            raise StoreUnavailable(f"{redacted(self.url)}: {error or type(error).__name__}") from error
        except BaseException:
            self._stop_held()
            raise

    def _settle_held(self, question: Unanswered, end: float) -> None:
        if question is not self._question:
            raise StoreUnavailable(f"{redacted(self.url)}: the connection was lost before the answer came")
        try:
            reply = self._exchange_held(end, ())
        except redis.ResponseError:  # the script is not known there: nothing was changed
            reply = "0 0 "
        self._question = None
        done, _, current = str(reply).split(" ", 2)
        question.is_answered = True
        question.after = self._swapped_held(question.key, question.text, done, current)

    def _connect(self, end: float) -> Any:
        connection: Any = self._pool.make_connection()
        left = time_left(end)
        connection.socket_connect_timeout = min(left, PATIENCE)
        connection.socket_timeout = min(left, PATIENCE)
        connection.connect()
        return connection

    def _script_held(self, end: float, *arguments: object) -> tuple[str, str]:
        began = SYSTEM.monotonic()
        try:
            try:
                reply = self._command_held(end, "EVALSHA", DIGEST, 1, STATE, *arguments)
            except redis.exceptions.NoScriptError:
                reply = self._command_held(end, "EVAL", SCRIPT, 1, STATE, *arguments)
            done, micros, current = reply.split(" ", 2)
            self._note_time(int(micros) / 1e6, began)
        except (redis.ResponseError, AttributeError, ValueError) as error:
            raise StoreUnavailable(f"{redacted(self.url)}: {error}") from error
        return done, current

    def _fetch_held(self, key: str, end: float) -> Seen:
        return _seen(self._script_held(end, key)[1])

    def _swap_held(self, key: str, seen: Seen, text: str | None, end: float) -> Seen | None:
        before = "" if seen[1] is None else f"{seen[0]} {seen[1]}" if seen[0] else seen[1]
        guess = repr(self._now_held(end))
        return self._swapped_held(
            key, text, *self._script_held(end, key, before, text or "", self._channel, guess, DRIFT)
        )

    def _swapped_held(self, key: str, text: str | None, done: str, current: str) -> Seen | None:
        if done == "1":
            return int(current), text
        self._seen[key] = _seen(current)
        return None

    def _keys_held(self, prefix: str, end: float) -> list[str]:
        try:
            return [key for key in self._command_held(end, "HKEYS", STATE) if key.startswith(prefix)]
        except redis.ResponseError as error:
            raise StoreUnavailable(f"{redacted(self.url)}: {error}") from error

    def _stop_held(self) -> None:
        connection, self._connection, self._question = self._connection, None, None
        if connection is not None:
            connection.disconnect()

    # -- news --------------------------------------------------------------------------------------------------------

    def _open_ear(self) -> Ear:
        try:
            ear = Ear(self._connect(SYSTEM.monotonic() + PATIENCE))
            try:
                ear.connection.send_command("SUBSCRIBE", self._channel)
                ear.connection.read_response()
            except BaseException:
                ear.close()
                raise
        except ERRORS as error:
            raise StoreUnavailable(f"{redacted(self.url)}: {error or type(error).__name__}") from error
        return ear

    def _tell_news(self, ear: Ear) -> None:
        if ear.is_new:
            self._tell_all()
            ear.is_new = False
        for message in ear.messages():
            version, _, rest = message.partition(" ")
            key, _, text = rest.partition("\0")
            self._told(key, (int(version), text or None))

    def _tell_all(self) -> None:
        with self._turn(PATIENCE) as end:
            flat = self._command_held(end, "HGETALL", STATE)
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        found = {key: _seen(value) for key, value in pairs}
        for key in [key for key in self._seen if key not in found]:
            del self._seen[key]
            self._subscriptions.tell(key, None)
        for key, seen in found.items():
            self._told(key, seen)

    # -- life --------------------------------------------------------------------------------------------------------

    def _leave(self, connection: Any) -> None:
        connection.disconnect()  # it knows whose it is


class Ear:
    """A subscription; a server that has been silent for long is asked whether it is there."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.is_new = True
        self._is_asked = False
        self._heard_at = SYSTEM.monotonic()

    def wait(self, seconds: float) -> None:
        """Returns when there is something to read; raises `StoreUnavailable` for a server that does not answer."""
        SYSTEM.sleep(PAUSE)
        if self.connection.can_read(timeout=seconds):
            return
        silence = SYSTEM.monotonic() - self._heard_at
        if silence > 2 * QUIET:
            raise StoreUnavailable("the server is silent")
        if silence > QUIET and not self._is_asked:
            self.connection.send_command("PING")
            self._is_asked = True

    def messages(self) -> Iterator[str]:
        """What has been published since."""
        while self.connection.can_read(timeout=0):
            kind, *_, text = self.connection.read_response()
            self._heard_at, self._is_asked = SYSTEM.monotonic(), False
            if kind == "message":
                yield text

    def close(self) -> None:
        """Ends the connection."""
        self.connection.disconnect()


def _seen(value: str) -> Seen:
    """Version and text of a field; garbage has version 0."""
    if not value:
        return 0, None
    version, mark, text = value.partition(" ")
    is_ours = mark and version.isascii() and version.isdecimal() and len(version) <= DIGITS
    return (int(version), text) if is_ours else (0, value)
