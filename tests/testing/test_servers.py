"""The real servers that `resilience.testing` starts."""

import os
import signal
import socket
import subprocess
import sys
import threading

import psycopg2
import pytest
import redis

from resilience.testing import Valkey, eventually
from resilience.testing import servers as room


def test_a_valkey_that_is_killed_comes_back_empty_on_its_port(own_valkey):
    with redis.Redis.from_url(own_valkey.url) as client:
        client.set("key", "value")
    url = own_valkey.url
    own_valkey.kill()
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(url) as client:
        client.ping()
    own_valkey.restart()
    assert own_valkey.url == url
    with redis.Redis.from_url(url) as client:
        assert client.get("key") is None


def test_a_postgres_knows_its_data_after_a_restart(own_postgres):
    with psycopg2.connect(own_postgres.dsn) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (id int)")
    connection.close()
    own_postgres.restart()
    with psycopg2.connect(own_postgres.dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchone() == (0,)
    connection.close()


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package.*resilience-toolkit\[test\]"):
        room.package_folder("no_such_package")


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(own_valkey):
    assert os.getsid(own_valkey.process.pid) == own_valkey.process.pid != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="a server ends with who started it on Linux only")
def test_a_server_ends_with_a_program_that_is_killed():
    script = """from resilience.testing import Valkey
with Valkey() as server:
    print(server.process.pid, flush=True)
    input()"""
    program = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with program:
        server = int(program.stdout.readline())
        program.send_signal(signal.SIGKILL)
        program.wait(30)
        eventually(lambda: not is_alive(server))


def is_alive(pid):
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_cannot_start_shows_its_last_words(monkeypatch):
    server = Valkey()
    monkeypatch.setattr(server, "_command", lambda port: ("/bin/sh", "-c", "echo no licence; exit 1"))
    with pytest.raises(RuntimeError, match="no licence"), server:
        pass


def test_a_restart_waits_until_its_port_is_free_again(own_valkey):
    own_valkey.kill()
    port = int(own_valkey.url.rpartition(":")[2].partition("/")[0])
    squatter = socket.socket()
    squatter.bind(("127.0.0.1", port))  # holds it without listening
    threading.Timer(0.5, squatter.close).start()
    own_valkey.restart()
    with redis.Redis.from_url(own_valkey.url) as client:
        assert client.ping()
