"""A name that is never resolved ends at the deadline, with nothing sent; no operating system bounds that wait."""

import socket
import threading

import pytest

from resilience import DeadlineExceeded, ErrorRecoveryManager, RetryPolicy, classify, deadline
from resilience.core.clock import SYSTEM
from resilience.integrations.redis import resilient_redis
from resilience.integrations.requests import resilient_session


@pytest.fixture
def silent_resolver(monkeypatch):
    """A resolver that answers nothing about names until the test has ended."""
    real, over = socket.getaddrinfo, threading.Event()

    def resolve(host, port, family=0, type=0, proto=0, flags=0):
        if flags & socket.AI_NUMERICHOST:
            return real(host, port, family, type, proto, flags)
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    yield
    over.set()


@pytest.mark.parametrize("driver", ["requests", "redis"])
def test_a_silent_resolver_ends_at_the_deadline(silent_resolver, driver):
    with ErrorRecoveryManager() as manager:
        for operation in ("api_call", "redis_operation"):
            manager.register_retry_policy(operation, RetryPolicy(max_retries=0))
        begun = SYSTEM.monotonic()
        with pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
            if driver == "requests":
                with resilient_session(manager) as session:
                    session.post("http://never.example/", data="x")
            else:
                with resilient_redis("redis://never.example:6379", manager) as client:
                    client.incr("n")
        assert SYSTEM.monotonic() - begun < 2.0
        assert classify(caught.value).outcome == "not_sent"
