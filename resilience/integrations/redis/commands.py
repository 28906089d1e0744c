"""What is known about commands: which may be run again when their reply was lost, and which wait on the server.

Idempotent means: however often it runs, the data is the same afterwards. The reply of a repeat may count less (DEL
says 0 the second time); commands whose reply is what they are run for (SETNX, SADD, SET NX) are not called idempotent.
A command that is not listed is not.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_declared: ContextVar[bool] = ContextVar("resilience_redis_idempotent", default=False)



def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


READS = _words(
    """GET MGET STRLEN GETRANGE SUBSTR GETBIT BITCOUNT BITPOS BITFIELD_RO LCS EXISTS TYPE TTL PTTL
    EXPIRETIME PEXPIRETIME KEYS SCAN DUMP RANDOMKEY TOUCH OBJECT HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS
    HSTRLEN HSCAN HRANDFIELD HTTL HPTTL HEXPIRETIME HPEXPIRETIME LLEN LRANGE LINDEX LPOS SCARD SISMEMBER
    SMISMEMBER SMEMBERS SRANDMEMBER SINTER SUNION SDIFF SINTERCARD SSCAN SORT_RO ZCARD ZCOUNT ZLEXCOUNT
    ZRANGE ZREVRANGE ZRANGEBYSCORE ZREVRANGEBYSCORE ZRANGEBYLEX ZREVRANGEBYLEX ZRANK ZREVRANK ZSCORE ZMSCORE
    ZSCAN ZRANDMEMBER ZINTER ZUNION ZDIFF ZINTERCARD XLEN XRANGE XREVRANGE XREAD XPENDING XINFO PFCOUNT
    GEOPOS GEODIST GEOHASH GEORADIUS_RO GEORADIUSBYMEMBER_RO GEOSEARCH EVAL_RO EVALSHA_RO FCALL_RO PING ECHO
    TIME DBSIZE INFO ROLE LASTSAVE COMMAND PUBSUB MEMORY SLOWLOG LATENCY WAIT WAITAOF READONLY READWRITE"""
)
WRITES = _words(
    """SET SETEX PSETEX MSET SETRANGE SETBIT GETEX DEL UNLINK EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST HSET
    HMSET HDEL HEXPIRE HPEXPIRE HEXPIREAT HPEXPIREAT HPERSIST LSET SREM SDIFFSTORE SINTERSTORE SUNIONSTORE
    ZADD ZREM ZREMRANGEBYSCORE ZREMRANGEBYLEX ZDIFFSTORE ZINTERSTORE ZUNIONSTORE ZRANGESTORE XDEL XACK XTRIM
    PFMERGE PFADD GEOADD BITOP COPY WATCH UNWATCH"""
)
IDEMPOTENT = READS | WRITES
# Words that make a command answer for what was there before, or count on from it.
_NOT_WITH: dict[str, set[str]] = {
    "SET": {"NX", "GET", "IFEQ"}, "ZADD": {"INCR", "NX"}, "GEOADD": {"NX"},
    "EXPIRE": {"NX", "GT", "LT"}, "PEXPIRE": {"NX", "GT", "LT"},
}  # fmt: skip
_BY_SUBCOMMAND = {
    "SCRIPT": {"EXISTS", "LOAD"}, "FUNCTION": {"LIST", "STATS", "DUMP"}, "CLIENT": {"GETNAME", "ID", "INFO", "LIST"},
    "CONFIG": {"GET"}, "CLUSTER": {"INFO", "NODES", "SLOTS", "SHARDS", "KEYSLOT", "MYID"}, "ACL": {"LIST", "WHOAMI"},
}  # fmt: skip

# Where a command says how long the server may wait: position of the argument and how many of its units a second has.
_LAST, _FIRST = -1, 1
BLOCKING = {
    "BLPOP": (_LAST, 1), "BRPOP": (_LAST, 1), "BRPOPLPUSH": (_LAST, 1), "BLMOVE": (_LAST, 1), "BZPOPMIN": (_LAST, 1),
    "BZPOPMAX": (_LAST, 1), "BLMPOP": (_FIRST, 1), "BZMPOP": (_FIRST, 1), "WAIT": (_LAST, 1000),
    "WAITAOF": (_LAST, 1000),
}  # fmt: skip
_BLOCK_OPTION = frozenset(("XREAD", "XREADGROUP"))


@contextlib.contextmanager
def idempotent() -> Iterator[None]:
    """In this block every command may be repeated when its reply was lost: the caller knows that it does no harm."""
    token = _declared.set(True)
    try:
        yield
    finally:
        _declared.reset(token)


def words_of(arguments: Iterable[Any]) -> list[str]:
    """The arguments of a command in upper case, its own name first ("CONFIG GET" may come as one)."""
    words: list[str] = []
    for argument in arguments:
        text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
        words.extend(text.upper().split() if not words else (text.upper(),))
    return words


def is_idempotent(*arguments: Any) -> bool:
    """Whether this command may be run again when nobody knows whether it ran; see `idempotent()`."""
    if _declared.get():
        return True
    words = words_of(arguments)
    name = words[0] if words else ""
    if name in _BY_SUBCOMMAND:
        return len(words) > 1 and words[1] in _BY_SUBCOMMAND[name]
    return name in IDEMPOTENT and not _NOT_WITH.get(name, set()).intersection(words[2:])


class Wait:
    """How long a blocking command lets the server wait: `seconds` (0 means for ever), and how to make it shorter."""

    __slots__ = ("_position", "_units", "seconds")

    def __init__(self, arguments: tuple[Any, ...], position: int, units: int) -> None:
        self._position = position
        self._units = units
        self.seconds = float(arguments[position]) / units

    def shortened(self, arguments: tuple[Any, ...], seconds: float) -> tuple[Any, ...]:
        """The command with this wait instead, never 0."""
        changed = list(arguments)
        changed[self._position] = max(0.01, seconds) if self._units == 1 else max(1, int(seconds * self._units))
        return tuple(changed)


def wait_of(arguments: tuple[Any, ...]) -> Wait | None:
    """The wait of a blocking command; None for one that the server answers at once."""
    name = arguments[0]
    if not isinstance(name, str):
        name = words_of(arguments[:1])[0]
    try:
        if name in BLOCKING:
            return Wait(arguments, *BLOCKING[name])
        if name in _BLOCK_OPTION:
            words = words_of(arguments)
            if "BLOCK" in words[:8] and len(words) == len(arguments):
                return Wait(arguments, words.index("BLOCK") + 1, 1000)
    except (ValueError, IndexError):  # the server will say what is wrong with it
        pass
    return None
