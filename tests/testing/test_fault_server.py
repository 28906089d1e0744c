"""The misbehaving server misbehaves as told, and leaves nothing behind."""

import pytest
import requests

from resilience.testing import BlackHole, DeadPort, FaultServer


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def session():
    with requests.Session() as made:
        yield made


def test_statuses_come_as_asked(server, session):
    assert session.get(f"{server.url}/ok?size=7").content == b"x" * 7
    assert session.get(f"{server.url}/status/418").status_code == 418
    assert session.get(f"{server.url}/nothing").status_code == 404
    turns = [session.get(f"{server.url}/sequence/503,429,200").status_code for _ in range(4)]
    assert turns == [503, 429, 200, 200]
    assert [request.connection for request in server.requests] == [1] * 7


def test_flaky_is_repeatable_by_its_seed(session):
    def statuses():
        with FaultServer(seed=3) as server:
            return [session.get(f"{server.url}/flaky?share=0.5").status_code for _ in range(20)]

    first = statuses()
    assert set(first) == {200, 503}
    assert statuses() == first


def test_a_limit_says_how_long_to_wait(server, session):
    told = session.get(f"{server.url}/limited?first=1&after=2")
    assert (told.status_code, told.headers["Retry-After"]) == (429, "2")
    assert session.get(f"{server.url}/limited?first=1&after=2").status_code == 200
    dated = session.get(f"{server.url}/limited?first=1&after=2&date=1")
    assert dated.headers["Retry-After"].endswith("GMT")


def test_cut_answers_are_errors(server, session):
    with pytest.raises(requests.ConnectionError):
        session.get(f"{server.url}/reset")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get(f"{server.url}/reset-body")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get(f"{server.url}/short")


def test_silence_and_black_holes_end_by_the_clients_timeout(server, session):
    with pytest.raises(requests.ReadTimeout):
        session.get(f"{server.url}/silent", timeout=0.1)
    with BlackHole() as hole, pytest.raises(requests.ConnectTimeout):
        session.get(hole.url, timeout=0.1)


def test_a_dead_port_refuses(session):
    with DeadPort() as dead, pytest.raises(requests.ConnectionError, match="refused"):
        session.get(dead.url)


def test_the_request_is_echoed(server, session):
    seen = session.put(f"{server.url}/echo", data="hello", headers={"X-Key": "1"}).json()
    assert (seen["method"], seen["body"], seen["headers"]["x-key"]) == ("PUT", "hello", "1")


def test_nothing_is_left_when_the_block_ends(new_threads):
    begun = new_threads()
    with FaultServer() as server, requests.Session() as session:
        session.get(f"{server.url}/ok")
        with pytest.raises(requests.ReadTimeout):
            session.get(f"{server.url}/silent", timeout=0.05)
    assert begun() == []
