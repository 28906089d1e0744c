"""A session under a manager: what is repeated and what is not, one breaker per host, and what the caller gets."""

import copy
import io
import os
import threading

import pytest
import requests

from resilience import (
    BulkheadFullError,
    CircuitBreakerConfig,
    CircuitOpenError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    OutcomeUnknown,
    RetryAfterTooLong,
    RetryPolicy,
    deadline,
    history,
)
from resilience.core.clock import SYSTEM
from resilience.integrations.requests import ResilientAdapter, resilient_session
from resilience.testing import BlackHole, DeadPort, FaultServer, eventually

QUICK = RetryPolicy(max_retries=3, base_delay=0.001, max_delay=0.002)


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        made.register_retry_policy("api_call", QUICK)
        made.register_circuit_breaker("api_call", CircuitBreakerConfig(failure_threshold=20))
        yield made


@pytest.fixture
def session(manager):
    with resilient_session(manager) as made:
        made.trust_env = False
        yield made


def calls(manager, operation="api_call"):
    return manager.monitor.operations()[operation]


def breaker_of(manager, server):
    return manager.status()["breakers"][f"api_call:{server.host}:{server.port}"]


def test_failing_answers_are_repeated_until_one_is_good(server, session, manager):
    response = session.get(f"{server.url}/sequence/503,500,200")
    assert response.status_code == 200
    assert len(server.requests) == 3
    counted = calls(manager)
    assert (counted["calls"], counted["successes"], counted["retries"]) == (1, 1, 2)
    stats = breaker_of(manager, server)
    assert (stats["failures"], stats["successes"]) == (2, 1)


def test_the_last_response_is_returned_when_retries_end(server, session, manager):
    response = session.get(f"{server.url}/status/503")
    assert response.status_code == 503
    assert response.content == b"as asked\n"
    assert len(server.requests) == 4
    assert [attempt.category for attempt in history(response).attempts] == ["transient"] * 4
    counted = calls(manager)
    assert (counted["calls"], counted["failures"], counted["retries"]) == (1, 1, 3)
    with pytest.raises(requests.HTTPError):
        response.raise_for_status()


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
def test_other_4xx_are_answers_of_a_healthy_host(server, session, manager, status):
    assert session.get(f"{server.url}/status/{status}").status_code == status
    assert len(server.requests) == 1
    stats = breaker_of(manager, server)
    assert (stats["failures"], stats["successes"]) == (0, 1)
    assert calls(manager)["failures"] == 0


@pytest.mark.parametrize("status", [408, 429, 500, 501, 502, 503, 504, 599])
def test_5xx_408_and_429_are_failures_of_the_host(server, session, manager, status):
    assert session.get(f"{server.url}/status/{status}").status_code == status
    stats = breaker_of(manager, server)
    assert stats["successes"] == 0
    assert stats["failures"] == len(server.requests) >= 1


def test_one_breaker_per_host_with_the_config_registered_for_the_operation(server, manager):
    manager.circuit_breaker("market_data", CircuitBreakerConfig(failure_threshold=2, timeout=60.0))
    manager.register_retry_policy("market_data", RetryPolicy(max_retries=0))
    with resilient_session(manager, operation="market_data") as session, FaultServer() as other:
        for _ in range(2):
            assert session.get(f"{server.url}/status/500").status_code == 500
        begun = SYSTEM.monotonic()
        with pytest.raises(CircuitOpenError) as refused:
            session.get(f"{server.url}/ok")
        assert SYSTEM.monotonic() - begun < 0.5
        assert refused.value.name == f"market_data:{server.host}:{server.port}"
        assert session.get(f"{other.url}/ok").status_code == 200
    assert len(server.requests) == 2
    assert calls(manager, "market_data")["rejections"] == 1


def test_what_nobody_answers_is_a_failure_of_the_host(session, manager):
    with DeadPort() as dead:
        with pytest.raises(requests.ConnectionError) as caught:
            session.get(dead.url)
        assert breaker_of(manager, dead)["failures"] == 4
    assert len(history(caught.value)) == 4


def test_a_post_is_not_repeated_after_a_500_but_returned(server, session):
    assert session.post(f"{server.url}/status/500", data=b"x").status_code == 500
    assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("refusal", ["429", "503"])
def test_a_post_is_repeated_after_a_refusal(server, session, method, refusal):
    response = session.request(method, f"{server.url}/sequence/{refusal},200", data=b"payload")
    assert response.status_code == 200
    assert [request.body for request in server.requests] == [b"payload"] * 2


def test_a_post_that_was_not_sent_is_repeated(session, manager):
    with DeadPort() as dead, pytest.raises(requests.ConnectionError) as caught:
        session.post(dead.url, data=b"x")
    assert len(history(caught.value)) == 4


@pytest.mark.parametrize(("path", "phase"), [("/reset", "sent"), ("/reset-body", "partial"), ("/short", "partial")])
def test_a_post_whose_answer_was_lost_happens_once_and_is_called_unknown(server, session, path, phase):
    with pytest.raises(OutcomeUnknown) as caught:
        session.post(server.url + path, data=b"x")
    assert caught.value.phase == phase
    assert isinstance(caught.value.__cause__, requests.RequestException)
    assert len(server.requests) == 1


def test_a_post_that_is_cut_by_its_deadline_is_called_unknown(server, session):
    with pytest.raises(OutcomeUnknown) as caught, deadline(0.3):
        session.post(f"{server.url}/silent", data=b"x")
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_idempotent_methods_are_repeated_after_a_lost_answer(server, session, method):
    with pytest.raises(requests.ConnectionError):
        session.request(method, f"{server.url}/reset", data=b"x" if method == "PUT" else None)
    assert len(server.requests) == 4


def test_who_knows_better_says_that_a_post_may_be_repeated(server, manager):
    with requests.Session() as session:
        session.mount("http://", ResilientAdapter(manager, idempotent=lambda request: True))
        with pytest.raises(requests.ConnectionError):
            session.post(f"{server.url}/reset", data=b"x")
    assert len(server.requests) == 4


def test_a_file_is_sent_from_its_start_again(server, session):
    response = session.put(f"{server.url}/sequence/503,200", data=io.BytesIO(b"the whole file"))
    assert response.status_code == 200
    assert [request.body for request in server.requests] == [b"the whole file"] * 2


def test_a_pipe_that_was_not_sent_fails_as_any_other_body_does(session, manager):
    reader, writer = os.pipe()
    os.close(writer)
    with DeadPort() as nobody, os.fdopen(reader, "rb") as body, pytest.raises(requests.ConnectionError):
        session.post(nobody.url, data=body)
    assert calls(manager)["retries"] == 3


def test_an_adapter_is_not_copied(session):
    with pytest.raises(TypeError, match="manager"):
        copy.deepcopy(session)


def test_a_body_that_cannot_be_read_twice_is_not_sent_twice(server, session):
    class Once:
        """A body with a length and no way back."""

        def __init__(self):
            self.left = [b"abc"]

        def __len__(self):
            return 3

        def __iter__(self):
            return iter(self.left)

    assert session.put(f"{server.url}/sequence/503,200", data=Once()).status_code == 503
    assert len(server.requests) == 1


def test_a_timed_out_attempt_of_a_get_is_repeated_and_may_succeed(server, manager):
    slow = [True]

    def behave(request, connection):
        if slow:
            slow.clear()
            connection.pause(5.0)
        connection.answer(200, b"at last")

    manager.register_timeout("api_call", 1.0)
    with FaultServer(behave=behave) as hanging, resilient_session(manager) as session:
        assert session.get(hanging.url).content == b"at last"
        assert len(hanging.requests) == 2
        assert breaker_of(manager, hanging)["failures"] == 1


def test_a_dripping_body_ends_with_its_attempt_and_counts(server, manager):
    manager.register_timeout("api_call", 0.2)
    manager.register_retry_policy("api_call", RetryPolicy(max_retries=1, base_delay=0.001))
    with resilient_session(manager) as session:
        with pytest.raises(DeadlineExceeded) as caught:
            session.get(f"{server.url}/drip?every=0.05&size=1000")
        assert caught.value.reclaimed
        assert not caught.value.ambient
        manager.register_timeout("api_call", 10.0)
        assert session.get(f"{server.url}/ok").status_code == 200
    assert calls(manager)["timeouts"] == 1
    assert breaker_of(manager, server)["failures"] == 2


def test_the_ambient_deadline_ends_all_attempts_and_blames_no_host(server, session, manager):
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded) as caught, deadline(0.4):
        session.get(f"{server.url}/silent")
    assert SYSTEM.monotonic() - begun < 2.0
    assert caught.value.ambient
    assert breaker_of(manager, server)["failures"] == 0


def test_retry_after_is_obeyed(server, session):
    assert session.get(f"{server.url}/limited?after=0.2").status_code == 200
    first, second = server.requests
    assert second.at - first.at >= 0.2


def test_retry_after_beyond_the_deadline_is_told_at_once(server, session):
    begun = SYSTEM.monotonic()
    with pytest.raises(RetryAfterTooLong) as caught, deadline(5.0):
        session.get(f"{server.url}/limited?after=3600")
    assert SYSTEM.monotonic() - begun < 0.5
    assert caught.value.retry_after == 3600
    assert caught.value.__cause__.response.status_code == 429
    assert len(server.requests) == 1


def test_a_stream_outlives_its_attempt_but_not_the_ambient_deadline(server, manager):
    manager.register_timeout("api_call", 0.3)
    with resilient_session(manager, idle=5.0) as session:
        response = session.get(f"{server.url}/drip?every=0.04&size=15", stream=True)
        assert response.content == b"x" * 15
        got = b""
        with deadline(0.4):
            response = session.get(f"{server.url}/drip?every=0.05&size=1000", stream=True)
            with pytest.raises(DeadlineExceeded) as caught:
                for chunk in response.iter_content(1):
                    got += chunk
        assert caught.value.ambient
        assert 1 <= len(got) < 100


def test_a_stream_that_stops_ends_by_its_idle_limit(manager):
    def behave(request, connection):
        connection.send(connection.head(200, 100) + b"some")
        connection.pause(30.0)

    with FaultServer(behave=behave) as server, resilient_session(manager, idle=0.2) as session:
        response = session.get(server.url, stream=True)
        with pytest.raises(requests.ConnectionError):
            list(response.iter_content(1))


def test_a_failing_stream_can_still_be_read(server, session):
    response = session.get(f"{server.url}/status/503", stream=True)
    assert response.raw.read() == b"as asked\n"
    assert len(server.requests) == 4


def test_retries_of_urllib3_are_off_and_their_owner_is_told(server, manager):
    own = requests.Session()
    own.mount("http://", requests.adapters.HTTPAdapter(max_retries=3))
    with pytest.warns(UserWarning, match="urllib3's own retries"):
        session = resilient_session(manager, own)
    with session, pytest.raises(requests.ConnectionError):
        session.get(f"{server.url}/reset")
    assert len(server.requests) == 4


def test_an_outer_policy_owns_the_retries(server, session):
    def fetch():
        response = session.get(f"{server.url}/status/503")
        response.raise_for_status()

    with pytest.raises(requests.HTTPError):
        RetryPolicy(max_retries=2, base_delay=0.001).call(fetch)
    assert len(server.requests) == 3


def test_inside_its_own_operation_a_request_is_an_attempt_of_that_call(server, session, manager):
    def fetch():
        response = session.get(f"{server.url}/sequence/503,503,200")
        response.raise_for_status()
        return response.status_code

    assert manager.execute_with_retry("api_call", fetch) == 200
    counted = calls(manager)
    assert (counted["calls"], counted["retries"]) == (1, 2)
    assert len(server.requests) == 3


def test_whatever_else_is_registered_for_the_operation_applies(server, session, manager):
    from resilience import Bulkhead

    manager.register_bulkhead("api_call", Bulkhead("api_call", 1))
    waiting = threading.Thread(target=lambda: session.get(f"{server.url}/slow?seconds=0.5"))
    waiting.start()
    eventually(lambda: server.requests)
    with pytest.raises(BulkheadFullError):
        session.get(f"{server.url}/ok")
    waiting.join()


def test_redirects_go_through_the_breaker_of_where_they_lead_to(server, session, manager):
    with FaultServer() as other:
        assert session.get(f"{server.url}/redirect?to={other.url}/ok").status_code == 200
        assert breaker_of(manager, server)["successes"] == 1
        assert breaker_of(manager, other)["successes"] == 1


def test_a_hundred_black_holes_leave_no_thread(manager, new_threads):
    manager.register_retry_policy("api_call", RetryPolicy(max_retries=0))
    with BlackHole() as hole, FaultServer() as server, resilient_session(manager) as session:
        session.get(f"{server.url}/ok")
        with deadline(5.0):
            session.get(f"{server.url}/ok")
        begun = new_threads()
        for _ in range(5):
            with pytest.raises(DeadlineExceeded), deadline(0.05):
                session.get(hole.url)
        assert begun() == []
