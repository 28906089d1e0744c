"""Promise 29: a request ends at its deadline wherever it hangs, HTTP and TLS, a hundred times over."""

import shutil
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilience import DeadlineExceeded, ErrorRecoveryManager, RetryPolicy, deadline
from resilience.integrations.requests import resilient_session
from resilience.testing import BlackHole, FaultServer

LIMIT = 0.5
LATE = 0.5  # seconds beyond the deadline: ten times the 0.05 s that are promised, for busy machines


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    place = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", "req", *kind, *map(str, place)], check=True, capture_output=True)
    return folder


@pytest.fixture(params=["http", "https"])
def served(request):
    """A server and a session that trusts it, over plain HTTP and over TLS."""
    tls = verify = None
    if request.param == "https":
        folder = request.getfixturevalue("certificate")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        verify = str(folder / "cert.pem")
    with ErrorRecoveryManager() as manager, FaultServer(tls=tls) as server, resilient_session(manager) as session:
        manager.register_retry_policy("api_call", RetryPolicy(max_retries=0))
        session.trust_env = False
        session.verify = verify
        yield server, session


def hang(session, url, times):
    """The seconds each of so many calls took that hung until their deadline, ten at a time."""

    def one(_):
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded), deadline(LIMIT):
            session.get(url)
        return time.monotonic() - begun

    with ThreadPoolExecutor(10, thread_name_prefix="caller") as callers:
        return list(callers.map(one, range(times)))


def judge(took, name):
    took.sort()
    print(f"{name}: {len(took)} calls, slowest {took[-1]:.3f} s, {sum(t <= 0.55 for t in took)} within 0.55 s")
    assert took[0] >= LIMIT - 0.01
    assert took[-1] <= LIMIT + LATE


@pytest.mark.parametrize("path", ["/silent", "/drip-headers?every=0.1", "/drip?every=0.1&size=1000"])
def test_a_call_that_hangs_ends_in_time(served, path):
    server, session = served
    session.get(f"{server.url}/ok")
    judge(hang(session, server.url + path, 2), path)
    assert session.get(f"{server.url}/ok").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/silent", "/drip-headers?every=0.1", "/drip?every=0.1&size=1000"])
def test_a_hundred_calls_that_hang_end_in_time_and_leave_no_thread(served, path, new_threads):
    server, session = served
    with deadline(10):
        session.get(f"{server.url}/ok")
    begun = new_threads()
    judge(hang(session, server.url + path, 100), path)
    assert [name for name in begun() if not name.startswith("fault-server")] == []
    assert session.get(f"{server.url}/ok").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_hundred_calls_into_a_black_hole_end_in_time_and_leave_no_thread(scheme, new_threads):
    with ErrorRecoveryManager() as manager, BlackHole() as hole, resilient_session(manager) as session:
        manager.register_retry_policy("api_call", RetryPolicy(max_retries=0))
        session.trust_env = False
        hang(session, hole.url, 1)
        begun = new_threads()
        judge(hang(session, hole.url.replace("http", scheme, 1), 100), f"black hole over {scheme}")
        assert begun() == []


@pytest.mark.slow
def test_a_tls_handshake_that_is_never_answered_ends_in_time():
    silent = FaultServer(behave=lambda request, connection: connection.pause(60))
    with ErrorRecoveryManager() as manager, silent as server, resilient_session(manager) as session:
        manager.register_retry_policy("api_call", RetryPolicy(max_retries=0))
        session.trust_env = False
        judge(hang(session, server.url.replace("http", "https", 1), 10), "TLS handshake")
