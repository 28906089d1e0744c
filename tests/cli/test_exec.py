"""`resilience exec`: exit codes, attempts, the breaker across runs, the lock, what it shows and what it leaves."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from resilience_cli import exits
from resilience_cli.execute.guard import Lock, Refused

from resilience.testing import eventually

EXEC = [sys.executable, "-m", "resilience_cli", "exec"]


@pytest.fixture
def run(tmp_path):
    """Runs `resilience exec` with a state directory of its own."""

    def run(*arguments, **more):
        env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), **more}
        return subprocess.run(
            [*EXEC, *arguments], capture_output=True, text=True, timeout=60, check=False, env=env, cwd=tmp_path
        )

    return run


def start(tmp_path, *arguments):
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    return subprocess.Popen([*EXEC, *arguments], env=env, stderr=subprocess.PIPE, text=True, cwd=tmp_path)


def shell(script):
    return ("--", "sh", "-c", script)


def is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -9 $$"), 137),
        (("./no-such-command",), exits.NOT_FOUND),
        (("./text",), exits.NOT_EXECUTABLE),
        (("./foreign",), exits.NOT_EXECUTABLE),
    ],
)
def test_the_exit_code_is_the_commands(run, command, code, tmp_path):
    (tmp_path / "text").write_text("exit 0\n")
    (tmp_path / "foreign").write_bytes(b"\x7fELF\0\0\0")
    (tmp_path / "foreign").chmod(0o755)
    done = run("--", *command)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_script_without_its_first_line_is_one_of_the_shell(run, tmp_path):
    (tmp_path / "job").write_text('echo "$1"; exit 4\n')
    (tmp_path / "job").chmod(0o755)
    by_path, by_name = run("--", "./job", "a b"), run("--", "job", "a b", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (by_path.returncode, by_path.stdout) == (by_name.returncode, by_name.stdout) == (4, "a b\n")


@pytest.mark.parametrize("arguments", [(), ("--nonsense", "--", "true"), ("--timeout", "5 parsecs", "--", "true")])
def test_bad_usage_is_2_and_starts_nothing(run, arguments, tmp_path):
    done = run(*arguments)
    assert done.returncode == exits.USAGE
    if "--timeout" in arguments:
        assert "5s" in done.stderr  # an example


def test_every_failure_is_repeated_and_said_until_one_succeeds(run, tmp_path):
    done = run("--attempts", "4", "--delay", "10ms", *shell("echo x >> runs; [ $(wc -l < runs) -ge 3 ]"))
    assert done.returncode == 0
    assert "attempt 1/4" in done.stderr
    assert "attempt 2/4" in done.stderr
    assert "attempt 3/4" not in done.stderr


@pytest.mark.parametrize("codes", ["", "x", "\u00b2", "9-1", "4-", "-4", "250-256", "1,,2", "9" * 5000])
def test_what_names_no_exit_codes_is_bad_usage(run, tmp_path, codes):
    done = run("--attempts", "2", "--retry-on-exit", codes, *shell("echo x > runs"))
    assert done.returncode == exits.USAGE
    assert "as 1,75 or 1-99,124 do" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("codes", "runs"), [("1,75", 1), ("3-5", 3), (None, 3)])
def test_only_the_chosen_exit_codes_are_repeated(run, tmp_path, codes, runs):
    options = [] if codes is None else ["--retry-on-exit", codes]
    done = run("--attempts", "3", "--delay", "10ms", *options, *shell("echo x >> runs; exit 4"))
    assert done.returncode == 4
    assert len((tmp_path / "runs").read_text().splitlines()) == runs


def test_a_command_that_is_not_there_is_not_repeated(run):
    done = run("--attempts", "5", "--", "./no-such-command")
    assert done.returncode == exits.NOT_FOUND
    assert "next try" not in done.stderr


def test_after_failures_the_next_run_is_refused_and_a_reset_lets_it_run(run, tmp_path):
    limits = {"CIRCUIT_BREAKER_FAILURE_THRESHOLD": "3"}
    for _ in range(3):
        assert run("--breaker", "x", *shell("echo x >> runs; exit 7"), **limits).returncode == 7
    refused = run("--breaker", "x", *shell("echo x >> runs"), **limits)
    assert refused.returncode == exits.TRANSIENT
    assert "'x' is OPEN for" in refused.stderr
    assert "3 failures" in refused.stderr
    assert "last: exit 7" in refused.stderr
    assert "not started" in refused.stderr
    assert len((tmp_path / "runs").read_text().splitlines()) == 3
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "resilience_cli", "breakers", "reset", "x"], env=env, check=True, timeout=60)
    assert run("--breaker", "x", "--", "true", **limits).returncode == 0


def test_a_refused_run_loads_no_more_than_it_needs(run):
    run("--breaker", "light", "--", "false", CIRCUIT_BREAKER_FAILURE_THRESHOLD="1")
    refused = run("--breaker", "light", "--", "true", PYTHONPROFILEIMPORTTIME="1")
    assert refused.returncode == exits.TRANSIENT
    loaded = {line.rpartition("|")[2].strip() for line in refused.stderr.splitlines() if "import time:" in line}
    assert "resilience.strategies.circuit_breaker" in loaded
    heavy = {"difflib", "psutil", "psycopg2", "redis", "requests", "yaml", "resilience.strategies.retry",
             "resilience.strategies.retry_progress", "resilience.manager", "concurrent.futures"}  # fmt: skip
    assert loaded & heavy == set()


def test_eight_runs_at_once_are_all_counted(tmp_path):
    running = [start(tmp_path, "--breaker", "many", "--", "false") for _ in range(4)]
    running += [start(tmp_path, "--breaker", "many", "--", "sh", "-c", "exit 2") for _ in range(4)]
    for process in running:
        process.communicate(timeout=60)
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-m", "resilience_cli", "breakers", "show", "many", "--json"], env=env, check=True, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    seen = json.loads(shown.stdout)
    ran = [process.returncode for process in running if process.returncode != exits.TRANSIENT]
    assert seen["state"] == "open"
    assert len(ran) >= 5


def test_a_lock_keeps_a_second_run_out_and_is_free_afterwards(run, tmp_path):
    first = start(tmp_path, "--lock", "job", *shell("echo $$ > started; read wait < fifo"))
    os.mkfifo(tmp_path / "fifo")
    eventually(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text().strip())
    second = run("--lock", "job", "--", "true")
    assert second.returncode == exits.TRANSIENT
    assert f"held by process {first.pid}" in second.stderr
    assert run("--lock", "other", "--", "true").returncode == 0
    (tmp_path / "fifo").write_text("go\n")
    first.communicate(timeout=60)
    assert run("--lock", "job", "--", "true").returncode == 0


@pytest.mark.parametrize("name", ["x" * 300, "x"])
def test_a_lock_that_cannot_be_taken_starts_nothing_and_says_why(run, tmp_path, name):
    (tmp_path / "file").write_text("")
    state = str(tmp_path / "file") if name == "x" else str(tmp_path)
    done = run("--lock", name, *shell("echo x > runs"), XDG_STATE_HOME=state)
    assert done.returncode == exits.OUTPUT
    assert "not started" in done.stderr
    assert "defect" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", "x" * 401, os.fsdecode(b"\xff")], ids=["empty", "long", "no text"])
@pytest.mark.parametrize("option", ["--lock", "--breaker"])
def test_a_name_that_nothing_can_be_kept_under_is_bad_usage(run, tmp_path, option, name):
    done = run(option, name, *shell("echo x > runs"))
    assert done.returncode == exits.USAGE
    assert option in done.stderr
    assert not (tmp_path / "runs").exists()


def test_garbage_in_a_lock_keeps_nobody_out(run, tmp_path):
    assert run("--lock", "garbled", "--", "true").returncode == 0
    (file,) = (tmp_path / "resilience" / "locks").iterdir()
    file.write_text("\n\u00b2\u0000\n")
    done = run("--lock", "garbled", "--", "true")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_lock_holds_on_a_full_disk(monkeypatch, tmp_path, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("resilience_cli.execute.guard.os.pwrite", full)
    lock = Lock("job")
    lock.note(os.getpid())
    with pytest.raises(Refused, match="held by process unknown"):
        Lock("job")
    lock.release()
    Lock("job").release()
    assert capsys.readouterr().err == "resilience: lock 'job' names no process: No space left on device\n"


def test_output_is_shown_on_failure_only_when_quiet(run):
    script = "echo out; echo err >&2; exit "
    quiet = run("--quiet-on-success", *shell(script + "0"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    loud = run("--quiet-on-success", *shell(script + "3"))
    assert (loud.returncode, loud.stdout) == (3, "out\n")
    assert "err" in loud.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_nobody_reads_changes_neither_attempts_nor_the_exit_code(tmp_path, stream):
    reading, writing = os.pipe()
    os.close(reading)
    options = ("--quiet-on-success", "--attempts", "2", "--delay", "10ms")
    script = "echo x >> runs; seq 30000; seq 30000 >&2; exit 3"
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writing}
    with subprocess.Popen([*EXEC, *options, *shell(script)], cwd=tmp_path, **streams) as process:
        os.close(writing)
        assert process.wait(60) == 3
    assert (tmp_path / "runs").read_text() == "x\nx\n"


def test_the_report_tells_how_each_run_went(run, tmp_path):
    run("--attempts", "2", "--delay", "10ms", "--report-file", "report.json", *shell("exit 5"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit"] == 5
    assert report["outcome"] == "exit"
    assert [(one["attempt"], one["exit"]) for one in report["attempts"]] == [(1, 5), (2, 5)]


TREE = 'trap "" TERM; setsid sh -c "echo \\$\\$ > away; exec sleep 300" & echo $$ > top; sleep 300 & wait; sleep 300'


def tree_pids(tmp_path):
    eventually(
        lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text().strip() for name in ("away", "top"))
    )
    return [int((tmp_path / name).read_text()) for name in ("away", "top")]


def test_at_its_time_limit_the_whole_tree_is_ended(run, tmp_path):
    done = run("--timeout", "3s", "--", "sh", "-c", TREE)
    assert done.returncode == exits.TIMED_OUT
    assert "timed out" in done.stderr
    for pid in tree_pids(tmp_path):
        eventually(lambda pid=pid: is_gone(pid))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, exits.TERMINATED), (signal.SIGINT, exits.INTERRUPTED)])
def test_a_signal_ends_the_tree_too(tmp_path, number, code):
    process = start(tmp_path, "--", "sh", "-c", TREE)
    pids = tree_pids(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    for pid in pids:
        eventually(lambda pid=pid: is_gone(pid))


@pytest.mark.parametrize("ignored", ["INT", "HUP"])
def test_a_signal_that_it_was_started_to_ignore_ends_nothing(tmp_path, ignored):
    os.mkfifo(tmp_path / "fifo")
    script = 'trap "" "$0"; exec "$@"'
    command = ["sh", "-c", script, ignored, *EXEC, *shell("echo x > started; read go < fifo")]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        eventually(lambda: (tmp_path / "started").exists())
        process.send_signal(getattr(signal, f"SIG{ignored}"))
        (tmp_path / "fifo").write_text("go\n")
        assert process.wait(60) == 0
