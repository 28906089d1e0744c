"""A request ends at its deadline wherever it hangs, and its session is fit for the next one."""

import gc
import importlib.util
import pickle
import socket
import sys
import threading
import types

import pytest
import requests
from urllib3.connection import HTTPConnection

from resilience import DeadlineExceeded, classify, deadline
from resilience.core.clock import SYSTEM
from resilience.integrations.requests import DeadlineAdapter
from resilience.integrations.requests import deadline as deadline_module
from resilience.integrations.requests.scope import scope_of_call
from resilience.testing import BlackHole, DeadPort, FaultServer
from resilience.workers.ledger import LEDGER


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


def test_a_session_that_is_copied_keeps_its_deadline(server):
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter(0.2))
        with pickle.loads(pickle.dumps(session)) as copied, pytest.raises(DeadlineExceeded):
            copied.get(f"{server.url}/silent")


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


def test_the_wait_for_a_connection_of_a_blocking_pool_ends_at_the_deadline(server):
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter(pool_block=True, pool_maxsize=1))
        taken = session.get(f"{server.url}/ok", stream=True)
        back = threading.Timer(8.0, taken.close)  # rather than to hang
        back.start()
        begun = SYSTEM.monotonic()
        with pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
            session.get(f"{server.url}/ok")
        assert SYSTEM.monotonic() - begun < 5.0
        assert (caught.value.http_phase, caught.value.outcome) == ("pool", "not_sent")
        back.cancel()
        assert taken.content
        with deadline(10.0):
            assert session.get(f"{server.url}/ok").ok


@pytest.fixture
def socks(server, monkeypatch):
    """A stand-in for PySocks, whose proxy leads to the server; gives the time limits it was asked to keep."""
    limits = []

    def create_connection(destination, timeout=None, **settings):
        limits.append(timeout)
        return socket.create_connection((server.host, server.port))

    stand_in = types.ModuleType("socks")
    stand_in.PROXY_TYPE_SOCKS4, stand_in.PROXY_TYPE_SOCKS5, stand_in.ProxyError = 1, 2, OSError
    stand_in.create_connection, stand_in.socksocket = create_connection, socket.socket
    monkeypatch.setitem(sys.modules, "socks", stand_in)
    spec = importlib.util.find_spec("urllib3.contrib.socks")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", module.SOCKSProxyManager)
    return limits


def test_requests_through_a_socks_proxy_keep_the_deadline(session, socks):
    proxies = {"http": "socks5h://localhost:1080"}
    assert session.get("http://behind.invalid/ok", proxies=proxies).ok
    with deadline(0.3):
        assert session.get("http://also-behind.invalid/ok", proxies=proxies).ok
        with pytest.raises(DeadlineExceeded) as caught:
            session.get("http://also-behind.invalid/silent", proxies=proxies)
    assert caught.value.http_phase == "headers"
    assert len(socks) == 2
    assert 0 < socks[1] <= 0.3


def open_connections():
    return LEDGER.alive().get("connection", {}).get("requests", 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_streamed_answers_that_are_dropped_unread_are_closed_at_once(server, session):
    gc.collect()
    gc.disable()
    try:
        with deadline(60.0):
            for _ in range(5):
                session.get(f"{server.url}/ok", stream=True)
        assert open_connections() == 0
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_one_that_the_collector_finds_is_closed_too(server, session):
    with deadline(60.0):
        response = session.get(f"{server.url}/ok", stream=True)
    response.itself = response
    del response
    gc.collect()
    assert open_connections() == 0


def test_a_ctrl_c_within_a_request_closes_its_connection_at_once(server, session, monkeypatch):
    def interrupted(connection):
        raise KeyboardInterrupt

    monkeypatch.setattr(HTTPConnection, "getresponse", interrupted)
    with deadline(60.0), pytest.raises(KeyboardInterrupt):
        session.get(f"{server.url}/ok")
    assert open_connections() == 0


def test_a_ctrl_c_at_the_start_of_a_request_leaves_the_thread_outside_of_it(server, session, monkeypatch):
    class Interrupted:
        get = scope_of_call.get

        def set(self, scope):
            scope_of_call.set(scope)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, deadline(0.2), pytest.raises(KeyboardInterrupt):
        patched.setattr(deadline_module, "scope_of_call", Interrupted())
        session.get(f"{server.url}/ok")
    assert scope_of_call.get() is None
    assert session.get(f"{server.url}/ok").ok


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ctrl_c_at_the_end_of_a_request_closes_its_connection_at_once(server, session, monkeypatch):
    class Interrupted:
        set, get = scope_of_call.set, scope_of_call.get

        def reset(self, token):
            scope_of_call.reset(token)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, deadline(60.0), pytest.raises(KeyboardInterrupt):
        patched.setattr(deadline_module, "scope_of_call", Interrupted())
        session.get(f"{server.url}/ok")
    assert open_connections() == 0


def test_a_body_read_to_its_end_ends_its_deadline_and_its_connection(session):
    def last_words(request, connection):
        connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nall")

    with FaultServer(behave=last_words) as server, deadline(0.3) as context:
        response = session.get(server.url, stream=True)
        assert response.raw.read() == b"all"
        assert open_connections() == 0
        context.clock.sleep(0.4)
        assert response.raw.read() == b""
