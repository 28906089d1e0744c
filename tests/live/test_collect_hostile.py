"""`resilience collect` where servers, lists, disks and neighbours are at their worst."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter

import pytest
from resilience_cli.collect.journal import read_records

from resilience.testing import DeadPort, FaultServer, eventually

COMMAND = [sys.executable, "-m", "resilience_cli", "collect"]
PATIENT = {"CIRCUIT_BREAKER_FAILURE_THRESHOLD": "1000"}


class Desk:
    """An empty directory with a list of URLs, from which `collect` is run as a process of its own."""

    def __init__(self, path, environment):
        self.path = path
        self.environment = environment
        self.journal = path / "urls.txt.journal.jsonl"

    def write(self, urls):
        (self.path / "urls.txt").write_text("".join(f"{url}\n" for url in urls))

    def settings(self, env, more):
        return {"cwd": self.path, "env": {**self.environment, **(env or {})}, "text": True, **more}

    def collect(self, *arguments, urls=None, env=None, **more):
        if urls is not None:
            self.write(urls)
        command = [*COMMAND, "urls.txt", *arguments]
        return subprocess.run(command, capture_output=True, timeout=60, **self.settings(env, more))

    def begin(self, *arguments, env=None, **more):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, "urls.txt", *arguments], **pipes, **self.settings(env, more))

    def finals(self):
        return [record for record in read_records(self.journal) if record and isinstance(record.get("ok"), bool)]


@pytest.fixture
def desk(tmp_path):
    ours = ("CIRCUIT_", "RETRY_", "RESILIENCE_", "XDG_", "API_CALL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return Desk(tmp_path, {**environment, "HOME": str(tmp_path / "home")})


# -- answers ---------------------------------------------------------------------------------------------------------

PACKED = gzip.compress(os.urandom(20_000))
FLAT = zlib.compress(b"flat" * 500)
BARE = zlib.compressobj(wbits=-15)
BARE = BARE.compress(b"bare" * 500) + BARE.flush()
HALF = len(PACKED) // 2
CODED = {
    "/half": ("gzip", PACKED[:HALF]), "/half-deflate": ("deflate", FLAT[:-6]), "/noise": ("gzip", b"hello"),
    "/whole": ("gzip", PACKED), "/twice": ("gzip", PACKED * 2), "/padded": ("gzip", PACKED + b"\0" * 9),
    "/none": ("gzip", b""), "/flat": ("deflate", FLAT), "/bare": ("deflate", BARE), "/plain": ("identity", b"as is"),
}  # fmt: skip


def coded(request, connection):
    encoding, body = CODED.get(request.path, ("gzip", PACKED[:HALF]))
    if request.path == "/until-close":
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + body)
        connection.is_over = True
    else:
        connection.answer(200, body, Content_Encoding=encoding)


def test_a_compressed_body_that_ends_too_soon_is_no_whole_one(desk):
    with FaultServer(behave=coded) as server:
        urls = [f"{server.url}{path}" for path in (*CODED, "/until-close")]
        run = desk.collect("--attempts", "1", "--bodies", "out", urls=urls, env=PATIENT)
    ends = {record["url"].removeprefix(server.url): record for record in desk.finals()}
    assert {path for path, record in ends.items() if not record["ok"]} == {
        "/half", "/half-deflate", "/noise", "/until-close"
    }  # fmt: skip
    for path in ("/half", "/half-deflate", "/until-close"):
        assert (ends[path]["category"], ends[path]["error"]) == ("transient", "answer cut short")
    kept = {path: (desk.path / record["path"]).read_bytes() for path, record in ends.items() if record["ok"]}
    assert kept["/whole"] == kept["/padded"] == gzip.decompress(PACKED)
    assert kept["/twice"] == kept["/whole"] * 2
    assert (kept["/flat"], kept["/bare"]) == (b"flat" * 500, b"bare" * 500)
    assert (kept["/none"], kept["/plain"]) == (b"", b"as is")
    assert run.returncode == 1


def odd(request, connection):
    path = request.path
    if path == "/early":  # an answer of its own kind, and then the one that nobody waits for any more
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
        connection.pause(0.2)
        connection.answer(200, b"stray")
    elif path.startswith("/drip"):
        connection.send(connection.head(int(path.removeprefix("/drip")), 1000))
        connection.drip(b"x" * 1000, 0.05)
    elif path == "/loop":
        connection.answer(302, Location="/loop")
    elif path == "/ftp":
        connection.answer(302, Location="ftp://user:secret@host.test/")
    elif path == "/nowhere":
        connection.answer(302)
    elif path == "/unchanged":
        connection.answer(304)
    elif path == "/ssh":
        connection.send(b"SSH-2.0-server\r\n")
        connection.is_over = True
    else:
        connection.answer(200, path.encode())


def test_odd_answers_get_the_verdict_they_deserve(desk):
    with FaultServer(behave=odd) as server:
        paths = ["early", "drip404", "drip503", "loop", "ftp", "nowhere", "unchanged", "ssh", "fine"]
        run = desk.collect(
            "--attempts", "1", "--timeout", "1s", "--bodies", "out", "--per-host", "1",
            urls=[f"{server.url}/{path}" for path in paths], env=PATIENT,
        )  # fmt: skip
        assert sum(request.path == "/loop" for request in server.requests) == 31  # 30 redirects, as requests follows
    ends = {record["url"].rpartition("/")[2]: record for record in desk.finals()}
    assert {path: (record["status"], record.get("category")) for path, record in ends.items()} == {
        "early": (103, "transient"), "drip404": (404, "permanent"), "drip503": (503, "transient"),
        "loop": (None, "permanent"), "ftp": (None, "permanent"), "nowhere": (302, "permanent"),
        "unchanged": (304, "permanent"), "ssh": (None, "transient"), "fine": (200, None),
    }  # fmt: skip
    assert "no HTTP" in ends["ssh"]["error"]
    assert (desk.path / ends["fine"]["path"]).read_bytes() == b"/fine"
    assert "secret" not in run.stderr + desk.journal.read_text()
    assert run.returncode == 1


def test_a_304_that_was_asked_for_is_fine(desk):
    with FaultServer(behave=odd) as server:
        item = {"url": f"{server.url}/unchanged", "headers": {"If-None-Match": '"1"'}}
        assert desk.collect(urls=[json.dumps(item)]).returncode == 0


# -- redirects to other hosts ------------------------------------------------------------------------------------------


def reset(request, connection):
    connection.reset()


def test_a_dead_host_behind_redirects_is_isolated_and_not_those_who_lead_to_it(desk):
    with FaultServer() as one, FaultServer() as two, FaultServer(behave=reset) as dead:
        urls = [
            url for n in range(10)
            for url in (f"{one.url}/redirect?to={dead.url}/{n}", f"{two.url}/redirect?to={dead.url}/{n}",
                        f"{one.url}/ok?{n}")
        ]  # fmt: skip
        run = desk.collect(urls=urls)
        assert len(dead.requests) <= 6
        assert dead.peak <= 4
    ends = Counter((record["host"], record["ok"]) for record in desk.finals())
    assert ends == {(f"127.0.0.1:{one.port}", True): 10, (f"127.0.0.1:{dead.port}", False): 20}
    assert run.returncode == 75
    assert "redirected to other hosts" in run.stderr


def test_a_retry_after_behind_redirects_is_not_undercut_by_others(desk):
    told = []

    def limited(request, connection):
        if connection.server.count("any") == 1:
            told.append(request.at)
            connection.answer(429, Retry_After="1")
        else:
            connection.pause(0.05)
            connection.answer(200, b"")

    with FaultServer() as one, FaultServer() as two, FaultServer(behave=limited) as target:
        urls = [f"{server.url}/redirect?to={target.url}/{n}" for n in range(8) for server in (one, two)]
        run = desk.collect(urls=urls)
        assert run.returncode == 0, run.stderr
        assert len(target.requests) == 17
        early = [request for request in target.requests if request.at < told[0] + 1.0]
        assert len(early) <= 4  # sent before the wish was heard
        assert target.peak <= 4


def test_cookies_of_a_login_that_goes_by_another_host_are_kept(desk):
    def shop(request, connection):
        if request.path == "/start":
            connection.answer(302, Location=f"{login.url}/login", Set_Cookie="basket=7; Path=/")
        else:
            fine = request.headers.get("cookie") == "basket=7"
            connection.answer(200 if fine else 403, b"")

    with FaultServer(behave=shop) as site:
        back = f"http://localhost:{site.port}"

        def pass_on(request, connection):
            connection.answer(302, Location=f"{back}/end")

        with FaultServer(behave=pass_on) as login:
            run = desk.collect(urls=[f"{back}/start"])
    assert run.returncode == 0, run.stderr


# -- stopped and resumed -----------------------------------------------------------------------------------------------


def test_a_retry_after_holds_for_the_run_that_resumes(desk):
    with FaultServer() as server:
        desk.write([f"{server.url}/limited?after=3"])
        run = desk.begin()
        eventually(lambda: desk.journal.exists() and b'"pause"' in desk.journal.read_bytes())
        run.kill()
        run.communicate()
        again = desk.collect("--resume")
        assert again.returncode == 0, again.stderr
        first, second = server.requests
    assert second.at - first.at >= 3.0


def test_a_long_retry_after_is_not_asked_again_by_resuming_at_once(desk):
    with FaultServer() as server:
        assert desk.collect(urls=[f"{server.url}/limited?after=3600"]).returncode == 75
        again = desk.collect("--resume")
        assert again.returncode == 75
        assert "asks to wait 3" in again.stderr
        assert len(server.requests) == 1


def test_sigterm_ends_a_run_whose_shell_ignores_sigint(desk):
    with FaultServer() as server:
        desk.write([f"{server.url}/limited?after=200", f"{server.url}/silent"])
        run = desk.begin("--timeout", "100s", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        eventually(lambda: len(server.requests) == 2)
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert run.poll() is None
        begun = time.monotonic()
        run.send_signal(signal.SIGTERM)
        _, talk = run.communicate(timeout=10)
        assert time.monotonic() - begun < 1.5
        assert run.returncode == 143
        assert "Traceback" not in talk


def test_two_runs_on_one_journal_end_each_item_once(desk):
    with FaultServer() as server:
        urls = [f"{server.url}/slow?seconds=0.02&n={n}" for n in range(60)]
        desk.write(urls)
        runs = [desk.begin() for _ in range(2)]
        talks = [run.communicate(timeout=30)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], talks
    assert Counter(record["url"] for record in desk.finals()) == Counter(urls)


# -- places ----------------------------------------------------------------------------------------------------------


def no_file_above(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_under_the_bodies_is_74_and_can_be_resumed(desk):
    with FaultServer() as server:
        urls = [f"{server.url}/ok?size={1_000_000 if n == 30 else 100}&n={n}" for n in range(60)]
        arguments = ["--bodies", "out", "--failed", "failed.txt"]
        run = desk.collect(*arguments, urls=urls, preexec_fn=lambda: no_file_above(200_000))
        assert run.returncode == 74
        assert "cannot write the body to out/" in run.stderr
        assert "Traceback" not in run.stderr
        done = {record["url"] for record in desk.finals() if record["ok"]}
        assert set((desk.path / "failed.txt").read_text().split()) == set(urls) - done
        before = len(server.requests)
        assert desk.collect(*arguments, "--resume").returncode == 0
        assert len(server.requests) - before == len(urls) - len(done)
    assert Counter(record["url"] for record in desk.finals()) == Counter(urls)
    assert (desk.path / "failed.txt").read_text() == ""
    assert len(list((desk.path / "out").iterdir())) == 60


def test_a_disk_that_fills_up_under_the_journal_is_74_and_can_be_resumed(desk):
    with FaultServer() as server:
        urls = [f"{server.url}/ok?n={n}" for n in range(60)]
        run = desk.collect(urls=urls, preexec_fn=lambda: no_file_above(3_000))
        assert run.returncode == 74
        assert not desk.journal.read_bytes().endswith(b"\n")  # torn, and the next record starts on a line of its own
        assert desk.collect("--resume").returncode == 0
    assert Counter(record["url"] for record in desk.finals()) == Counter(urls)


@pytest.mark.parametrize("option", ["--journal", "--failed"])
def test_a_journal_is_nothing_else(desk, option):
    with FaultServer() as server:
        other = "urls.txt" if option == "--journal" else desk.journal.name
        run = desk.collect(option, other, urls=[f"{server.url}/ok"])
        assert run.returncode == 2
        assert "same file" in run.stderr
        assert server.requests == []
    assert (desk.path / "urls.txt").read_text() == f"{server.url}/ok\n"


def test_a_pipe_as_list_is_standard_input_by_another_name(desk):
    with FaultServer() as server:
        line = f"{' '.join(COMMAND)} <(echo {server.url}/status/503) --attempts 1"
        first = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, **desk.settings(None, {}))
        again = subprocess.run(
            ["bash", "-c", f"{line} --resume"], capture_output=True, timeout=60, **desk.settings(None, {})
        )
        assert len(server.requests) == 2
    assert (first.returncode, again.returncode) == (75, 75), first.stderr
    (journal,) = (desk.path / "home/.local/state/resilience/collect").iterdir()
    assert Counter(record["ok"] for record in read_records(journal) if record and "ok" in record) == {False: 2}


@pytest.mark.parametrize(("choice", "coloured"), [("always", True), ("auto", False), ("never", False)])
def test_colour_is_for_terminals_or_when_asked_for(desk, choice, coloured):
    with FaultServer() as server:
        run = desk.collect("--color", choice, urls=[f"{server.url}/ok"])
    assert ("\x1b[32m1/1 ok" in run.stderr) == coloured
    assert run.returncode == 0


def test_a_dead_proxy_is_named_as_the_cause(desk):
    with DeadPort() as dead:
        env = {"http_proxy": dead.url.replace("//", "//user:secret@")}
        run = desk.collect("--attempts", "1", urls=["http://site.invalid/"], env=env)
    assert run.returncode == 75
    assert "proxy: connection refused" in run.stderr
    assert "secret" not in run.stderr + desk.journal.read_text()


def test_a_proxy_is_used_and_no_proxy_is_heeded(desk):
    with FaultServer() as server, FaultServer(behave=lambda request, c: c.answer(200, b"by proxy")) as proxy:
        env = {"http_proxy": proxy.url, "no_proxy": "127.0.0.1"}
        run = desk.collect(urls=["http://site.invalid/1", f"{server.url}/ok"], env=env)
        assert (len(proxy.requests), len(server.requests)) == (1, 1)
    assert run.returncode == 0
