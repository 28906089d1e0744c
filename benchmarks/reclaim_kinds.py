"""The 21 ways to hang of `python -m benchmarks reclaim`, as a user writes them, and with aware clients where there are.

Each function runs under a mark: a file that holds its process id while it is inside. Who finds the mark and the process
alive has found a call that was not ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


def facts() -> dict[str, Any]:
    """What the driver of the matrix has set up: addresses and a folder."""
    told: dict[str, Any] = json.loads(os.environ["RECLAIM"])
    return told


@contextlib.contextmanager
def mark() -> Iterator[None]:
    path = os.path.join(facts()["folder"], "inside")
    with open(path, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def sleep() -> None:
    time.sleep(600)


def swallow() -> None:
    while True:
        try:
            time.sleep(600)
        except Exception:
            continue


def swallow_base() -> None:
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


def lock() -> None:
    held = threading.Lock()
    held.acquire()
    held.acquire()


def queue_() -> None:
    queue.Queue().get()


def _get(path: str) -> None:
    import requests

    _ = requests.get(facts()["http"] + path, timeout=60).content


def http_noanswer() -> None:
    _get("/silent")


def http_drip() -> None:
    _get("/drip?every=0.5&size=1000")


def http_drip_hdr() -> None:
    _get("/drip-headers?every=0.5&size=1000")


def blackhole() -> None:
    import requests

    requests.get(facts()["blackhole"], timeout=60)


def dns() -> None:
    import requests

    requests.get("http://nowhere.example/", timeout=60)


def redis_blpop() -> None:
    import redis

    redis.Redis.from_url(facts()["redis"]).blpop(["nothing"], timeout=600)


def redis_stop() -> None:
    import redis

    client = redis.Redis.from_url(facts()["redis"], socket_timeout=600)
    client.ping()
    os.kill(facts()["redis_pid"], signal.SIGSTOP)
    client.get("key")


def _pg(stop: bool) -> None:
    import psycopg2

    connection = psycopg2.connect(facts()["postgres"])
    with connection.cursor() as cursor:
        _stop_backend(connection, stop)
        cursor.execute("SELECT pg_sleep(600)")


def _stop_backend(connection: Any, stop: bool) -> None:
    if stop:
        pid = connection.get_backend_pid()
        with open(os.path.join(facts()["folder"], "backend"), "w", encoding="ascii") as file:
            file.write(str(pid))
        os.kill(pid, signal.SIGSTOP)


def pg_sleep() -> None:
    _pg(False)


def pg_stop() -> None:
    _pg(True)


def _family() -> list[str]:
    pids = os.path.join(facts()["folder"], "pids")
    return ["sh", "-c", f"sleep 600 & echo $! >> {pids}; setsid sleep 600 & echo $! >> {pids}; wait"]


def subprocess_() -> None:
    subprocess.run(_family(), check=True)


def pyloop() -> None:
    while True:
        pass


def gil_re() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def gil_sum() -> None:
    sum(itertools.repeat(1))


def c_nogil() -> None:
    import hashlib

    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 2**31 - 1)


def segv() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(600)


def memhog() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1024) * 5_000 if len(kept) < 60 else b""))
        time.sleep(0.05)


# -- with aware clients: what of this toolkit a user would take ---------------------------------------------------


def aware_lock() -> None:
    import resilience

    held = threading.Lock()
    held.acquire()
    held.acquire(timeout=resilience.remaining() or 0.0)
    resilience.checkpoint()


def aware_queue() -> None:
    import resilience

    with contextlib.suppress(queue.Empty):
        queue.Queue().get(timeout=resilience.remaining() or 0.0)
    resilience.checkpoint()


def _aware_get(url: str) -> None:
    import requests

    from resilience.integrations.requests import DeadlineAdapter

    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter())
        _ = session.get(url, timeout=60).content


def aware_noanswer() -> None:
    _aware_get(facts()["http"] + "/silent")


def aware_drip() -> None:
    _aware_get(facts()["http"] + "/drip?every=0.5&size=1000")


def aware_drip_hdr() -> None:
    _aware_get(facts()["http"] + "/drip-headers?every=0.5&size=1000")


def aware_blackhole() -> None:
    _aware_get(facts()["blackhole"])


def _aware_redis(stop: bool | None) -> None:
    from resilience import ErrorRecoveryManager, RetryPolicy
    from resilience.integrations.redis import resilient_redis

    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("redis_operation", RetryPolicy(max_retries=0))
        manager.register_timeout("redis_operation", 600.0)
        with resilient_redis(facts()["redis"], manager) as client:
            client.ping()
            if stop:
                os.kill(facts()["redis_pid"], signal.SIGSTOP)
                client.get("key")
            elif stop is False:
                client.blpop(["nothing"], timeout=600)


def aware_redis_blpop() -> None:
    _aware_redis(False)


def aware_redis_stop() -> None:
    _aware_redis(True)


def _aware_pg(stop: bool | None) -> None:
    from resilience import ErrorRecoveryManager, RetryPolicy
    from resilience.integrations.psycopg2 import ResilientPool

    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("database_operation", RetryPolicy(max_retries=0))
        manager.register_timeout("database_operation", 600.0)
        with ResilientPool(facts()["postgres"], manager) as pool:
            connection = pool.getconn()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                if stop is not None:
                    _stop_backend(connection, stop)
                    cursor.execute("SELECT pg_sleep(600)")
            pool.putconn(connection)


def aware_pg_sleep() -> None:
    _aware_pg(False)


def aware_pg_stop() -> None:
    _aware_pg(True)


def aware_subprocess() -> None:
    from resilience.integrations.subprocess import run

    run(_family())


BLIND: dict[str, Callable[[], None]] = {
    "sleep": sleep, "swallow": swallow, "swallow_base": swallow_base, "lock": lock, "queue": queue_,
    "http_noanswer": http_noanswer, "http_drip": http_drip, "http_drip_hdr": http_drip_hdr, "blackhole": blackhole,
    "dns": dns, "redis_blpop": redis_blpop, "redis_stop": redis_stop, "pg_sleep": pg_sleep, "pg_stop": pg_stop,
    "subprocess": subprocess_, "pyloop": pyloop, "gil_re": gil_re, "gil_sum": gil_sum, "c_nogil": c_nogil,
    "segv": segv, "memhog": memhog,
}  # fmt: skip
AWARE: dict[str, Callable[[], None]] = {
    "lock": aware_lock, "queue": aware_queue, "http_noanswer": aware_noanswer, "http_drip": aware_drip,
    "http_drip_hdr": aware_drip_hdr, "blackhole": aware_blackhole, "redis_blpop": aware_redis_blpop,
    "redis_stop": aware_redis_stop, "pg_sleep": aware_pg_sleep, "pg_stop": aware_pg_stop,
    "subprocess": aware_subprocess,
}  # fmt: skip


def blind(kind: str) -> None:
    """Hangs as a user's code does."""
    with mark():
        BLIND[kind]()


def aware(kind: str) -> None:
    """Hangs as a user's code does that takes the aware clients where there are."""
    with mark():
        AWARE.get(kind, BLIND[kind])()


def nothing(kind: str) -> None:
    """For starting the workers, with all that the kind imports: a hang is measured, and no import before it."""
    if facts()["aware"] and kind in AWARE:
        _call_that_works(kind)
        return
    if kind.startswith(("http", "blackhole", "dns")):
        from resilience.integrations import requests  # noqa: F401
    if kind.startswith("redis"):
        from resilience.integrations import redis  # noqa: F401
    if kind.startswith("pg"):
        from resilience.integrations import psycopg2  # noqa: F401


def _call_that_works(kind: str) -> None:
    """A call through the same aware client that ends at once."""
    if kind.startswith(("http", "blackhole")):
        _aware_get(facts()["http"] + "/ok")
    elif kind.startswith("redis"):
        _aware_redis(None)
    elif kind.startswith("pg"):
        _aware_pg(None)
    elif kind == "subprocess":
        from resilience.integrations.subprocess import run

        run(["true"])
