"""Promises 30, 31 and 34: Redis that is stopped, refuses, or is cut off at any moment."""

import os
import random
import signal
import time
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from resilience import (
    CircuitBreakerConfig,
    CircuitOpenError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    OutcomeUnknown,
    RetryPolicy,
    deadline,
)
from resilience.integrations.redis import resilient_redis
from resilience.testing import DeadPort, FaultProxy


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        yield made


def server_process(url):
    """The process that listens on the port of the URL."""
    port = urlsplit(url).port
    for child in psutil.Process().children(recursive=True):
        try:
            listening = [place.laddr.port for place in child.net_connections("inet") if place.status == "LISTEN"]
        except psutil.Error:
            continue
        if port in listening:
            return child.pid
    pytest.skip("the process of the server cannot be found")


def test_one_incr_whose_reply_is_lost_three_times_ran_once_and_reads_succeed(valkey_url, manager):
    parts = urlsplit(valkey_url)
    with (
        FaultProxy(parts.hostname, parts.port) as proxy,
        redis.Redis.from_url(valkey_url) as direct,
        resilient_redis(f"redis://127.0.0.1:{proxy.port}", manager) as client,
    ):
        direct.delete("promise30")
        proxy.drop_replies(3, to=b"INCR")
        with pytest.raises(OutcomeUnknown):
            client.incr("promise30")
        assert direct.get("promise30") == b"1"
        for name, call in (("GET", lambda: client.get("promise30")), ("SET", lambda: client.set("promise30", 1))):
            before = proxy.dropped
            proxy.drop_replies(3, to=name.encode())
            assert call()
            assert proxy.dropped - before == 3


def test_a_stopped_or_refusing_server_is_answered_for_in_time(valkey_url, manager):
    """Bounds: the promise's 0.35 s and 5 ms, with the room of a busy machine."""
    process = server_process(valkey_url)
    manager.register_fallback("redis_operation", "stale")
    with resilient_redis(valkey_url, manager) as client, DeadPort() as dead:
        client.ping()
        os.kill(process, signal.SIGSTOP)
        try:
            stopped = took(lambda: client.get("k"))
        finally:
            os.kill(process, signal.SIGCONT)
        with resilient_redis(f"redis://127.0.0.1:{dead.port}", manager) as other:
            refused = took(lambda: other.get("k"))
        manager.circuit_breaker("redis_operation").force_open()
        begun = time.monotonic()
        assert client.get("k") == "stale"
        opened = time.monotonic() - begun
    print(f"stopped {stopped:.3f} s, refused {refused:.3f} s, breaker open {opened * 1000:.2f} ms")
    assert stopped < 3.5
    assert refused < 3.5
    assert opened < 0.05


def took(call):
    begun = time.monotonic()
    with deadline(0.3):
        assert call() == "stale"
    return time.monotonic() - begun


def test_an_open_breaker_refuses_at_once(valkey_url, manager):
    manager.register_circuit_breaker("redis_operation", CircuitBreakerConfig(failure_threshold=1, timeout=60.0))
    manager.register_retry_policy("redis_operation", RetryPolicy(max_retries=0))
    with DeadPort() as dead, resilient_redis(f"redis://127.0.0.1:{dead.port}", manager) as client:
        with pytest.raises(redis.ConnectionError):
            client.ping()
        begun = time.monotonic()
        for _ in range(100):
            with pytest.raises(CircuitOpenError):
                client.ping()
        assert (time.monotonic() - begun) / 100 < 0.05


@pytest.mark.parametrize("cuts", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_cuts_at_random_moments_give_no_answer_to_the_wrong_question(valkey_url, manager, cuts):
    """Cut by the deadline and by the network, at any byte; no retries, so that every cut is seen."""
    manager.register_retry_policy("redis_operation", RetryPolicy(max_retries=0))
    manager.register_circuit_breaker("redis_operation", CircuitBreakerConfig(failure_threshold=10**6))
    parts = urlsplit(valkey_url)
    draw = random.Random(34)
    with FaultProxy(parts.hostname, parts.port) as proxy, redis.Redis.from_url(valkey_url) as direct:
        direct.mset({f"cut{number}": number for number in range(cuts)})
        with resilient_redis(f"redis://127.0.0.1:{proxy.port}", manager) as client:
            client.ping()
            wrong = cut = right = 0
            for number in range(cuts):
                kind = draw.randrange(3)
                if kind == 0:
                    proxy.latency = 0.002
                elif kind == 1:
                    proxy.cut_after(draw.randrange(1, 8))
                else:
                    proxy.drip = 0.001
                try:
                    with deadline(draw.uniform(0.0005, 0.01)):
                        answer = client.get(f"cut{number}")
                    right += 1
                    wrong += answer != b"%d" % number
                except (DeadlineExceeded, redis.RedisError):
                    cut += 1
                proxy.latency = proxy.drip = 0.0
                proxy.cut_after(None)
                if draw.random() < 0.5:
                    wrong += client.get(f"cut{number}") != b"%d" % number
                    right += 1
            client.connection_pool.disconnect()
        give_up = time.monotonic() + 10
        while proxy.open_connections and time.monotonic() < give_up:
            time.sleep(0.01)
        print(f"{cut} cut, {right} answered, {wrong} wrong, {proxy.open_connections} sockets left")
        assert cut >= cuts // 10
        assert right >= cuts // 100
        assert wrong == 0
        assert proxy.open_connections == 0
