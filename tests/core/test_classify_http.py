"""What `classify` says about HTTP: requests, urllib3, urllib and http.client against sockets that misbehave."""

import contextlib
import http.client
import http.server
import socket
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import requests
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import classify

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # self-signed, for nothing but these tests
OK = b"HTTP/1.1 200 OK\r\n"
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def told(error):
    verdict = classify(error)
    can = "retry" if verdict.retryable else "final"
    return f"{verdict.category} {can} {verdict.outcome} {verdict.reason}"


def raised_by(act, *args):
    try:
        act(*args)
    except Exception as error:
        return error
    return pytest.fail("nothing was raised")


class Host:
    """Answers every connection with the same bytes, then closes, resets or hangs; `url` is where."""

    def __init__(self, answer, end="close", tls=False):
        self.answer, self.end = answer, end
        self.context = None
        if tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(CERTIFICATE)
        self.over = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            with connection:
                if self.over.is_set():
                    return
                with contextlib.suppress(OSError):
                    self.talk(connection)

    def talk(self, connection):
        connection.settimeout(5)
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True)
        with connection:
            connection.recv(65536)
            connection.sendall(self.answer)
            if self.end == "hang":
                self.over.wait(5)
            if self.end == "reset":
                self.over.wait(0.05)  # what was sent has arrived
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def close(self):
        self.over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self.thread.join(10)
        self.listener.close()


@pytest.fixture
def host():
    hosts = []

    def make(answer=b"", end="close", tls=False):
        hosts.append(Host(answer, end, tls))
        return hosts[-1].url

    yield make
    for each in hosts:
        each.close()


@pytest.fixture
def dead():
    """The URL of a port where nobody listens, and nobody else can meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}/"


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


def get(session, url, **options):
    options.setdefault("timeout", 5)
    with session.get(url, **options) as response:
        response.raise_for_status()
        return response.json() if options.get("stream") is None else response.content


# -- requests ----------------------------------------------------------------------------------------------------------

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GARBLED = OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"
LOOP = b"HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

ANSWERS = [
    # (answer, end, verdict)
    (b"", "close", "transient retry unknown http.client:RemoteDisconnected"),
    (b"", "reset", "transient retry unknown errno:ECONNRESET"),
    (b"", "hang", "transient retry unknown requests:ReadTimeout"),
    (b"nonsense\r\n\r\n", "close", "transient retry partial http.client:BadStatusLine"),
    (OK + b"Content-Length: 100\r\n\r\nhalf", "close", "transient retry partial requests:ChunkedEncodingError"),
    (OK + b"Content-Length: 100\r\n\r\nhalf", "reset", "transient retry partial requests:ChunkedEncodingError"),
    (OK + b"Content-Length: 100\r\n\r\nhalf", "hang", "transient retry partial urllib3:ReadTimeoutError:body"),
    (CHUNKED + b"5\r\nhal", "close", "transient retry partial requests:ChunkedEncodingError"),
    (CHUNKED + b"zz\r\n", "close", "transient retry partial requests:ChunkedEncodingError"),
    (GARBLED, "close", "logic final answered requests:ContentDecodingError"),
    (LOOP, "close", "permanent final answered requests:TooManyRedirects"),
    (OK + b"Content-Length: 1\r\n\r\n{", "close", "logic final answered requests:JSONDecodeError"),
]


@pytest.mark.parametrize(("answer", "end", "verdict"), ANSWERS)
def test_requests_judges_what_a_host_answers(session, host, answer, end, verdict):
    error = raised_by(lambda: get(session, host(answer, end), timeout=0.2 if end == "hang" else 5))
    assert isinstance(error, requests.RequestException)
    assert told(error) == verdict


def test_requests_to_a_dead_port_sends_nothing(session, dead):
    assert told(raised_by(get, session, dead)) == "transient retry not_sent urllib3:NewConnectionError"


def test_requests_that_cannot_connect_in_time_send_nothing(session):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(4):  # the backlog is full: further connections hang
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        late = raised_by(lambda: get(session, f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=0.1))
    assert told(late) == "transient retry not_sent requests:ConnectTimeout"


def test_requests_to_an_unknown_name_send_nothing(session):
    error = raised_by(get, session, "http://no-such-host.invalid/")
    assert told(error) == "transient retry not_sent urllib3:NameResolutionError"


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("no-scheme", "permanent final not_sent requests:MissingSchema"),
        ("gopher://host/", "permanent final not_sent requests:InvalidSchema"),
        ("http://", "permanent final not_sent requests:InvalidURL"),
    ],
)
def test_requests_for_what_is_no_url_are_permanent(session, url, verdict):
    assert told(raised_by(get, session, url)) == verdict


def test_requests_with_an_unsendable_header_or_body_are_final(session, dead):
    header = raised_by(lambda: session.get(dead, headers={"a": "b\r\nc"}))
    assert told(header) == "permanent final not_sent requests:InvalidHeader"
    body = raised_by(lambda: session.post(dead, json=float("nan")))
    assert told(body) == "logic final not_sent requests:InvalidJSONError"


def test_requests_through_a_dead_proxy_send_nothing(session, dead):
    error = raised_by(lambda: get(session, "http://host.invalid/", proxies={"http": dead}))
    assert told(error) == "transient retry not_sent urllib3:NewConnectionError"


@pytest.mark.parametrize(
    ("status", "verdict"),
    [("407 Proxy Authentication Required", "permanent final not_sent proxy:407"),
     ("503 Service Unavailable", "transient retry not_sent proxy:503")],
)  # fmt: skip
def test_requests_through_a_proxy_that_refuses_the_tunnel(session, host, status, verdict):
    proxy = host(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    error = raised_by(lambda: get(session, "https://host.invalid/", proxies={"https": proxy}))
    assert told(error) == verdict


def test_requests_with_an_untrusted_certificate_are_permanent(session, host):
    error = raised_by(get, session, host(OK, tls=True))
    assert isinstance(error, requests.exceptions.SSLError)
    assert told(error) == "permanent final not_sent ssl:CERTIFICATE_VERIFY_FAILED"


def test_requests_for_tls_from_a_plain_host_are_permanent(session, host):
    url = host(b"HTTP/1.1 400 Bad Request\r\n\r\n").replace("http:", "https:")
    verdict = classify(raised_by(get, session, url))
    assert (str(verdict.category), verdict.outcome) == ("permanent", "not_sent")


def test_requests_whose_handshake_breaks_off_are_transient(session, host):
    verdict = classify(raised_by(get, session, host().replace("http:", "https:")))
    assert (str(verdict.category), verdict.retryable, verdict.outcome) == ("transient", True, "unknown")


def test_requests_that_gave_up_their_own_retries_are_judged_by_the_last_answer(session, statuses):
    retries = urllib3.Retry(1, status_forcelist=[503, 404], backoff_factor=0)
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
    for status, verdict in ((503, "transient retry answered http:503"), (404, "permanent final answered http:404")):
        error = raised_by(get, session, f"{statuses}{status}")
        assert isinstance(error, requests.exceptions.RetryError)
        assert told(error) == verdict


# -- urllib3, http.client and urllib ---------------------------------------------------------------------------------


def urllib3_get(url):
    with urllib3.PoolManager(retries=False, timeout=0.3) as pool:
        return pool.request("GET", url).data


def client_get(url):
    connection = http.client.HTTPConnection(url[7:-1], timeout=0.3)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def urllib_get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=0.3) as response:
        return response.read()


HALF = OK + b"Content-Length: 100\r\n\r\nhalf"
OTHERS = [
    (urllib3_get, b"", "close", "transient retry unknown http.client:RemoteDisconnected"),
    (urllib3_get, b"", "reset", "transient retry unknown errno:ECONNRESET"),
    (urllib3_get, b"", "hang", "transient retry unknown urllib3:ReadTimeoutError"),
    (urllib3_get, HALF, "close", "transient retry partial urllib3:ProtocolError:body"),
    (urllib3_get, HALF, "hang", "transient retry partial urllib3:ReadTimeoutError:body"),
    (urllib3_get, GARBLED, "close", "logic final answered urllib3:DecodeError"),
    (client_get, b"", "close", "transient retry unknown http.client:RemoteDisconnected"),
    (client_get, b"", "reset", "transient retry unknown errno:ECONNRESET"),
    (client_get, b"", "hang", "transient retry unknown python:TimeoutError"),
    (client_get, HALF, "close", "transient retry partial http.client:IncompleteRead"),
    (client_get, b"nonsense\r\n\r\n", "close", "transient retry partial http.client:BadStatusLine"),
    (client_get, b"x" * 70_000, "close", "permanent final partial http.client:LineTooLong"),
    (urllib_get, b"", "close", "transient retry unknown http.client:RemoteDisconnected"),
    (urllib_get, HALF, "close", "transient retry partial http.client:IncompleteRead"),
    (urllib_get, b"", "hang", "transient retry unknown python:TimeoutError"),
]


@pytest.mark.parametrize(("act", "answer", "end", "verdict"), OTHERS)
def test_other_clients(host, act, answer, end, verdict):
    assert told(raised_by(act, host(answer, end))) == verdict


@pytest.mark.parametrize(
    ("act", "reason"),
    [(urllib3_get, "urllib3:NewConnectionError"), (client_get, "errno:ECONNREFUSED"),
     (urllib_get, "errno:ECONNREFUSED")],
)  # fmt: skip
def test_other_clients_send_nothing_to_a_dead_port(dead, act, reason):
    assert told(raised_by(act, dead)) == f"transient retry not_sent {reason}"


def test_misuse_of_a_client_is_a_bug_or_permanent():
    connection = http.client.HTTPConnection("127.0.0.1", 1)
    assert told(raised_by(connection.getresponse)) == "logic final unknown http.client:ImproperConnectionState"
    url = raised_by(lambda: http.client.HTTPConnection("127.0.0.1:port"))
    assert told(url) == "permanent final not_sent http.client:InvalidURL"
    assert told(raised_by(urllib_get, "nothing://x")) == "permanent final not_sent urllib:URLError"
    host = raised_by(urllib3_get, "http://[::1")
    assert told(host) == "permanent final not_sent urllib3:LocationValueError"


def test_a_pool_of_connections_that_is_used_up_wants_resources(dead):
    pool = urllib3.HTTPConnectionPool("127.0.0.1", 1, maxsize=1, block=True)
    pool.pool.get_nowait()
    empty = raised_by(lambda: pool.request("GET", "/", pool_timeout=0.01, retries=False))
    assert told(empty) == "resource retry not_sent urllib3:EmptyPoolError"
    pool.close()
    assert told(raised_by(pool.request, "GET", "/")) == "logic final not_sent urllib3:ClosedPoolError"


# -- statuses ----------------------------------------------------------------------------------------------------------

RETRYABLE = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
FINAL = {400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 412, 413, 414, 415, 422, 426, 428, 431, 451, 501, 505}


class EveryStatus(http.server.BaseHTTPRequestHandler):
    """Answers /429 with 429; what follows a question mark is Retry-After."""

    def do_GET(self):
        path, _, wait = self.path.partition("?")
        self.send_response_only(int(path[1:]))
        self.send_header("Date", DATE)
        if wait:
            self.send_header("Retry-After", urllib.request.unquote(wait))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def statuses():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EveryStatus) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", sorted(RETRYABLE | FINAL))
def test_statuses_by_requests_and_urllib(session, statuses, status):
    expected = "transient retry" if status in RETRYABLE else "permanent final"
    by_requests = raised_by(get, session, f"{statuses}{status}")
    assert isinstance(by_requests, requests.HTTPError)
    assert told(by_requests) == f"{expected} answered http:{status}"
    by_urllib = raised_by(urllib_get, f"{statuses}{status}")
    assert isinstance(by_urllib, urllib.error.HTTPError)
    with by_urllib:
        assert told(by_urllib) == f"{expected} answered http:{status}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("7", 7.0), (" 120 ", 120.0), ("1.5", 1.5), ("86400", 86400.0),
     ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0), ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
     ("Sun Nov  6 08:50:07 1994", 30.0), ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
     ("soon", None), ("-5", None), ("1e3", None), ("nan", None), ("inf", None), ("9" * 30, None), ("9" * 5000, None),
     ("Sun, 99 Nov 1994 08:50:07 GMT", None), ("1 2", None), ("1..2", None), (".", None),
     ("Sun, 06 Nov 9994 08:50:07 GMT", None)],
)  # fmt: skip
def test_retry_after_by_requests_and_urllib(session, statuses, text, seconds):
    url = f"{statuses}503?{urllib.request.quote(text)}"
    verdict = classify(raised_by(get, session, url))
    assert (verdict.reason, verdict.retry_after) == ("http:503", seconds)
    with raised_by(urllib_get, url) as error:
        assert classify(error).retry_after == seconds


def test_retry_after_of_an_answer_that_is_final_is_ignored(session, statuses):
    assert classify(raised_by(get, session, f"{statuses}404?7")).retry_after is None


def test_retry_after_in_a_leap_second_is_understood():
    headers = {"Retry-After": "Sat, 31 Dec 2016 23:59:60 GMT", "Date": "Sat, 31 Dec 2016 23:59:30 GMT"}
    assert classify(Carries(Answer(429, headers))).retry_after == 29.0


def test_retry_after_without_a_date_is_held_against_our_clock():
    from email.utils import formatdate

    from resilience.core.clock import SYSTEM

    verdict = classify(Carries(Answer(503, {"Retry-After": formatdate(SYSTEM.time() + 100, usegmt=True)})))
    assert 90 < verdict.retry_after <= 100


# -- whatever carries a response ---------------------------------------------------------------------------------------


class Answer:
    def __init__(self, status_code, headers=None):
        self.status_code, self.headers = status_code, headers

    def __bool__(self):
        return self.status_code < 400  # as requests has it


class Carries(Exception):
    def __init__(self, response):
        self.response = response


class Refuses:
    def __getattr__(self, name):
        raise ZeroDivisionError(name)


class RefusesItself(Exception):
    @property
    def response(self):
        raise KeyError("not yet")


def test_an_error_of_ones_own_that_carries_a_response_is_judged_by_its_status():
    assert told(Carries(Answer(404))) == "permanent final answered http:404"
    assert told(Carries(Answer(429, {"retry-after": "3"}))) == "transient retry answered http:429"
    assert classify(Carries(Answer(429, {"retry-after": "3"}))).retry_after == 3.0
    assert told(requests.HTTPError(response=Answer(503))) == "transient retry answered http:503"


STRANGE = [None, 5, "404", Refuses(), Answer("404"), Answer(None), Answer(True), Answer(200), Answer(-1),
           Answer(10**9), Answer(4.04), Exception, {"status_code": 404}]  # fmt: skip


@pytest.mark.parametrize("response", STRANGE, ids=repr)
def test_a_strange_response_says_nothing(response):
    assert told(Carries(response)) == "transient retry unknown unknown"
    theirs = requests.HTTPError()
    theirs.response = response
    assert told(theirs) == "transient retry unknown requests:HTTPError"


def test_an_error_that_hides_its_response_says_nothing():
    assert told(RefusesItself()) == "transient retry unknown unknown"


@given(st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.none()), st.text() | st.none())
@example("\u0663", None)
@example("1" * 4301, None)
@example("Mon, 01 Jan 99999 00:00:00 GMT", "garbage")
def test_no_retry_after_makes_it_raise(wait, date):
    verdict = classify(Carries(Answer(429, {"Retry-After": wait, "Date": date})))
    assert verdict.reason == "http:429"
    assert verdict.retry_after is None or 0 <= verdict.retry_after < 1e9


@pytest.mark.parametrize("headers", [None, 5, [], Refuses(), {"Retry-After": Refuses()}, "Retry-After: 5"], ids=repr)
def test_strange_headers_say_nothing(headers):
    assert classify(Carries(Answer(429, headers))).retry_after is None


def test_errors_made_by_hand_without_their_parts_are_judged_by_their_class():
    for module in (requests.exceptions, urllib3.exceptions):
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and not issubclass(kind, Warning):
                bare = kind.__new__(kind)
                assert classify(bare).reason.split(":")[0] in ("requests", "urllib3", "unknown"), kind
