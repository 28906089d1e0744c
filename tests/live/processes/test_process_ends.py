"""Whatever happens to the parent - its end, SIGKILL, Ctrl-C, a fork - no worker process stays behind."""

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import process_tasks as tasks
import pytest

from resilience.core.errors import DeadlineExceeded
from resilience.testing import eventually
from resilience.workers import process_start, trees
from resilience.workers.processes import ProcessWorkers

pytestmark = [
    pytest.mark.usefixtures("light_main"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]
PATIENCE = 60.0  # seconds for a script to start on a busy machine
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.path.dirname(tasks.__file__),
    "PYTHONWARNINGS": "error,ignore:This process:DeprecationWarning",
}


def is_alive(pid):
    member = trees.look(pid)
    return member is not None and not member.is_zombie


def script(body, tmp_path, *args):
    """A process that runs `body` as its main module, from a file, as worker processes need it."""
    path = tmp_path / "script.py"
    path.write_text(body)
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


@contextlib.contextmanager
def nothing_left_of(process):
    """Ends the process and its workers, also where the test has failed."""
    try:
        yield
    finally:
        trees.end_tree(process.pid)
        process.communicate(timeout=PATIENCE)


HANGING = """
import sys, threading
import process_tasks as tasks
from resilience.workers.processes import ProcessWorkers

def hang(workers, fn, limit):
    try:
        workers.call(fn, timeout=limit)
    except BaseException:
        pass

if __name__ == "__main__":
    method, limit = sys.argv[1], float(sys.argv[2]) or None
    workers = ProcessWorkers("hanging", max_workers=4, start_method=method)
    workers.warm(4)
    pids = [worker.pid for worker in workers._pool.held]
    for fn in (tasks.hang, tasks.spin_in_c, tasks.ignore_sigterm_and_hang):
        threading.Thread(target=hang, args=(workers, fn, limit), daemon=True).start()
    print(*pids, flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_workers_busy_or_idle_are_gone_after_kill_9_of_their_parent(method, tmp_path):
    process = script(HANGING, tmp_path, method, 0)
    pids = [int(word) for word in process.stdout.readline().split()]
    with nothing_left_of(process):
        assert len(pids) == 4, process.communicate(timeout=PATIENCE)
        servers = [member.pid for member in trees.descendants(process.pid) if member.pid not in pids]
        time.sleep(0.2)  # into the calls
        assert all(map(is_alive, pids))
        process.kill()
        begun = time.monotonic()
        eventually(lambda: not any(map(is_alive, pids)))
        took = time.monotonic() - begun
        print(f"{method}: workers gone {took:.3f} s after kill -9 of the parent")
        assert took < 10.0  # the goal is 2
        eventually(lambda: not any(map(is_alive, servers)))


@pytest.mark.parametrize("fn", [tasks.hang, tasks.spin_in_c], ids=lambda fn: fn.__name__)
def test_a_worker_that_nobody_ends_ends_itself_after_the_deadline(fn):
    workers = ProcessWorkers("alone", max_workers=1)
    asleep = threading.Event()
    workers.warm()
    (worker,) = workers._pool.held
    worker.stack = lambda: asleep.wait(PATIENCE) and ""  # its parent has fallen asleep at the deadline

    def call():
        with contextlib.suppress(DeadlineExceeded):
            workers.call(fn, timeout=0.2)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        begun = time.monotonic()
        eventually(lambda: not is_alive(worker.pid), within=20.0)
        took = time.monotonic() - begun
        assert took > 0.3  # its own alarm rings 0.5 s after the deadline
    finally:
        asleep.set()
        thread.join()
        workers.shutdown()


@pytest.mark.parametrize("ended_by", ["its set", "the end of the program"])
def test_the_process_that_has_the_pid_of_a_worker_that_was_killed_long_ago_is_left_alone(ended_by):
    workers = ProcessWorkers("gone", max_workers=1)
    workers.warm()
    (worker,) = workers._pool.held
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: trees.look(worker.pid) is None)  # the fork server has reaped it
    time.sleep(0.05)  # the kernel tells the start of a process in hundredths of a second
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        try:
            worker.pid = bystander.pid  # as the kernel may number it
            if ended_by == "its set":
                workers.shutdown()
            else:
                process_start.end_all()
            with pytest.raises(subprocess.TimeoutExpired):
                bystander.wait(0.2)
            assert not worker.is_running
        finally:
            bystander.kill()


HUNG = """
import atexit, sys, threading, time
import process_tasks as tasks
from resilience.workers.processes import ProcessWorkers

if __name__ == "__main__":
    count = int(sys.argv[1])
    atexit.register(lambda: print("atexit ran", flush=True))
    workers = ProcessWorkers("hung", max_workers=count)
    futures = [workers.submit(tasks.ignore_sigterm_and_hang) for _ in range(count)]
    while not all(future.running() for future in futures) or len(workers._pool.held) < count:
        time.sleep(0.01)
    print(*[worker.pid for worker in workers._pool.held])
    print("main ends", time.monotonic(), flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize("count", [1, 10, pytest.param(100, marks=pytest.mark.slow)])
def test_hung_workers_do_not_hold_up_the_exit_and_lose_nothing(count, tmp_path):
    process = script(HUNG, tmp_path, count)
    out, err = process.communicate(timeout=2 * PATIENCE)
    gone = time.monotonic()
    assert process.returncode == 7, err
    pids, ended, last = out.splitlines()
    assert last == "atexit ran"
    took = gone - float(ended.split()[-1])
    print(f"{count} hung workers: gone {took:.2f} s after the end of main")
    assert took < 10.0  # the goal is 1
    assert len(pids.split()) == count
    assert not any(is_alive(int(pid)) for pid in pids.split())
    assert err == ""


INTERRUPTED = """
import os, sys, threading
import process_tasks as tasks
from resilience import Timeout
from resilience.workers.processes import ProcessWorkers

if __name__ == "__main__":
    workers = ProcessWorkers("interrupted", start_method=sys.argv[1])
    workers.warm()
    print(*[worker.pid for worker in workers._pool.held], flush=True)
    Timeout(600.0, isolation="process", workers=workers).call(tasks.hang)
"""


def interrupted(tmp_path, pause, method="forkserver"):
    process = script(INTERRUPTED, tmp_path, method)
    with nothing_left_of(process):
        line = process.stdout.readline()
        assert line, process.communicate(timeout=PATIENCE)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE)
        took = time.monotonic() - begun
        assert process.returncode == -signal.SIGINT, err  # 130 to a shell
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert not is_alive(int(line))
    return took


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_ctrl_c_in_a_call_leaves_at_once_and_takes_the_worker_along(tmp_path, method):
    assert interrupted(tmp_path, 0.3, method) < 10.0  # the goal is 1


@pytest.mark.slow
def test_ctrl_c_at_random_moments_of_a_call(tmp_path):
    slowest = max(interrupted(tmp_path, random.uniform(0.0, 0.1)) for _ in range(30))
    print(f"slowest of 30: {slowest:.2f} s")
    assert slowest < 10.0


FAMILY_TIMEOUT = 1.0


def test_a_family_of_processes_ends_with_its_function_at_the_timeout(tmp_path):
    workers = ProcessWorkers("family", max_workers=1)
    path = tmp_path / "pids"
    try:
        for _ in range(20):  # a busy machine may not have started all of them when the time is over
            workers.warm()
            path.unlink(missing_ok=True)
            with pytest.raises(DeadlineExceeded) as caught:
                workers.call(tasks.start_family, (str(path),), timeout=FAMILY_TIMEOUT)
            raised = time.monotonic()
            assert caught.value.reclaimed
            pids = [int(word) for word in path.read_text().split()] if path.exists() else []
            if len(pids) == 4:
                break
        assert len(pids) == 4
        eventually(lambda: not any(map(is_alive, pids)))
        took = time.monotonic() - raised
        print(f"0 of 4 descendants alive {took:.3f} s after the timeout")
        assert took < 10.0  # the goal is 1
    finally:
        workers.shutdown()


def state():
    gc.collect()
    zombies = sum(
        member is not None and member.is_zombie and member.parent == os.getpid()
        for member in map(trees.look, map(int, filter(str.isdigit, os.listdir("/proc"))))
    )
    return {
        "threads": threading.active_count(),
        "fds": len(os.listdir("/proc/self/fd")),
        "shm": sum(name.startswith(("sem.mp", "psm_", "pymp")) for name in os.listdir("/dev/shm")),  # of Python
        "zombies": zombies,
        "below": len(trees.descendants(os.getpid())),
    }


def cycle(method):
    workers = ProcessWorkers("cycle", start_method=method)
    assert workers.call(tasks.add, (1,)) == 1
    workers.shutdown()


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("forkserver", 20),
        ("fork", 20),
        *[pytest.param("forkserver", 200, marks=pytest.mark.slow, id=f"forkserver-{number}") for number in range(5)],
    ],
)
def test_making_using_and_closing_sets_of_workers_leaves_nothing(method, count):
    for _ in range(3):
        cycle(method)
    before = state()
    for _ in range(count):
        cycle(method)
    eventually(lambda: all(state()[name] - before[name] <= 2 for name in before), within=20.0)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    body = "from resilience.workers.processes import ProcessWorkers\nimport process_tasks as tasks\n"
    body += "print(ProcessWorkers('x').call(tasks.add, (1,)))\n"
    process = script(body, tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert 'if __name__ == "__main__":' in err.splitlines()[-1]


FORKING = """
import os, signal, sys, threading, time
import process_tasks as tasks
from resilience import ErrorRecoveryManager
from resilience.workers.processes import ProcessWorkers

def use(manager, workers, stop):
    while not stop.is_set():
        manager.execute_with_retry("threads", tasks.add, 1)
        workers.call(tasks.add, (1,))

def child(manager, workers):
    signal.alarm(60)
    begun = time.monotonic()
    assert manager.execute_with_retry("threads", tasks.add, 1) == 1
    assert workers.call(tasks.add, (1,)) == 1
    took = time.monotonic() - begun
    workers.shutdown()
    return took

if __name__ == "__main__":
    forks, method = int(sys.argv[1]), sys.argv[2]
    manager = ErrorRecoveryManager()
    workers = ProcessWorkers("shared", max_workers=4, start_method=method, max_tasks=20)
    # before the threads: CPython's own lock of a module that is just being imported is not made anew in a child
    manager.execute_with_retry("threads", tasks.add, 1)
    workers.call(tasks.add, (1,))
    stop = threading.Event()
    threads = [threading.Thread(target=use, args=(manager, workers, stop), daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    for number in range(forks):
        time.sleep(0.01)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.write(write, repr(child(manager, workers)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        _, status = os.waitpid(pid, 0)
        said = os.read(read, 100)
        os.close(read)
        assert status == 0, (number, status)
        slowest = max(slowest, float(said))
    stop.set()
    for thread in threads:
        thread.join()
    workers.shutdown()
    manager.close()
    print("all", forks, slowest, flush=True)
"""


@pytest.mark.parametrize(
    ("count", "method"),
    [
        (8, "fork"),
        pytest.param(200, "fork", marks=pytest.mark.slow),
        pytest.param(5, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_a_child_forked_in_the_middle_of_calls_uses_everything(count, method, tmp_path):
    process = script(FORKING, tmp_path, count, method)
    with nothing_left_of(process):
        out, err = process.communicate(timeout=100)
    assert out.startswith(f"all {count} "), err
    slowest = float(out.split()[-1])
    print(f"{method}: slowest of {count} children {slowest:.2f} s")
    if method == "fork":  # else each child starts a fork server of its own, beside 16 busy threads
        assert slowest < 10.0  # the goal is 1
