"""A request ends at its deadline wherever it hangs, and its session is fit for the next one."""

import threading

import pytest
import requests

from resilience import DeadlineExceeded, classify, deadline
from resilience.core.clock import SYSTEM
from resilience.integrations.requests import DeadlineAdapter
from resilience.testing import BlackHole, DeadPort, FaultServer


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def session():
    with requests.Session() as made:
        made.mount("http://", DeadlineAdapter())
        made.mount("https://", DeadlineAdapter())
        yield made


@pytest.mark.parametrize(
    ("path", "phase", "outcome"),
    [("/silent", "headers", "unknown"), ("/drip?every=0.05&size=1000", "body", "partial"),
     ("/drip-headers?every=0.05", "headers", "unknown"), ("/slow?seconds=5", "headers", "unknown")],
)  # fmt: skip
def test_a_hanging_answer_ends_at_the_deadline(server, session, path, phase, outcome):
    session.get(f"{server.url}/ok")
    threads = threading.active_count()
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded) as caught, deadline(0.3):
        session.get(server.url + path, timeout=2.0)
    assert SYSTEM.monotonic() - begun < 1.5
    assert (caught.value.http_phase, caught.value.outcome) == (phase, outcome)
    assert classify(caught.value).outcome == outcome
    assert session.get(f"{server.url}/ok").status_code == 200
    assert threading.active_count() <= threads + 3


def test_a_black_hole_ends_at_the_deadline_with_nothing_sent(session):
    begun = SYSTEM.monotonic()
    with BlackHole() as hole, pytest.raises(DeadlineExceeded) as caught, deadline(0.3):
        session.get(hole.url, timeout=5.0)
    assert SYSTEM.monotonic() - begun < 1.5
    assert (caught.value.http_phase, caught.value.outcome) == ("connect", "not_sent")


def test_a_streamed_body_is_under_the_deadline_too(server, session):
    got = b""
    with deadline(0.4):
        response = session.get(f"{server.url}/drip?every=0.05&size=1000", stream=True)
        with pytest.raises(DeadlineExceeded):
            for chunk in response.iter_content(1):
                got += chunk
    assert 1 <= len(got) < 100


def test_a_body_without_length_that_is_cut_is_no_whole_body(session):
    def endless(request, connection):
        connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        connection.drip(b"x" * 1000, 0.05)

    with FaultServer(behave=endless) as server, pytest.raises(DeadlineExceeded), deadline(0.3):
        session.get(server.url)


def test_the_deadline_of_the_adapter_bounds_requests_outside_of_any_context(server):
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter(0.2))
        with pytest.raises(DeadlineExceeded) as caught:
            session.get(f"{server.url}/silent")
        assert not caught.value.ambient


def test_healthy_requests_reuse_their_connection(server, session):
    with deadline(5.0):
        for _ in range(5):
            assert session.get(f"{server.url}/ok?size=1000").content == b"x" * 1000
    assert server.connections == 1


def test_errors_in_time_stay_what_they_are(server, session):
    with deadline(5.0):
        with DeadPort() as dead, pytest.raises(requests.ConnectionError) as refused:
            session.get(dead.url)
        assert classify(refused.value).outcome == "not_sent"
        with pytest.raises(requests.ReadTimeout):
            session.get(f"{server.url}/silent", timeout=0.1)
        with pytest.raises(requests.ConnectionError):
            session.get("http://no-such-host.invalid/")
        with pytest.raises(requests.ConnectionError):
            session.get(f"{server.url}/reset")


def test_errors_name_the_classes_that_people_look_for(session):
    with DeadPort() as dead, pytest.raises(requests.ConnectionError) as refused:
        session.get(dead.url)
    assert str(refused.value).startswith("HTTPConnectionPool(host='127.0.0.1'")
    assert "_" not in str(refused.value)


def test_no_time_left_sends_nothing(server, session):
    with pytest.raises(DeadlineExceeded), deadline(0.0):
        session.get(f"{server.url}/ok")
    assert server.requests == []


def test_redirects_share_one_deadline(server, session):
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded), deadline(0.4):
        session.get(f"{server.url}/redirect?to=/slow%3Fseconds=5")
    assert SYSTEM.monotonic() - begun < 1.5


def test_many_threads_share_a_session_and_nothing_is_cut_by_mistake(server, session):
    failures = []

    def work():
        for _ in range(30):
            try:
                with deadline(5.0):
                    assert session.get(f"{server.url}/ok?size=5000").content == b"x" * 5000
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
