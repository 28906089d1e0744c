"""`resilience collect` as a process of its own, against servers that misbehave."""

import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter, defaultdict

import pytest
from resilience_cli.collect.journal import read_records

from resilience.testing import BlackHole, FaultServer, eventually

COMMAND = [sys.executable, "-m", "resilience_cli", "collect"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory, an empty home, none of our variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("CIRCUIT_", "RETRY_", "RESILIENCE_", "XDG_", "API_CALL")):
            monkeypatch.delenv(name)
    return tmp_path


def listed(path, urls):
    path.write_text("".join(f"{url}\n" for url in urls))
    return str(path)


def collect(*arguments, timeout=60, **more):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **more)


def finals(path):
    return [record for record in read_records(path) if record is not None and isinstance(record.get("ok"), bool)]


def begin(*arguments, **more):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def reset(request, connection):
    connection.reset()


def test_sixty_urls_of_six_hosts_end_once_each_and_as_the_hosts_deserve(here):
    with (
        FaultServer() as healthy, FaultServer(seed=3) as flaky, FaultServer() as limited, FaultServer() as dripping,
        FaultServer(behave=reset) as dead, FaultServer() as missing,
    ):  # fmt: skip
        urls = [
            url
            for number in range(10)
            for url in (
                f"{healthy.url}/ok?{number}", f"{flaky.url}/flaky?share=0.3&n={number}",
                f"{limited.url}/limited?after=1&n={number}", f"{dripping.url}/drip?every=0.2&size=100&n={number}",
                f"{dead.url}/ok?{number}", f"{missing.url}/nothing?{number}",
            )
        ]  # fmt: skip
        begun = time.monotonic()
        run = collect(
            listed(here / "urls.txt", urls), "--nl", "--timeout", "1s", "--failed", "failed.txt", "--attempts", "6"
        )
        took = time.monotonic() - begun
    records = finals("urls.txt.journal.jsonl")
    printed = [json.loads(line) for line in run.stdout.splitlines()]
    assert sorted(printed, key=lambda record: record["key"]) == sorted(records, key=lambda record: record["key"])
    assert Counter(record["url"] for record in records) == Counter(urls)
    by_host = defaultdict(list)
    for record in records:
        by_host[record["host"]].append(record)

    def of(server):
        return by_host[f"127.0.0.1:{server.port}"]

    assert all(record["ok"] and record["status"] == 200 and record["attempts"] == 1 for record in of(healthy))
    assert all(record["ok"] for record in of(flaky))
    assert all(record["ok"] and record["attempts"] >= 2 for record in of(limited))
    assert {(record["category"], record["status"]) for record in of(missing)} == {("permanent", 404)}
    assert all(record["attempts"] == 1 for record in of(missing))
    for server in (dead, dripping):
        assert {(record["ok"], record["category"], record["status"]) for record in of(server)} == {
            (False, "transient", None)
        }
        assert all(record["error"] for record in of(server))
    assert len(dead.requests) <= 6
    assert dead.connections <= 6
    told = {}
    for request in limited.requests:  # each URL is told once, by its first answer
        if request.target in told:
            assert request.at - told[request.target] >= 1.0
        told.setdefault(request.target, request.at)
    assert run.returncode == 1  # permanent failures among them
    assert set((here / "failed.txt").read_text().split()) == {r["url"] for r in records if not r["ok"]}
    assert "connection reset" in run.stderr
    assert f"127.0.0.1:{dead.port}" in run.stderr
    assert "404 Not Found" in run.stderr
    assert took < 30


def test_all_done_is_0_and_only_transient_failures_are_75(here):
    with FaultServer() as server:
        fine = collect(listed(here / "a", [f"{server.url}/ok?{n}" for n in range(5)]))
        transient = collect(listed(here / "b", [f"{server.url}/ok", f"{server.url}/status/503"]))
    assert (fine.returncode, transient.returncode) == (0, 75)
    assert "5/5 ok" in fine.stderr
    assert fine.stdout == ""
    assert "--resume" in transient.stderr


def test_resuming_repeats_what_failed_for_now_and_nothing_else(here):
    with FaultServer() as server:
        urls = [f"{server.url}/ok?1", f"{server.url}/status/404", f"{server.url}/sequence/503,503,200"]
        name = listed(here / "urls.txt", urls)
        first = collect(name, "--attempts", "2")
        assert first.returncode == 1
        before = len(server.requests)
        second = collect(name, "--resume")
        assert second.returncode == 1  # the 404 of before still stands
        assert [request.path for request in server.requests[before:]] == ["/sequence/503,503,200"]
        third = collect(name, "--resume", "--retry-permanent")
        assert server.requests[-1].path == "/status/404"
        assert third.returncode == 1
    ends = Counter((record["url"], record["ok"]) for record in finals("urls.txt.journal.jsonl"))
    assert ends == {(urls[0], True): 1, (urls[1], False): 2, (urls[2], False): 1, (urls[2], True): 1}


def test_a_dead_host_that_comes_back_is_probed_on_resume_and_done(here):
    with FaultServer(behave=reset) as dead:
        port = dead.port
        name = listed(here / "urls.txt", [f"{dead.url}/ok?{n}" for n in range(10)])
        assert collect(name).returncode == 75
    with FaultServer(port=port) as back:
        run = collect(name, "--resume")
        assert len(back.requests) == 10
    assert run.returncode == 0, run.stderr
    assert "half_open -> closed" in run.stderr


def test_the_environment_of_the_specification_applies(here):
    with FaultServer(behave=reset) as dead, FaultServer() as server:
        urls = [f"{dead.url}/ok?{n}" for n in range(10)] + [f"{server.url}/slow?seconds=1.5"]
        environment = {**os.environ, "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "2", "CIRCUIT_BREAKER_TIMEOUT": "500ms"}
        run = collect(listed(here / "urls.txt", urls), env=environment)
        assert 3 <= len(dead.requests) <= 6  # two, then a probe each half second of the rest of the run
    assert run.returncode == 75


def test_wait_open_waits_for_the_breaker(here):
    with FaultServer() as server:
        url = f"{server.url}/sequence/503,503,503,200"
        environment = {**os.environ, "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "2", "CIRCUIT_BREAKER_TIMEOUT": "300ms"}
        run = collect(listed(here / "urls.txt", [url]), "--wait-open", env=environment)
        assert run.returncode == 0, run.stderr


def test_malformed_lines_are_named_and_nothing_is_sent(here):
    with FaultServer() as server:
        (here / "urls.txt").write_text(f"{server.url}/ok\n\nnonsense\n{{'url'\n")
        run = collect("urls.txt")
        piped = collect("-", input=f"{server.url}/ok\nnonsense\n")
        assert server.requests == []
    assert run.returncode == piped.returncode == 2
    assert "urls.txt:3: " in run.stderr
    assert "urls.txt:4: " in run.stderr
    assert "<stdin>:2: " in piped.stderr
    assert "Traceback" not in run.stderr
    assert not (here / "urls.txt.journal.jsonl").exists()


def test_standard_input_has_a_journal_of_its_own_and_resumes(here):
    with FaultServer() as server:
        lines = f"{server.url}/ok?1\n{server.url}/sequence/503,200\n"
        first = collect("-", "--attempts", "1", input=lines)
        second = collect("-", "--resume", input=lines)
        assert (first.returncode, second.returncode) == (75, 0)
        assert len(server.requests) == 3


def test_requests_are_made_as_the_list_says_and_bodies_are_kept(here):
    with FaultServer() as server:
        item = {"url": f"{server.url}/echo?x", "method": "POST", "headers": {"X-One": "1"}, "body": "hello", "key": "k"}
        (here / "items.jsonl").write_text(json.dumps(item) + "\n")
        run = collect("items.jsonl", "--bodies", "out")
    assert run.returncode == 0, run.stderr
    (record,) = finals("items.jsonl.journal.jsonl")
    assert (record["key"], record["method"]) == ("k", "POST")
    echo = json.loads((here / record["path"]).read_text())
    assert (echo["method"], echo["body"], echo["headers"]["x-one"]) == ("POST", "hello", "1")
    assert [path.name for path in (here / "out").iterdir()] == [os.path.basename(record["path"])]


def test_a_post_without_an_answer_is_made_once_and_not_repeated_by_resuming(here):
    with FaultServer() as server:
        (here / "items.jsonl").write_text(json.dumps({"url": f"{server.url}/reset", "method": "POST"}) + "\n")
        first = collect("items.jsonl")
        second = collect("items.jsonl", "--resume")
        assert len(server.requests) == 1
        assert first.returncode == second.returncode == 1
        collect("items.jsonl", "--resume", "--retry-permanent")
        assert len(server.requests) == 2


def test_a_post_that_was_under_way_at_kill_9_is_not_made_again(here):
    with FaultServer() as server:
        (here / "items.jsonl").write_text(json.dumps({"url": f"{server.url}/silent", "method": "POST"}) + "\n")
        run = begin("items.jsonl")
        eventually(lambda: server.requests)
        run.kill()
        run.communicate()
        again = collect("items.jsonl", "--resume")
        assert len(server.requests) == 1
    assert again.returncode == 1
    assert "may have taken effect" in finals("items.jsonl.journal.jsonl")[0]["error"]


def test_an_incomplete_body_leaves_no_file(here):
    with FaultServer() as server:
        run = collect(
            listed(here / "urls.txt", [f"{server.url}/short", f"{server.url}/reset-body"]), "--bodies", "out",
            "--attempts", "1",
        )  # fmt: skip
    assert run.returncode == 75
    assert list((here / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["drip", "drip-headers", "silent"])
def test_the_timeout_is_for_the_whole_request(here, kind):
    with FaultServer() as server:
        begun = time.monotonic()
        run = collect(
            listed(here / "urls.txt", [f"{server.url}/{kind}?every=0.05&size=1000"]), "--timeout", "500ms",
            "--attempts", "1",
        )  # fmt: skip
    assert run.returncode == 75
    assert "no complete answer within 0.5 s" in run.stderr
    assert time.monotonic() - begun < 4


def test_a_host_that_takes_no_connection_ends_in_time(here):
    with BlackHole() as hole:
        run = collect(listed(here / "urls.txt", [f"{hole.url}/"]), "--timeout", "500ms", "--attempts", "1", timeout=10)
    assert run.returncode == 75


def test_redirects_are_followed_to_other_hosts(here):
    with FaultServer() as server, FaultServer() as other:
        run = collect(listed(here / "urls.txt", [f"{server.url}/redirect?to={other.url}/ok"]), "--nl")
        assert [request.path for request in other.requests] == ["/ok"]
    assert run.returncode == 0
    assert json.loads(run.stdout)["status"] == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_certificates_are_checked_against_the_bundle_of_the_environment(here):
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    place = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", "req", *kind, *place], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("cert.pem", "key.pem")
    unset = {name: value for name, value in os.environ.items() if "CA_BUNDLE" not in name}
    with FaultServer(tls=tls) as server:
        name = listed(here / "urls.txt", [f"{server.url}/ok?{n}" for n in range(10)])
        strange = collect(name, env=unset)
        known = collect(name, env={**unset, "REQUESTS_CA_BUNDLE": "cert.pem"})
    assert strange.returncode == 1
    assert "certificate" in strange.stderr
    assert known.returncode == 0, known.stderr


def test_the_deadline_of_the_run_ends_it_with_124(here):
    with FaultServer() as server:
        urls = [f"{server.url}/ok", f"{server.url}/silent?1", f"{server.url}/drip?2", "http://127.0.0.1:9/"]
        begun = time.monotonic()
        run = collect(listed(here / "urls.txt", urls), "--deadline", "1s", "--attempts", "1000")
        took = time.monotonic() - begun
    assert run.returncode == 124
    assert took < 4
    records = finals("urls.txt.journal.jsonl")
    assert Counter(record["url"] for record in records) == Counter(urls)
    assert {record["category"] for record in records if not record["ok"]} == {"transient"}


def test_a_long_retry_after_is_not_waited_for(here):
    with FaultServer() as server:
        urls = [f"{server.url}/limited?after=3600&first=99&n={n}" for n in range(5)]
        run = collect(listed(here / "urls.txt", urls), timeout=10)
    assert run.returncode == 75
    assert {record["retry_after"] for record in finals("urls.txt.journal.jsonl")} == {3600.0}


def test_half_failing_attempts_are_made_one_at_a_time_until_they_succeed(here):
    moments = []

    def failing_at_first(request, connection):
        moments.append(connection.server._under_way)
        connection.pause(0.01)
        number = len(connection.server.requests)
        connection.answer(500 if number <= 60 and number % 3 else 200, b"")

    with FaultServer(behave=failing_at_first) as server:
        name = listed(here / "urls.txt", [f"{server.url}/{n}" for n in range(150)])
        environment = {**os.environ, "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "1000"}
        run = collect(name, "--per-host", "8", "--workers", "8", "--attempts", "9", env=environment)
    assert run.returncode == 0, run.stderr
    assert "one at a time" in run.stderr
    assert max(moments[:10]) > 1
    assert set(moments[35:55]) == {1}
    assert max(moments[120:]) > 1


@pytest.mark.parametrize("where", ["--journal", "--failed", "stdout", "bodies"])
def test_output_that_cannot_be_written_is_74_without_a_traceback(here, where):
    with FaultServer() as server:
        name = listed(here / "urls.txt", [f"{server.url}/status/404", f"{server.url}/ok"])
        if where == "stdout":
            command = [*COMMAND, name, "--nl"]
            with open("/dev/full", "w") as full:
                run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
        elif where == "bodies":
            (here / "file").write_text("")
            run = collect(name, "--bodies", "file/deeper")
        else:
            run = collect(name, where, "/dev/full")
    assert run.returncode == 74, run.stderr
    assert "Traceback" not in run.stderr
    assert "cannot write" in run.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_at_once_and_it_can_be_resumed(here, number, code):
    with FaultServer() as server:
        urls = [f"{server.url}/ok?{n}" for n in range(40)] + [f"{server.url}/slow?seconds=1.2&n={n}" for n in range(8)]
        name = listed(here / "urls.txt", urls)
        run = begin(name, "--timeout", "20s")
        eventually(lambda: len(server.requests) > 43)
        begun = time.monotonic()
        run.send_signal(number)
        _, talk = run.communicate(timeout=10)
        assert time.monotonic() - begun < 1.5
        assert run.returncode == code
        assert "--resume" in talk
        assert "Traceback" not in talk
        done = {record["url"] for record in finals("urls.txt.journal.jsonl")}
        assert len(done) >= 40
        before = len(server.requests)
        again = collect(name, "--resume")
        assert again.returncode == 0, again.stderr
        repeated = {f"{server.url}{request.target}" for request in server.requests[before:]}
        assert not repeated & {url for url in done if "slow" in url}
    assert Counter(record["url"] for record in finals("urls.txt.journal.jsonl")) == Counter(urls)


def test_a_signal_ends_a_long_wait_too(here):
    with FaultServer() as server:
        run = begin(listed(here / "urls.txt", [f"{server.url}/limited?after=200"]))
        eventually(lambda: server.requests)
        time.sleep(0.3)
        begun = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=10)
        assert time.monotonic() - begun < 1.5
        assert run.returncode == 130


def test_a_reader_that_stops_reading_does_not_hold_the_end(here):
    with FaultServer() as server:
        name = listed(here / "urls.txt", [f"{server.url}/ok?{n}" for n in range(1500)])
        run = begin(name, "--nl")
        eventually(lambda: len(server.requests) > 250)
        time.sleep(1.0)  # standard output is full by now
        begun = time.monotonic()
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=10) == 143
        assert time.monotonic() - begun < 1.5
        run.communicate()


def kill_at_random_and_resume(here, server, moments, rng):
    """Each round: kill -9 at a random moment; in the end one resumed run to the end. Gives the URLs."""
    urls = [f"{server.url}/ok?n={n}" for n in range(300)]
    name = listed(here / "urls.txt", urls)
    journal = here / "urls.txt.journal.jsonl"
    for turn in range(moments):
        journal.unlink(missing_ok=True)
        run = begin(name, "--workers", "4", "--bodies", "out")
        aim = rng.randrange(len(urls))
        base = len(server.requests)
        eventually(lambda aim=aim, base=base: len(server.requests) >= base + aim)
        time.sleep(rng.random() * 0.01)
        run.kill()
        run.communicate()
        done = {record["url"] for record in finals(journal)} if journal.exists() else set()
        before = len(server.requests)
        again = collect(name, "--resume", "--bodies", "out")
        assert again.returncode == 0, (turn, again.stderr)
        asked = {f"{server.url}/ok?n={request.query['n']}" for request in server.requests[before:]}
        assert not asked & done, "fetched again although it was done"
        assert Counter(record["url"] for record in finals(journal)) == Counter(urls)


def test_kill_9_at_any_moment_loses_and_repeats_nothing(here):
    with FaultServer() as server:
        kill_at_random_and_resume(here, server, 5, random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_kill_9_at_fifty_moments_loses_and_repeats_nothing(here, part):
    with FaultServer() as server:
        kill_at_random_and_resume(here, server, 5, random.Random(100 + part))


def test_a_contradictory_configuration_is_78(here):
    (here / "resilience.yaml").write_text("error_recovery:\n  circuit_breaker:\n    failure_threshold: none at all\n")
    run = collect(listed(here / "urls.txt", ["http://127.0.0.1:9/"]))
    assert run.returncode == 78
    assert "resilience.yaml:3" in run.stderr


@pytest.mark.parametrize("arguments", [["--timeout", "5 parsecs"], ["--nl", "--json"], ["--retry-permanent"]])
def test_usage_errors_are_2(here, arguments):
    assert collect(listed(here / "urls.txt", ["http://127.0.0.1:9/"]), *arguments).returncode == 2
