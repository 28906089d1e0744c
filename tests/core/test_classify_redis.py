"""What `classify` says about the redis driver: a real server, and sockets that answer as a server in trouble does."""

import contextlib
import socket
import threading

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience import classify

ONCE = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "driver_info": None}


def told(error):
    verdict = classify(error)
    can = "retry" if verdict.retryable else "final"
    return f"{verdict.category} {can} {verdict.outcome} {verdict.reason}"


def raised_by(act, *args, **kwargs):
    try:
        act(*args, **kwargs)
    except Exception as error:
        return error
    return pytest.fail("nothing was raised")


@pytest.fixture
def client(valkey_url):
    with redis.Redis.from_url(valkey_url, **ONCE) as client:
        yield client
        client.config_set("maxmemory", "64mb")
        client.delete("classify", "classify:lock", "classify:list")


@pytest.fixture
def server_saying():
    """A port whose server answers every command with the bytes given; None: not at all, "reset": with a reset."""
    open_now = []

    def talk(listener, answer):
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                while connection.recv(4096):
                    if answer == "reset":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        return
                    if answer is not None:
                        connection.sendall(answer)
                    if answer is not None and not answer.endswith(b"\r\n"):
                        return

    def serve(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(5)
        thread = threading.Thread(target=talk, args=(listener, answer))
        thread.start()
        open_now.append((listener, thread))
        return listener.getsockname()[1]

    yield serve
    for listener, thread in open_now:
        thread.join(10)
        listener.close()


def get(port, **options):
    with redis.Redis(port=port, **{**ONCE, **options}) as client:
        return client.get("key")


ANSWERS = [
    ("LOADING Redis is loading the dataset in memory", "transient retry answered redis:BusyLoadingError"),
    ("READONLY You can't write against a read only replica.", "transient retry answered redis:ReadOnlyError"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "transient retry answered redis:TryAgainError"),
    ("CLUSTERDOWN The cluster is down", "transient retry answered redis:ClusterDownError"),
    ("MASTERDOWN Link with MASTER is down", "transient retry answered redis:MasterDownError"),
    ("MOVED 3999 127.0.0.1:6381", "transient retry answered redis:MovedError"),
    ("ASK 3999 127.0.0.1:6381", "transient retry answered redis:AskError"),
    ("BUSY Redis is busy running a script.", "transient retry answered redis:BUSY"),
    ("NOREPLICAS Not enough good replicas to write.", "transient retry answered redis:NOREPLICAS"),
    ("OOM command not allowed when used memory > 'maxmemory'.", "resource retry answered redis:OutOfMemoryError"),
    ("MISCONF Redis is configured to save RDB snapshots", "resource retry answered redis:MISCONF"),
    ("ERR max number of clients reached", "resource retry not_sent redis:"),
    ("NOAUTH Authentication required.", "permanent final answered redis:AuthenticationError"),
    ("WRONGPASS invalid username-password pair", "permanent final answered redis:AuthenticationError"),
    ("NOPERM this user has no permissions", "permanent final answered redis:NoPermissionError"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "logic final answered redis:"),
    ("ERR anything else", "permanent final answered redis:ResponseError"),
]


@pytest.mark.parametrize(("answer", "verdict"), ANSWERS)
def test_what_a_server_in_trouble_answers(server_saying, answer, verdict):
    error = raised_by(get, server_saying(f"-{answer}\r\n".encode()))
    assert isinstance(error, redis.RedisError)
    assert told(error).startswith(verdict)


def test_a_dead_port_was_sent_nothing():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        assert told(raised_by(get, holder.getsockname()[1])) == "transient retry not_sent redis:connecting"


def test_an_unknown_name_was_sent_nothing():
    error = raised_by(get, 1, host="no-such-host.invalid")
    assert told(error) == "transient retry not_sent redis:connecting"


def test_a_connection_that_is_not_made_in_time_was_sent_nothing():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        late = raised_by(get, full.getsockname()[1], socket_connect_timeout=0.1)
    assert isinstance(late, redis.TimeoutError)
    assert told(late) == "transient retry not_sent redis:connecting"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(b"$10\r\nhalf", "transient retry unknown redis:ConnectionError"),
     ("reset", "transient retry unknown redis:ConnectionError"),
     (None, "transient retry unknown redis:TimeoutError"),
     (b"?what\r\n", "logic final partial redis:InvalidResponse")],
)  # fmt: skip
def test_a_connection_lost_after_the_command_is_unknown(server_saying, answer, verdict):
    assert told(raised_by(get, server_saying(answer), socket_timeout=0.2)) == verdict


def no_script(client):
    client.evalsha("0" * 40, 0)


def out_of_memory(client):
    client.config_set("maxmemory", "1")
    client.set("classify", "x" * 1000)


def wrong_type(client):
    client.rpush("classify:list", 1)
    client.incr("classify:list")


def wrong_password(client):
    client.execute_command("AUTH", "nobody", "wrong")


def no_permission(client):
    client.execute_command("ACL", "SETUSER", "classify", "on", "nopass", "+ping")
    settings = client.connection_pool.connection_kwargs
    try:
        with redis.Redis(
            host=settings["host"], port=settings["port"], username="classify", password="x", **ONCE
        ) as poor:
            poor.get("key")
    finally:
        client.execute_command("ACL", "DELUSER", "classify")


def watched_key_changed(client):
    with client.pipeline() as pipeline:
        pipeline.watch("classify")
        client.set("classify", "changed")
        pipeline.multi()
        pipeline.get("classify")
        pipeline.execute()


def aborted_transaction(client):
    with client.pipeline() as pipeline:
        pipeline.execute_command("NO-SUCH-COMMAND")
        pipeline.execute()


def lock_taken(client):
    client.set("classify:lock", "somebody")
    with client.lock("classify:lock", blocking_timeout=0.01):
        pass


def lock_lost(client):
    lock = client.lock("classify:lock")
    lock.acquire()
    client.delete("classify:lock")
    lock.release()


def pool_used_up(client):
    settings = client.connection_pool.connection_kwargs
    pool = redis.ConnectionPool(host=settings["host"], port=settings["port"], max_connections=1, **ONCE)
    held = pool.get_connection()
    try:
        pool.get_connection()
    finally:
        held.disconnect()


def blocking_pool_used_up(client):
    settings = client.connection_pool.connection_kwargs
    pool = redis.BlockingConnectionPool(
        host=settings["host"], port=settings["port"], max_connections=1, timeout=0.01, **ONCE
    )
    held = pool.get_connection()
    try:
        pool.get_connection()
    finally:
        held.disconnect()


def cut_by_the_server(client):
    settings = client.connection_pool.connection_kwargs

    def cut(number):
        with redis.Redis(host=settings["host"], port=settings["port"], **ONCE) as other:
            other.client_kill_filter(_id=number)

    killer = threading.Timer(0.05, cut, (client.client_id(),))
    killer.start()
    try:
        client.blpop("classify:list", timeout=5)
    finally:
        killer.join()


REAL = [
    (no_script, "permanent final answered redis:NoScriptError"),
    (out_of_memory, "resource retry answered redis:OutOfMemoryError"),
    (wrong_type, "logic final answered redis:WRONGTYPE"),
    (wrong_password, "permanent final answered redis:AuthenticationError"),
    (no_permission, "permanent final answered redis:NoPermissionError"),
    (watched_key_changed, "transient retry answered redis:WatchError"),
    (aborted_transaction, "permanent final answered redis:ResponseError"),
    (lock_taken, "transient retry answered redis:LockError:taken"),
    (lock_lost, "logic final answered redis:LockNotOwnedError"),
    (lambda client: client.lock("classify:lock").release(), "logic final not_sent redis:LockError"),
    (pool_used_up, "resource retry not_sent redis:MaxConnectionsError"),
    (blocking_pool_used_up, "resource retry not_sent redis:too many connections"),
    (cut_by_the_server, "transient retry unknown redis:ConnectionError"),
    (lambda client: client.set("classify", object()), "logic final not_sent redis:DataError"),
    (lambda client: client.execute_command("NO-SUCH-COMMAND"), "permanent final answered redis:ResponseError"),
]


@pytest.mark.parametrize(("act", "verdict"), REAL, ids=lambda value: value if isinstance(value, str) else "")
def test_a_real_server(client, act, verdict):
    assert told(raised_by(act, client)) == verdict


def test_valkeys_own_driver_is_judged_alike(valkey_url):
    valkey = pytest.importorskip("valkey")
    with valkey.Valkey.from_url(valkey_url) as client:
        assert told(raised_by(client.evalsha, "0" * 40, 0)) == "permanent final answered valkey:NoScriptError"


def test_errors_made_by_hand_without_words_are_judged_by_their_class():
    for kind in vars(redis.exceptions).values():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert classify(kind.__new__(kind)).reason.startswith(("redis:", "unknown", "python:")), kind
