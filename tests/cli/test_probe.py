"""`resilience probe`: real handshakes with what answers rightly, wrongly or not at all."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from resilience_cli import exits
from resilience_cli.main import run

from resilience.testing import BlackHole, DeadPort, FaultServer


@pytest.fixture
def silent():
    """A port that accepts and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


@pytest.fixture
def babbling():
    """A port that answers everything with nonsense."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)

    def serve():
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with accepted:
                accepted.recv(1000)
                accepted.sendall(b"SSH-2.0-nonsense\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def probed(capsys, *arguments):
    code = run(["probe", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_what_answers_rightly_is_healthy(capsys, valkey_url, postgres_dsn):
    with FaultServer() as server:
        tcp = server.url.replace("http://", "tcp://")
        code, seen = probed(capsys, f"{server.url}/ok", tcp, valkey_url, postgres_dsn)
    assert code == exits.OK, seen
    assert all(one["ok"] for one in seen)


@pytest.mark.parametrize("scheme", ["http", "redis", "postgresql", "https"])
def test_the_wrong_protocol_is_unhealthy(capsys, scheme, babbling):
    code, [seen] = probed(capsys, f"{scheme}://127.0.0.1:{babbling}/x", "--timeout", "5s")
    assert code == exits.NO
    assert not seen["ok"]


@pytest.mark.parametrize("scheme", ["http", "redis", "postgresql", "https"])
def test_silence_is_unhealthy_within_the_time_limit(capsys, scheme, silent):
    began = time.monotonic()
    code, [seen] = probed(capsys, f"{scheme}://127.0.0.1:{silent}/x", "--timeout", "300ms")
    assert code == exits.NO
    assert "no answer within 0.3 s" in seen["detail"]
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("scheme", ["http", "tcp", "redis", "postgresql"])
def test_a_refused_connection_is_unhealthy_and_said(capsys, scheme):
    with DeadPort() as dead:
        code, [seen] = probed(capsys, f"{scheme}://127.0.0.1:{dead.port}/x")
    assert code == exits.NO
    assert "refused" in seen["detail"]


def test_a_black_hole_is_unhealthy(capsys):
    with BlackHole() as hole:
        code, _ = probed(capsys, hole.url.replace("http://", "tcp://"), "--timeout", "200ms")
    assert code == exits.NO


def test_an_error_status_is_unhealthy(capsys):
    with FaultServer() as server:
        code, [seen] = probed(capsys, f"{server.url}/status/503")
    assert code == exits.NO
    assert "503" in seen["detail"]


def test_an_unknown_scheme_is_a_usage_error(capsys):
    assert run(["probe", "gopher://x"]) == exits.USAGE
    assert "redis://" in capsys.readouterr().err


def test_passwords_are_not_shown(capsys):
    with DeadPort() as dead:
        run(["probe", f"redis://me:geheim@127.0.0.1:{dead.port}/0"])
    shown = capsys.readouterr()
    assert "geheim" not in shown.out + shown.err


def test_waiting_ends_with_the_service_and_with_patience(capsys):
    dead = DeadPort()
    with dead:
        began = time.monotonic()
        assert run(["probe", "-q", f"tcp://127.0.0.1:{dead.port}", "--wait", "700ms"]) == exits.NO
        assert time.monotonic() - began < 7
        assert capsys.readouterr() == ("", "")  # --quiet
    with FaultServer() as server:
        began = time.monotonic()
        assert run(["probe", "-q", server.url + "/ok", "--wait", "30s", "--consecutive", "2"]) == exits.OK
        assert time.monotonic() - began >= 0.5  # two tries, and the pause between them


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, exits.INTERRUPTED), (signal.SIGTERM, exits.TERMINATED)])
def test_whoever_waits_can_be_interrupted(silent, number, code):
    with DeadPort() as dead:
        urls = [f"tcp://127.0.0.1:{dead.port}", f"redis://127.0.0.1:{silent}"]
        command = [sys.executable, "-m", "resilience_cli", "probe", "--wait", "60s", "--timeout", "60s", *urls]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert "not there yet" in process.stderr.readline()
            process.send_signal(number)
            try:
                assert process.wait(20) == code
            finally:
                process.kill()
            assert process.stderr.read().strip() == ""


def test_a_time_limit_beyond_all_clocks_is_none(capsys):
    with FaultServer() as server:
        assert (
            run(["probe", "-q", server.url + "/ok", "--timeout", "1000000000000", "--wait", "100000000h"]) == exits.OK
        )


def test_nagios_gets_one_line_and_its_codes(capsys):
    with FaultServer() as server:
        assert run(["probe", "--nagios", server.url + "/ok"]) == 0
        assert run(["probe", "--nagios", server.url + "/status/500"]) == 2
    good, bad = capsys.readouterr().out.splitlines()
    assert good.startswith("OK - ")
    assert bad.startswith("CRITICAL - ")
