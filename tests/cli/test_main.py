"""The frame of the command line: verbs, exit codes, and no traceback whatever happens."""

import json
import os
import signal
import subprocess
import sys

import pytest
from resilience_cli import exits, output
from resilience_cli.main import VERBS, main, run


def command(*arguments, **settings):
    environment = {**os.environ, **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "resilience_cli", *arguments], capture_output=True, text=True, timeout=60, check=False,
        env=environment, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_help_of_every_verb_ends_with_examples(verb, capsys):
    assert run([verb, "-h"]) == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"resilience {verb}" in shown.split("Examples")[1]


def test_the_list_of_verbs_imports_none_of_them():
    code = "import sys, resilience_cli.main as m; m.run(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"requests", "redis", "psycopg2", "psutil", "yaml", "resilience.manager"}
    assert "collect" in done.stdout


def test_an_unknown_verb_is_a_usage_error_with_the_nearest_one(capsys):
    assert run(["colect"]) == exits.USAGE
    assert "collect" in capsys.readouterr().err


def test_a_bad_option_is_a_usage_error(capsys):
    assert run(["config", "show", "--nonsense"]) == exits.USAGE
    assert "Traceback" not in capsys.readouterr().err


VERBS_WITH_DATA = (
    "probe tcp://h:1", "breakers list", "breakers show x", "breakers events", "status", "doctor", "top", "report",
    "config show", "config check", "explain", f"collect {os.devnull}",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS_WITH_DATA)
def test_two_formats_at_once_are_bad_usage(verb, capsys):
    assert run([*verb.split(), "--json", "--nl"]) == exits.USAGE
    assert "choose one" in capsys.readouterr().err


def test_the_version_is_told():
    done = command("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "resilience")


def test_a_full_disk_is_74_and_no_traceback():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resilience_cli", "config", "show"], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == exits.OUTPUT
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def unread():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def with_streams(*arguments, **streams):
    command = [sys.executable, "-m", "resilience_cli", *arguments]
    return subprocess.run(command, text=True, timeout=60, check=False, **{"stderr": subprocess.PIPE, **streams})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["config", "show"], exits.OK),
        (["--help"], exits.OK),
        (["probe", "tcp://127.0.0.1:0"], exits.NO),
        (["probe", "tcp://127.0.0.1:0", "--json"], exits.NO),
        (["top", str(os.getpid()), "--nl", "--interval", "10ms"], exits.OK),
    ],
)
def test_where_nobody_reads_the_exit_code_is_the_same(arguments, code, unread):
    done = with_streams(*arguments, stdout=unread)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("place", ["full", "unread"])
def test_a_usage_error_that_nobody_can_be_told_is_one_all_the_same(place, unread):
    with open("/dev/full", "w") as full:
        done = with_streams("collect", "no-such-file", stderr=full if place == "full" else unread)
    assert done.returncode == exits.USAGE


def test_what_the_terminal_has_no_letters_for_is_shown_escaped():
    done = command("probe", "tcp://h\u00e9:0", os.fsdecode(b"tcp://\xff:0"), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == exits.NO
    assert "tcp://h\\xe9:0" in done.stdout
    assert "tcp://\\udcff:0" in done.stdout


def test_a_bad_configuration_is_78_and_names_the_variable():
    done = command("explain", env={"RETRY_BASE_DELAY": "9q"})
    assert done.returncode == exits.CONFIG
    assert "environment RETRY_BASE_DELAY" in done.stderr
    assert "100ms" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_is_one_line(monkeypatch, capsys):
    from resilience_cli import main as module

    monkeypatch.setattr(module.cli, "main", lambda **_: 1 / 0)
    assert main(["config"]) == exits.NO
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "ZeroDivisionError" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell, capsys):
    assert run(["completion", shell]) == 0
    assert "_RESILIENCE_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([], 0), ([0, 75], 75), ([75, 1], 1), ([1, 74], 74), ([74, 124], 124), ([124, 130], 130), ([0, 143, 75], 143)],
)
def test_the_worst_code_of_all_items_decides(codes, worst):
    assert exits.worst(codes) == worst


def test_passwords_are_never_shown():
    text = "redis://user:secret@host:1/0 and http://h/ and postgresql://u:p%40ss@db"
    assert output.redacted(text) == "redis://user:***@host:1/0 and http://h/ and postgresql://u:***@db"
    assert output.redacted("http://u:p@ss:w@h/a@b http://h:80/x@y") == "http://u:***@h/a@b http://h:80/x@y"


def test_what_a_server_says_never_commands_the_terminal(capsys):
    for show in (output.say, output.emit):
        show("404 \x1b[31mRED\x1b[0m\r\x9b2J\ttab\nline")
    out, err = capsys.readouterr()
    assert out == err == "404 \\x1b[31mRED\\x1b[0m\\x0d\\x9b2J\ttab\nline\n"


def test_json_stays_json(capsys):
    output.emit_line({"text": "\x7f\x1b"})
    assert json.loads(capsys.readouterr().out) == {"text": "\x7f\x1b"}


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["collect", "-h"], ["completion", "bash"]])
def test_whatever_is_printed_to_a_full_disk_is_74(arguments, unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resilience_cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == exits.OUTPUT
    assert done.stderr == "resilience: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(("closed", "code"), [(">&-", exits.OUTPUT), ("2>&-", exits.OK), ("<&-", exits.OK)])
def test_closed_standard_streams_are_no_traceback(closed, code):
    line = f"exec {sys.executable} -m resilience_cli config show {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("Bad file descriptor" in done.stderr) == (code == exits.OUTPUT)


def test_tables_are_plain_text():
    shown = output.table(("HOST", "OK"), [("a.local", 10), ("b", 7)])
    assert shown.splitlines() == ["HOST     OK", "a.local  10", "b         7"]


# -- signals at moments when no verb is there to take them -----------------------------------------------------------


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_a_ctrl_c_while_the_command_line_is_imported_is_130_and_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = command("config", "show", env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (exits.INTERRUPTED, "")


def test_a_ctrl_c_after_the_verb_ends_the_process_at_once_and_without_a_traceback():
    prepared = "import signal, sys, resilience_cli.main as m; sys.argv[1:] = ['--version']"
    done = python(f"{prepared}; m._flushed = lambda code: signal.raise_signal(signal.SIGINT); m.main()")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_sigterm_while_an_error_is_explained_is_143_and_no_traceback():
    prepared = "import signal, resilience_cli.main as m; m.cli.main = lambda **_: 1 / 0"
    done = python(f"{prepared}; m._explained = lambda error: signal.raise_signal(signal.SIGTERM); m.main()")
    assert (done.returncode, done.stderr) == (exits.TERMINATED, "")


def test_a_sigterm_while_exec_says_why_it_refuses_is_143_and_no_traceback():
    prepared = "import signal, sys, resilience_cli.main as m, resilience_cli.execute.command as c"
    refusing = (
        "from resilience_cli.execute import guard; guard.Lock = lambda name: (_ for _ in ()).throw(guard.Refused())"
    )
    run_it = "c.say = lambda text: signal.raise_signal(signal.SIGTERM); m.main()"
    done = python(f"{prepared}; sys.argv[1:] = ['exec', '--lock', 'x', 'true']; {refusing}; {run_it}")
    assert (done.returncode, done.stderr) == (exits.TERMINATED, "")
