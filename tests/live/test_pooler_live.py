"""The PostgreSQL store behind a pooler, which lends its connections for one transaction at a time."""

import contextlib
import os
import queue
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
import uuid

import psycopg2
import pytest

from resilience import CircuitBreaker, CircuitBreakerConfig, StoreUnavailable, open_store
from resilience.testing import Postgres, StoreContract, eventually

PATIENCE = 30.0
SIZE = 3  # connections in a pool
URL = "postgresql://postgres@127.0.0.1:{}/postgres"
SETTINGS = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
"""


@contextlib.contextmanager
def pgbouncer(server, mode):
    """The URL of a PgBouncer before a PostgreSQL. Skips where the program is missing."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        print("skipping: there is no pgbouncer on PATH")
        pytest.skip("there is no pgbouncer on PATH")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    size = 10 * SIZE if mode == "session" else SIZE
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as settings:
        settings.write(SETTINGS.format(server=server.port, port=port, mode=mode, size=size))
        settings.flush()
        os.chmod(settings.name, 0o644)
        with subprocess.Popen([program, "-q", *user, settings.name]) as process:
            try:
                eventually(lambda: process.poll() is not None or answers(URL.format(port)))
                yield URL.format(port)
            finally:
                process.kill()


def answers(url):
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


class StandIn:
    """A pooler in small: simple queries, each transaction on whichever connection is free, keys of its own."""

    def __init__(self, port):
        self.idle = queue.LifoQueue()
        for _ in range(SIZE):
            server = socket.create_connection(("127.0.0.1", port))
            words = b"\0\3\0\0user\0postgres\0database\0postgres\0\0"
            server.sendall(struct.pack("!i", len(words) + 4) + words)
            stream = server.makefile("rb")
            greeting, _ = answer(stream)
            self.idle.put((server, stream))
        self.hello = b"".join(message for message in greeting if message[:1] in b"RS")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = URL.format(self.listener.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self.listener.accept()[0],), daemon=True).start()

    def serve(self, client):
        with contextlib.suppress(OSError, struct.error), client, client.makefile("rb") as stream:
            while struct.unpack("!ii", head := stream.read(8))[1] != 196608:  # asked for encryption
                client.sendall(b"N")
            stream.read(struct.unpack("!i", head[:4])[0] - 8)
            client.sendall(self.hello + b"K" + struct.pack("!i", 12) + os.urandom(8) + b"Z\0\0\0\5I")
            while (query := message(stream))[:1] == b"Q":
                server, replies = self.idle.get()
                try:
                    while True:
                        server.sendall(query)
                        answered, state = answer(replies)
                        client.sendall(b"".join(answered))
                        if state == b"I":
                            break
                        query = message(stream)
                        if query[:1] != b"Q":
                            query = b"Q\0\0\0\rROLLBACK\0"
                finally:
                    self.idle.put((server, replies))

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for server, stream in [self.idle.get(timeout=PATIENCE) for _ in range(SIZE)]:
            stream.close()
            server.close()


def message(stream):
    """The next message of PostgreSQL's protocol; raises `struct.error` at the end."""
    head = stream.read(5)
    return head + stream.read(struct.unpack("!xi", head)[0] - 4)


def answer(stream):
    """The messages up to the next that says ready, and in which state."""
    messages = [message(stream)]
    while messages[-1][:1] != b"Z":
        messages.append(message(stream))
    return messages, messages[-1][-1:]


@pytest.fixture(scope="module")
def database():
    try:
        made = Postgres()
    except ModuleNotFoundError as missing:
        print(f"skipping: {missing}")
        pytest.skip(str(missing))
    with made:
        yield made


KINDS = ["stand-in", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("transaction", "statement", "session"))]


@pytest.fixture(scope="module", params=KINDS)
def pooled_url(request, database):
    if request.param == "stand-in":
        with contextlib.closing(StandIn(database.port)) as pooler:
            yield pooler.url
    else:
        with pgbouncer(database, request.param) as url:
            yield url


class TestPooled(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, pooled_url):
        self.url = pooled_url


def failing():
    raise ConnectionError("refused")


def ask(url, query):
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def test_an_opening_is_heard_and_no_borrowed_connection_is_left_listening(pooled_url, database):
    name = uuid.uuid4().hex
    config = CircuitBreakerConfig(failure_threshold=2, timeout=600.0)
    with open_store(pooled_url) as store, open_store(pooled_url) as other, open_store(database.dsn) as direct:
        mine, theirs, third = (CircuitBreaker(name, config, store=each) for each in (store, other, direct))
        assert mine.call(lambda: 1) == theirs.call(lambda: 1) == third.call(lambda: 1) == 1
        for _ in range(2):
            with pytest.raises(ConnectionError):
                mine.call(failing)
        eventually(lambda: str(theirs.state) == str(third.state) == "open")
        third.reset()
        eventually(lambda: str(theirs.state) == str(mine.state) == "closed")
        assert {row for _ in range(20) for row in ask(pooled_url, "SELECT pg_listening_channels()")} == set()


def test_a_pool_that_is_used_up_is_a_store_that_is_away(database):
    with contextlib.closing(StandIn(database.port)) as pooler, open_store(pooler.url) as store:
        name = uuid.uuid4().hex
        breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=2, timeout=600.0), store=store)
        assert breaker.call(lambda: 1) == 1
        eventually(lambda: store.link.state == "ready")
        held = [psycopg2.connect(pooler.url) for _ in range(SIZE)]
        try:
            for connection in held:
                connection.cursor().execute("SELECT 1")
            began = time.monotonic()
            for _ in range(2):
                with pytest.raises(ConnectionError):
                    breaker.call(failing)
            assert time.monotonic() - began < 1.0
            assert str(breaker.state) == "open"
            eventually(lambda: store.link.state == "away")
        finally:
            for connection in held:
                connection.close()
        with open_store(database.dsn) as direct:
            eventually(lambda: (direct.read(f"breaker/{name}") or {}).get("mode") == "open")


@pytest.mark.slow
def test_what_a_pooler_refuses_is_refused_by_name(database):
    with (
        pgbouncer(database, "transaction") as url,
        open_store(f"{url}?options=-c%20statement_timeout%3D1000") as store,
        pytest.raises(StoreUnavailable, match=r"unsupported startup parameter.*options"),
    ):
        store.read("key")
