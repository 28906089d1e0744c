"""Commands under policies, by real processes: trees that end, silence, output, environment, exit codes."""

import errno
import os
import selectors
import subprocess
import sys
import threading
import time
import types

import pytest

import resilience
from resilience import CircuitBreaker, ErrorRecoveryManager, OperationCancelled, RetryPolicy, deadline, history
from resilience.core.errors import CircuitOpenError, ConfigError, DeadlineExceeded
from resilience.integrations import subprocess as commands
from resilience.integrations.subprocess import CommandFailed, run
from resilience.testing import eventually
from resilience.workers import trees
from resilience.workers.ledger import LEDGER

PATIENCE = 60.0
QUICK = RetryPolicy(max_retries=2, base_delay=0.0, jitter=False)
SAYS_WHAT_IS_LEFT = "import resilience; print(resilience.remaining(), resilience.current().attempt)"


def is_alive(pid):
    member = trees.look(pid)
    return member is not None and not member.is_zombie


def test_it_gives_what_the_standard_library_gives():
    done = run(["sh", "-c", "cat; echo err >&2"], input="given")
    assert (done.returncode, done.stdout, done.stderr) == (0, "given", "err\n")
    assert run(["cat"], input=b"\xff", text=False).stdout == b"\xff"
    assert run("echo $HOME | wc -l", shell=True).stdout.strip() == "1"
    assert run(["sh", "-c", "exit 3"], check=False).returncode == 3


def test_large_input_and_output_pass_at_the_same_time():
    data = os.urandom(3_000_000)
    assert run(["cat"], input=data, text=False).stdout == data
    assert run(["head", "-c", "10"], input=data, text=False).stdout == data[:10]  # it closes its input early
    assert run(["cat"], input=data, text=False, max_output=1000).stdout == data[-1000:]


def test_an_error_shows_the_end_of_what_was_said():
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "yes line | head -2000; echo the reason >&2; exit 4"])
    assert caught.value.returncode == 4
    assert "the reason" in str(caught.value)
    assert len(str(caught.value)) < 5000
    assert isinstance(caught.value, subprocess.CalledProcessError)


@pytest.mark.parametrize(("code", "attempts"), [(1, 3), (127, 1), (64, 1)])
def test_exit_codes_are_judged_by_classify(code, attempts):
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", f"exit {code}"], QUICK)
    assert len(history(caught.value)) == attempts


def test_what_is_not_there_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        run(["/no/such/command"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="setsid")
def test_the_whole_tree_ends_at_the_deadline(tmp_path):
    family = tmp_path / "pids"
    script = f"""
        sleep 600 & echo $! >> {family}
        setsid sleep 600 & echo $! >> {family}
        (trap '' TERM; exec sleep 600) & echo $! >> {family}
        echo said; wait
    """

    def cancel(context):
        eventually(lambda: family.exists() and len(family.read_text().split()) == 3)
        context.cancel("enough")

    with deadline(PATIENCE) as context:
        thread = threading.Thread(target=cancel, args=(context,))
        thread.start()
        with pytest.raises(OperationCancelled, match="enough"):
            run(["sh", "-c", script])
        thread.join()
    eventually(lambda: not any(is_alive(int(pid)) for pid in family.read_text().split()), within=10.0)
    assert "child" not in LEDGER.alive()


def test_a_deadline_is_reclaimed_and_shows_the_last_words():
    before = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        run(["sh", "-c", "trap '' TERM; echo started; sleep 600 & wait; wait"], timeout=0.5)
    took = time.monotonic() - before
    print(f"{(took - 0.5) * 1000:.0f} ms late")
    assert 0.5 <= took < 5.0
    assert (caught.value.reclaimed, caught.value.ambient, caught.value.name) == (True, False, "sh")


def test_a_timed_out_attempt_is_made_again_and_the_ambient_deadline_is_not(tmp_path):
    script = f"test -e {tmp_path}/mark && echo second && exit 0; touch {tmp_path}/mark; sleep 600"
    assert run(["sh", "-c", script], QUICK, timeout=3.0).stdout == "second\n"
    with deadline(0.3), pytest.raises(DeadlineExceeded) as caught:
        run(["sleep", "600"], QUICK)
    assert caught.value.ambient
    assert len(history(caught.value)) == 1


def test_silence_ends_it_and_output_keeps_it_alive():
    with pytest.raises(DeadlineExceeded, match=r"said nothing for 0\.5 s") as caught:
        run(["sh", "-c", "echo begun; sleep 600"], stall=0.5)
    assert caught.value.stdout in (b"begun\n", b"")
    assert run(["sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.2; done"], stall=30.0).stdout == "1\n2\n3\n4\n"


def test_a_grandchild_that_holds_the_pipe_is_not_waited_for():
    before = time.monotonic()
    done = run(["sh", "-c", "sleep 600 & echo $!"], timeout=PATIENCE)
    assert time.monotonic() - before < 30
    pid = int(done.stdout)
    assert is_alive(pid)  # it ended by itself: what it left running is left alone
    os.kill(pid, 9)


def test_a_child_inherits_the_deadline_and_knows_its_attempt():
    with deadline(50.0):
        left, attempt = run([sys.executable, "-c", SAYS_WHAT_IS_LEFT]).stdout.split()
    assert 0 < float(left) <= 50.0
    assert attempt == "1"
    script = f"test $RESILIENCE_ATTEMPT = 3 && exec {sys.executable} -c '{SAYS_WHAT_IS_LEFT}'"
    left, attempt = run(script, QUICK, shell=True, timeout=40.0).stdout.split()
    assert 0 < float(left) <= 40.0
    assert attempt == "3"


@pytest.mark.parametrize(
    ("value", "seen"), [("0", "0.0"), ("soon", "None"), ("inf", "None"), ("nan", "None"), ("", "None")]
)
def test_what_a_child_makes_of_the_variable(value, seen):
    done = run([sys.executable, "-c", "import resilience; print(resilience.remaining())"],
               env={**os.environ, "RESILIENCE_DEADLINE": value})  # fmt: skip
    assert done.stdout.strip() == seen


def test_policies_stand_around_each_attempt():
    breaker = CircuitBreaker("commands", resilience.CircuitBreakerConfig(failure_threshold=2))
    for _ in range(2):
        with pytest.raises(CommandFailed):
            run(["false"], breaker)
    with pytest.raises(CircuitOpenError):
        run(["false"], breaker)


def test_a_named_operation_counts_its_commands():
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("backup", QUICK)
        manager.register_timeout("backup", 30.0)
        assert run(["echo", "ok"], manager=manager, operation="backup").stdout == "ok\n"
        with pytest.raises(CommandFailed) as caught:
            run(["false"], manager=manager, operation="backup")
        assert len(history(caught.value)) == 3
        assert manager.monitor.operations()["backup"]["calls"] == 2


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"stall": -1}, {"max_output": 0}, {"cmd": "echo one"}, {"operation": "x"}]
)
def test_bad_parameters_are_refused(wrong):
    with pytest.raises(ConfigError):
        run(**{"cmd": ["true"], **wrong})


def test_a_command_that_cannot_be_waited_for_is_not_started(tmp_path, monkeypatch):
    begun = tmp_path / "begun"

    def no_more(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for module, part in ((os, "pipe"), (selectors, "DefaultSelector")):
        with monkeypatch.context() as patched:
            without = types.SimpleNamespace(**{**vars(module), part: no_more})
            patched.setattr(commands, module.__name__, without)
            with pytest.raises(OSError, match="Too many open files"):
                run(["touch", begun])
        time.sleep(0.2)
    assert not begun.exists()
    run(["touch", begun])
    assert begun.exists()


def test_many_commands_leave_nothing_open():
    run(["true"])
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        run(["true"])
        with pytest.raises(CommandFailed):
            run(["false"])
    assert len(os.listdir("/dev/fd")) <= before + 1
    assert "child" not in LEDGER.alive()
