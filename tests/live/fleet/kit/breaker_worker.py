"""A process with a breaker on a shared store, its wall clock maybe off."""

import ctypes
import logging
import os
import threading
import time

from serving import losses, serve, told, when
from stalls import Stalls

skew = told.pop("skew", 0.0)
if skew:  # before anything of the toolkit has looked at the clock
    wall, wall_ns = time.time, time.time_ns
    time.time = lambda: wall() + skew
    time.time_ns = lambda: wall_ns() + int(skew * 1e9)

if os.geteuid() == 0:  # the modes of files hold for us too: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, sets)
    sets[0] &= ~0b110
    libc.capset(header, sets)

from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, EventStream, open_store  # noqa: E402

store = open_store(told.pop("url"))
name = told.pop("name")
changes = []  # of states, as events tell them
events = EventStream()
events.subscribe(lambda event: changes.append(f"{event.old} {event.new}"), ("breaker_state_changed",))
breaker = CircuitBreaker(name, CircuitBreakerConfig(**told), store=store, events=events)
canary = CircuitBreaker(name + "-canary", CircuitBreakerConfig(failure_threshold=2, timeout=600.0), store=store)
warnings = []  # about the store
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("resilience.store").addHandler(handler)
logging.getLogger("resilience.breaker").addHandler(logging.StreamHandler())  # openings, on standard error
permits = []
runs = []  # of what fails
threads = []
halt = threading.Event()


def failing():
    runs.append(1)
    raise ConnectionError("refused")


def call(fn, through=breaker):
    try:
        return through.call(fn)
    except CircuitOpenError:
        return "refused"
    except ConnectionError:
        return "failed"


def fail(times):
    """How many of so many calls that take a moment failed."""
    return sum(call(lambda: time.sleep(0.0003) or failing()) == "failed" for _ in range(times))


def told_changes():
    events.flush(10.0)
    return changes


def take(count):
    """How many of so many permits were given; they are kept."""
    taken = 0
    for _ in range(count):
        try:
            permits.append(breaker.acquire())
            taken += 1
        except CircuitOpenError:
            pass
    return taken


def start(count, work, *arguments):
    """So many threads that repeat a piece of work until `stop()`."""

    def repeat(number):
        while not halt.is_set():
            work(number, *arguments)

    new = [threading.Thread(target=repeat, args=(number,)) for number in range(count)]
    threads.extend(new)
    for thread in new:
        thread.start()


def stop():
    halt.set()
    while threads:
        threads.pop().join()
    halt.clear()


turns = []  # what was seen, whenever that changed, and since when


def watch(number, look):
    seen = look()
    if not turns or turns[-1][1] != seen:
        turns.append([time.monotonic(), seen])
    halt.wait(0.002)


class Visits:
    """Calls of a dependency that is down while a file is there; a referee's log has the start and end of each."""

    def __init__(self, log, down, hold):
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.down = down
        self.hold = hold

    def note(self, what):
        os.write(self.log, f"{time.monotonic_ns()} {os.getpid()} {what}\n".encode())

    def visit(self):
        began = time.monotonic()  # before it is noted, which is when it may be stopped
        self.note("begun")
        time.sleep(self.hold)
        was_stopped = time.monotonic() - began > self.hold + 5.0  # then it comes back with good news
        is_down = os.path.exists(self.down) and not was_stopped
        self.note("failed" if is_down else "done")
        if is_down:
            failing()

    def __call__(self, number):
        if call(self.visit) == "refused":
            halt.wait(0.05)


class Load:
    """Calls at a steady pace, each fiftieth of which fails by itself; what came of them."""

    def __init__(self, pace):
        self.pace = pace  # calls a second of one thread
        self.due = {}
        self.calls = 0
        self.begin()

    def begin(self):
        self.slow, self.slowest, self.wrong = 0, 0.0, []
        stalls.longest = 0.0
        warnings.clear()

    def told(self):
        seen = {"slow": self.slow, "slowest": self.slowest, "stalled": stalls.longest}
        return {**seen, "wrong": self.wrong, "warnings": len(warnings)}

    def __call__(self, number):
        due = self.due.setdefault(number, time.monotonic() + number / self.pace / 10)
        halt.wait(max(0.0, due - time.monotonic()))
        self.due[number] = due + 1 / self.pace
        fn, right = (failing, "failed") if int(due * self.pace) % 50 == number else (int, 0)
        began = time.monotonic()
        try:
            answer = call(fn)
        except Exception as error:
            answer = repr(error)
        took = time.monotonic() - began
        self.calls += 1  # one statement: exact enough with a GIL
        self.slowest = max(self.slowest, took)
        self.slow += took > 0.05
        if answer != right:
            self.wrong.append(answer)


stalls = Stalls()
load = Load(50)
str(breaker.state)  # it looks at its store from now on
lost = losses(store.link)
when(lambda: store.link.state == "ready" and store.link.clerk.epoch is not None)
serve(globals())
