"""What `classify` says about Python's own errors, each raised by what raises it in real life."""

import asyncio
import concurrent.futures
import errno
import json
import os
import pickle
import queue
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

import resilience
from resilience import classify, errors


def told(error):
    verdict = classify(error)
    can = "retry" if verdict.retryable else "final"
    return f"{verdict.category} {can} {verdict.outcome} {verdict.reason}"


def raised_by(act, *args):
    try:
        act(*args)
    except BaseException as error:
        return error
    return pytest.fail("nothing was raised")


def run(code):
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, stderr=subprocess.DEVNULL)


def shell(command):
    subprocess.run(["/bin/sh", "-c", command], check=True, stderr=subprocess.DEVNULL)


# -- Python ----------------------------------------------------------------------------------------------------------


def raises(error):
    raise error


def deep(number):
    return deep(number + 1)


def no_threads():
    """What `threading` says when the system has no room for one: see `test_real_threads_that_cannot_start`."""
    raise RuntimeError("can't start new thread")


def submit_after_shutdown():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    pool.submit(print)


def cancelled_future():
    future = concurrent.futures.Future()
    future.cancel()
    future.result()


def set_twice():
    future = concurrent.futures.Future()
    future.set_result(1)
    future.set_result(2)


def full_queue():
    full = queue.Queue(1)
    full.put_nowait(1)
    full.put_nowait(2)


def broken_barrier():
    barrier = threading.Barrier(2)
    barrier.abort()
    barrier.wait()


def warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def cancelled_task():
    async def main():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    asyncio.run(main())


PYTHON = [
    (lambda: raises(RuntimeError("x")), "transient retry unknown unknown"),
    (lambda: raises(Exception("x")), "transient retry unknown unknown"),
    (lambda: len(5), "logic final unknown python:TypeError"),
    (lambda: undefined_name, "logic final unknown python:NameError"),  # noqa: F821
    (lambda: (5).nothing, "logic final unknown python:AttributeError"),
    (lambda: raises(AssertionError()), "logic final unknown python:AssertionError"),
    (lambda: {}["x"], "logic final unknown python:LookupError"),
    (lambda: [][0], "logic final unknown python:LookupError"),
    (lambda: raises(NotImplementedError()), "logic final unknown python:NotImplementedError"),
    (lambda: int("x"), "logic final unknown python:ValueError"),
    (lambda: 1 / 0, "logic final unknown python:ArithmeticError"),
    (lambda: b"\xff".decode("utf-8"), "logic final unknown python:UnicodeError"),
    (lambda: deep(0), "logic final unknown python:RecursionError"),
    (lambda: __import__("no_such_module_at_all"), "logic final unknown python:ImportError"),
    (lambda: compile("1 +", "x", "eval"), "logic final unknown python:SyntaxError"),
    (lambda: next(iter(())), "logic final unknown python:StopIteration"),
    (warns, "logic final unknown python:Warning"),
    (lambda: json.loads("{"), "logic final answered json:JSONDecodeError"),
    (lambda: bytearray(sys.maxsize - 100), "resource retry unknown python:MemoryError"),
    (no_threads, "resource retry not_sent python:can't start new thread"),
    (submit_after_shutdown, "transient final not_sent python:shutdown"),
    (lambda: pickle.dumps(threading.Lock()), "logic final unknown pickle:unpicklable"),
    (lambda: pickle.loads(b"\x80\x04garbage"), "logic final answered pickle:UnpicklingError"),
    (lambda: raises(pickle.PicklingError("Can't pickle f")), "logic final unknown pickle:PicklingError"),
    (full_queue, "resource retry not_sent queue:Full"),
    (lambda: queue.Queue().get_nowait(), "transient retry unknown queue:Empty"),
    (lambda: queue.SimpleQueue().get_nowait(), "transient retry unknown queue:Empty"),
    (cancelled_future, "transient final not_sent concurrent.futures:CancelledError"),
    (set_twice, "logic final unknown concurrent.futures:InvalidStateError"),
    (broken_barrier, "transient retry unknown threading:BrokenBarrierError"),
    (lambda: raises(KeyboardInterrupt()), "permanent final unknown base:KeyboardInterrupt"),
    (lambda: sys.exit(1), "permanent final unknown base:SystemExit"),
    (lambda: raises(GeneratorExit()), "permanent final unknown base:GeneratorExit"),
    (cancelled_task, "permanent final unknown base:CancelledError"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "verdict"), PYTHON, ids=lambda value: value if isinstance(value, str) else "")
def test_python(act, verdict):
    assert told(raised_by(act)) == verdict


def test_a_future_that_is_late_is_unknown():
    late = told(raised_by(lambda: concurrent.futures.Future().result(timeout=0)))
    name = "python:TimeoutError" if sys.version_info >= (3, 11) else "concurrent.futures:TimeoutError"
    assert late == f"transient retry unknown {name}"


def test_a_pool_that_lost_its_process_wants_resources():
    with ProcessPoolExecutor(1, mp_context=__import__("multiprocessing").get_context("spawn")) as pool:
        broken = raised_by(pool.submit(os._exit, 1).result)
    assert told(broken) == "resource retry unknown concurrent.futures:BrokenExecutor"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_real_threads_that_cannot_start_want_resources():
    code = """if 1:
        import resource, threading
        from resilience import classify
        threading.stack_size(1 << 26)
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 25),) * 2)
        try:
            threading.Thread(target=print).start()
        except RuntimeError as error:
            print(classify(error).reason, classify(error).category)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python:can't start new thread resource"


# -- the operating system --------------------------------------------------------------------------------------------


def refused():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port meanwhile
        socket.create_connection(holder.getsockname(), timeout=5)


def reset(act=lambda client: client.recv(1)):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname(), timeout=5) as client:
            server, _ = listener.accept()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            server.close()
            act(client)


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    try:
        os.write(write, b"x")
    finally:
        os.close(write)


def times_out():
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(0.001)
        left.recv(1)


def would_block():
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        left.recv(1)


def address_in_use():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as second:
        second.bind(listener.getsockname())


def too_many_files():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        os.dup(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def disk_full():
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def closed_descriptor():
    read, write = os.pipe()
    os.close(write)
    os.close(read)
    os.read(read, 1)


def unconnected():
    with socket.socket() as alone:
        alone.getpeername()


def input_at_end():
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours:
        ours.recv()


SYSTEM = [
    (refused, "transient retry not_sent errno:ECONNREFUSED"),
    (reset, "transient retry unknown errno:ECONNRESET"),
    (broken_pipe, "transient retry unknown errno:EPIPE"),
    (times_out, "transient retry unknown python:TimeoutError"),
    (would_block, "resource retry not_sent errno:EAGAIN"),
    (address_in_use, "resource retry not_sent errno:EADDRINUSE"),
    (too_many_files, "resource retry not_sent errno:EMFILE"),
    (unconnected, "transient retry unknown errno:ENOTCONN"),
    (closed_descriptor, "logic final unknown errno:EBADF"),
    (lambda: open("/no/such/file"), "permanent final not_sent errno:ENOENT"),  # noqa: SIM115
    (lambda: os.mkdir("/"), "permanent final not_sent errno:EEXIST"),
    (lambda: open("/"), "permanent final not_sent errno:EISDIR"),  # noqa: SIM115
    (lambda: os.listdir(sys.executable), "permanent final not_sent errno:ENOTDIR"),
    (lambda: os.kill(2**22 + 1, 0), "permanent final not_sent errno:ESRCH"),
    (lambda: os.waitpid(os.getpid(), 0), "logic final unknown errno:ECHILD"),
    (lambda: raises(PermissionError(errno.EPERM, "no")), "permanent final not_sent errno:EACCES"),
    (lambda: socket.getaddrinfo("name.invalid", 80, flags=socket.AI_NUMERICHOST),
     "transient retry not_sent dns:EAI_NONAME"),
    (lambda: socket.getaddrinfo("127.0.0.1", "no-such-service"), "permanent final not_sent dns:EAI_SERVICE"),
    (lambda: raises(socket.gaierror(socket.EAI_AGAIN, "Temporary failure")), "transient retry not_sent dns:EAI_AGAIN"),
    (lambda: raises(OSError(errno.ENETUNREACH, "no route")), "transient retry not_sent errno:ENETUNREACH"),
    (lambda: raises(OSError(errno.EHOSTUNREACH, "no host")), "transient retry unknown errno:EHOSTUNREACH"),
    (lambda: raises(OSError(errno.ENFILE, "files")), "resource retry not_sent errno:ENFILE"),
    (lambda: raises(OSError(errno.ENOMEM, "memory")), "resource retry unknown errno:ENOMEM"),
    (lambda: raises(OSError("a library's words")), "transient retry unknown unknown"),
    (lambda: shutil.copy(sys.executable, sys.executable), "logic final unknown shutil:SameFileError"),
    (input_at_end, "transient retry partial python:EOFError"),
]  # fmt: skip
if Path("/dev/full").exists():
    SYSTEM.append((disk_full, "resource retry unknown errno:ENOSPC"))


@pytest.mark.parametrize(("act", "verdict"), SYSTEM, ids=lambda value: value if isinstance(value, str) else "")
def test_the_operating_system(act, verdict):
    assert told(raised_by(act)) == verdict


# -- TLS -------------------------------------------------------------------------------------------------------------


def handshake(answer):
    """A handshake with a server that answers the first bytes with `answer` and closes."""

    def serve(server):
        with server:
            server.recv(1000)
            server.sendall(answer)

    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    try:
        with ours:
            ssl.create_default_context().wrap_socket(ours, server_hostname="localhost").close()
    finally:
        thread.join()


TLS = [
    (lambda: handshake(b""), "transient retry unknown ssl:SSLEOFError"),
    (lambda: handshake(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "permanent final not_sent ssl:WRONG_VERSION_NUMBER"),
    (lambda: handshake(b"\x15\x03\x01\x00\x02\x02\x46"), "permanent final not_sent ssl:"),  # alert: protocol version
]


@pytest.mark.parametrize(("act", "verdict"), TLS, ids=lambda value: value if isinstance(value, str) else "")
def test_tls(act, verdict):
    assert told(raised_by(act)).startswith(verdict)


# -- child processes -------------------------------------------------------------------------------------------------

CHILDREN = [
    ("exit 1", "transient retry unknown exit:1"),
    ("exit 75", "transient retry unknown exit:75"),
    ("exit 124", "transient retry unknown exit:124"),
    ("exit 126", "permanent final not_sent exit:126"),
    ("no-such-command-anywhere", "permanent final not_sent exit:127"),
    ("exit 64", "permanent final not_sent exit:64"),
    ("exit 77", "permanent final unknown exit:77"),
    ("exit 65", "logic final unknown exit:65"),
    ("exit 71", "resource retry unknown exit:71"),
    ("exit 137", "resource retry unknown signal:SIGKILL"),
    ("kill -9 $$", "resource retry unknown signal:SIGKILL"),
    ("kill -15 $$", "transient retry unknown signal:SIGTERM"),
    ("exit 143", "transient retry unknown signal:SIGTERM"),
    ("exit 130", "transient final unknown signal:SIGINT"),
    ("exit 139", "logic final unknown signal:SIGSEGV"),
    ("exit 200", "transient retry unknown exit:200"),
]


@pytest.mark.parametrize(("command", "verdict"), CHILDREN)
def test_child_processes(command, verdict):
    assert told(raised_by(shell, command)) == verdict


def test_a_child_that_takes_too_long_is_unknown():
    late = raised_by(lambda: subprocess.run(["sleep", "5"], timeout=0.01, check=True))
    assert told(late) == "transient retry unknown subprocess:TimeoutExpired"


def test_a_program_that_is_not_there_is_permanent():
    assert told(raised_by(subprocess.run, ["/no/such/program"])) == "permanent final not_sent errno:ENOENT"


@pytest.mark.parametrize("code", [None, "1", 1.5, 10**30, -(10**30), -1000, True])
def test_a_strange_exit_code_is_transient(code):
    verdict = classify(subprocess.CalledProcessError(code, "x"))
    assert (str(verdict.category), verdict.retryable) == ("transient", True)


def test_every_signal_has_a_verdict():
    for number in signal.Signals:
        assert classify(subprocess.CalledProcessError(-number, "x")).reason == f"signal:{number.name}"


# -- SQLite ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "data.db"
    first, second = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    first.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    yield path, first, second
    first.close()
    second.close()


def busy(path, first, second):
    first.execute("BEGIN IMMEDIATE")
    second.execute("BEGIN IMMEDIATE")


def table_locked(path, first, second):
    first.execute("INSERT INTO item VALUES (1, 'a'), (2, 'b')")
    reading = first.execute("SELECT * FROM item")
    next(reading)
    first.execute("DROP TABLE item")


def full(path, first, second):
    first.execute("PRAGMA max_page_count = 3")
    first.execute("INSERT INTO item (name) VALUES (?)", ("x" * 100_000,))


def corrupt(path, first, second):
    first.execute("INSERT INTO item (name) VALUES ('a')")
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    path.write_bytes(content)
    second.execute("SELECT * FROM item")


def no_database(path, first, second):
    other = path.with_name("text.db")
    other.write_text("this is no database\n" * 100)
    connection = sqlite3.connect(other)
    try:
        connection.execute("SELECT * FROM item")
    finally:
        connection.close()


def read_only(path, first, second):
    first.execute("PRAGMA query_only = 1")
    first.execute("INSERT INTO item (name) VALUES ('a')")


def interrupted(path, first, second):
    first.set_progress_handler(lambda: 1, 1)
    first.execute("SELECT count(*) FROM item")


def closed(path, first, second):
    first.close()
    first.execute("SELECT 1")


def not_authorized(path, first, second):
    first.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    first.execute("SELECT * FROM item")


SQLITE = [
    (busy, "transient retry answered sqlite:SQLITE_BUSY"),
    (table_locked, "transient retry answered sqlite:SQLITE_LOCKED"),
    (full, "resource retry answered sqlite:SQLITE_FULL"),
    (corrupt, "logic final answered sqlite:SQLITE_CORRUPT"),
    (no_database, "logic final answered sqlite:SQLITE_NOTADB"),
    (read_only, "permanent final answered sqlite:SQLITE_READONLY"),
    (interrupted, "transient retry answered sqlite:SQLITE_INTERRUPT"),
    (not_authorized, "permanent final answered sqlite:SQLITE_AUTH"),
    (closed, "logic final not_sent sqlite:ProgrammingError"),
    (lambda path, first, second: sqlite3.connect("/no/such/folder/data.db"),
     "permanent final not_sent sqlite:SQLITE_CANTOPEN"),
    (lambda path, first, second: first.execute("INSERT INTO item VALUES (1, NULL)"),
     "permanent final answered sqlite:SQLITE_CONSTRAINT"),
    (lambda path, first, second: first.execute("SELEKT 1"), "logic final answered sqlite:"),
    (lambda path, first, second: first.execute("SELECT * FROM nothing"), "logic final answered sqlite:"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "verdict"), SQLITE, ids=lambda value: value if isinstance(value, str) else "")
def test_sqlite(act, verdict, database):
    error = raised_by(act, *database)
    assert told(error).startswith(verdict)
    by_words = type(error)(*error.args)  # as Python 3.10 raises it: without a code
    assert told(by_words).startswith(verdict.replace("sqlite:SQLITE_ERROR", "sqlite:"))


# -- ours ------------------------------------------------------------------------------------------------------------

OWN = [
    (resilience.CircuitOpenError(name="b", retry_after=5.0), "transient final not_sent resilience:CircuitOpenError"),
    (resilience.BulkheadFullError(name="b"), "resource retry not_sent resilience:BulkheadFullError"),
    (resilience.RateLimitExceeded(name="r"), "transient retry not_sent resilience:RateLimitExceeded"),
    (resilience.WorkersExhausted(name="w"), "resource final not_sent resilience:WorkersExhausted"),
    (resilience.ShutdownInProgress(), "transient final not_sent resilience:ShutdownInProgress"),
    (resilience.CallRejected(), "transient final not_sent resilience:CallRejected"),
    (resilience.DeadlineExceeded(), "transient retry unknown resilience:DeadlineExceeded"),
    (resilience.DeadlineExceeded(phase="queued"), "transient retry not_sent resilience:DeadlineExceeded"),
    (resilience.DeadlineExceeded(reclaimed=False), "transient final unknown resilience:DeadlineExceeded"),
    (resilience.DeadlineExceeded(ambient=True), "transient final unknown resilience:DeadlineExceeded"),
    (resilience.OperationCancelled(), "transient final unknown resilience:OperationCancelled"),
    (resilience.OutcomeUnknown(), "transient final unknown resilience:OutcomeUnknown"),
    (resilience.RetryAfterTooLong(retry_after=9.0), "transient final answered resilience:RetryAfterTooLong"),
    (resilience.WorkerCrashed(exitcode=1), "transient retry unknown resilience:WorkerCrashed"),
    (resilience.WorkerCrashed(signal=9), "resource retry unknown resilience:WorkerCrashed:SIGKILL"),
    (resilience.StoreUnavailable(), "transient retry unknown resilience:StoreUnavailable"),
    (resilience.ConfigError("bad"), "logic final not_sent resilience:ConfigError"),
    (resilience.ResilienceError(), "transient retry unknown resilience:ResilienceError"),
]


@pytest.mark.parametrize(("error", "verdict"), OWN, ids=lambda value: value if isinstance(value, str) else "")
def test_our_own(error, verdict):
    assert told(error) == verdict


def test_each_of_our_errors_has_a_row():
    kinds = {value for value in map(errors.__dict__.get, errors.__all__) if isinstance(value, type)}
    ours = {kind for kind in kinds if issubclass(kind, resilience.ResilienceError)}
    assert ours == {type(error) for error, _ in OWN}
    assert all(told(error).split(" ", 3)[3].split(":")[1] == type(error).__name__ for error, _ in OWN)


def test_a_rate_limit_says_when_there_is_room_again():
    assert classify(resilience.RateLimitExceeded(name="r", retry_after=2.5)).retry_after == 2.5
