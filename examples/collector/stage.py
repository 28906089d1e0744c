"""The surroundings: exchanges, servers where no URL was given, and what happens to them while the service runs."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import resilience
from resilience.testing import Postgres, Valkey

from .exchange import LISTED, Exchange

VICTIM = "kraken"
FAULTS = 0.05  # share of the requests that go wrong
SCALE = 60.0  # seconds that the acts are spread over when there is no end


class Act(NamedTuple):
    """Something that happens at a share of the time."""

    at: float
    words: str
    do: Callable[[], None]


class Stage(contextlib.ExitStack):
    """What the service runs on: `redis`, `postgres` and `store` are URLs, `exchanges` the living fakes."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.acts: list[Act] = []
        self.exchanges: dict[str, Exchange] = {}
        self.redis = self.postgres = self.store = ""

    def __enter__(self) -> Stage:
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def _set_up(self) -> None:
        options = self.options
        self.redis = options.redis or self._own_redis()
        self.postgres = options.postgres or self._own_postgres()
        self.store = options.store or self.redis
        for name in LISTED:
            self.exchanges[name] = Exchange(name, faults=0.0 if options.calm else FAULTS)
            self.callback(self.exchanges[name].close)
        victim = self.exchanges[VICTIM]
        self.acts += [Act(0.25, f"{VICTIM} dies", victim.die), Act(0.65, f"{VICTIM} returns", victim.revive)]
        if options.calm:
            self.acts.clear()

    def _own_redis(self) -> str:
        own = self.enter_context(Valkey())
        self.acts += [Act(0.4, "Redis is killed", own.kill), Act(0.5, "Redis is back, empty", own.restart)]
        return own.url

    def _own_postgres(self) -> str:
        own = self.enter_context(Postgres())
        self.acts.append(Act(0.8, "PostgreSQL restarts", own.restart))
        return own.dsn

    def play(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Lets everything happen in its time, and waits for the end; 0 seconds: for ever."""
        begun = time.monotonic()
        for act in sorted(self.acts):
            resilience.sleep(max(0.0, begun + act.at * (seconds or SCALE) - time.monotonic()))
            tell(act.words)
            act.do()
        resilience.sleep(max(0.0, begun + seconds - time.monotonic()) if seconds else 1e9)
