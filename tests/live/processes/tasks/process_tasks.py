"""Functions that the tests run in worker processes."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time


def add(first, second=0):
    return first + second


def pid():
    return os.getpid()


def echo(value):
    return value


def hang():
    time.sleep(600)


def hang_noted(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def spin_in_c():
    sum(itertools.repeat(1))


def ignore_sigterm_and_hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def stop_oneself():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def die_of(number):
    os.kill(os.getpid(), number)
    time.sleep(600)


def leave(code):
    os._exit(code)


def eat(count):
    return len(bytearray(count))


def fail(message="refused"):
    raise ConnectionError(message)


def fail_chained():
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


class Unloadable(Exception):
    """Pickles, and does not load: its constructor wants two arguments."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Unpicklable(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()
        self.number = 7


def raise_unloadable():
    raise Unloadable(5, "text")


def raise_unpicklable():
    raise Unpicklable("with a lock")


def raise_local():
    class Local(OSError):
        pass

    raise Local("nobody finds this class")


def return_unpicklable():
    return threading.Lock()


class BreaksWhenLoaded:
    """A result that pickles and fails to load on the other side."""

    def __reduce__(self):
        return _break, ()


def _break():
    raise RuntimeError("cannot be loaded")


def return_unloadable():
    return BreaksWhenLoaded()


def leave_by_system_exit():
    sys.exit(3)


def fork_and_come_back():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return child


def start_family(path):
    """One plain child, one in a session of its own, one that ignores SIGTERM, and an orphan; says all pids; hangs."""
    script = "sleep 600 & echo $!; setsid sleep 600 & echo $!; (trap '' TERM; exec sleep 600) & echo $!; wait"
    with open(path, "w") as file:
        subprocess.Popen(["sh", "-c", script], stdout=file)
        orphan = subprocess.run(["sh", "-c", "setsid sleep 600 >/dev/null & echo $!"], stdout=file, check=True)
        file.write("")
    assert orphan.returncode == 0
    time.sleep(600)


def seen_context():
    from resilience import current

    context = current()
    left = None if context is None else context.remaining()
    chain = []
    while context is not None:
        chain.append((context.operation, context.attempt, context.is_attempt))
        context = context.parent
    return left, chain


def nap_until_deadline():
    import resilience

    resilience.sleep(600)


def count_and_fail(path):
    """Appends one mark to the file, and fails under a retry policy of its own."""
    from resilience import RetryPolicy

    def attempt():
        with open(path, "a") as file:
            file.write("x")
        raise ConnectionError("down")

    RetryPolicy(max_retries=2, base_delay=0.0, jitter=False).call(attempt)


def hang_first(path):
    """Hangs when the file is not there yet, else answers."""
    if not os.path.exists(path):
        open(path, "w").close()
        time.sleep(600)
    return "second"


def decorate(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        raise AssertionError("the decorated form ran in the worker")

    return wrapper


@decorate
def decorated(value):
    return value * 2


def with_pool(count):
    """A worker process may have processes of its own."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(add, range(count))


def hang_on_three(number):
    if number == 3:
        time.sleep(600)
    return number
