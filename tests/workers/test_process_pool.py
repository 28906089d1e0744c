"""The books of a pool of worker processes: every place comes back, whatever comes in between. No process is started."""

import threading

import pytest

from resilience.core.clock import SYSTEM
from resilience.testing import ManualClock
from resilience.workers import process_pool
from resilience.workers.ledger import LEDGER
from resilience.workers.process_pool import ProcessPool, Turn
from resilience.workers.process_wait import Interrupter, Limit


class Worker:
    """In place of a `WorkerProcess`: nothing runs."""

    def __init__(self, method, settings):
        self.entry = LEDGER.enter("process", settings.name)
        self.pid = 0
        self.tasks = 0
        self.wants_to_leave = False
        self.ends = 0

    def end(self):
        self.ends += 1
        LEDGER.leave(self.entry)
        return True

    let_go = end


class Lock:
    """A lock that has `visit()` called, once, as soon as it is free and `when()` is true.

    Who comes for it while `interrupts` is true gets a Ctrl-C instead, once.
    """

    def __init__(self, when=bool, visit=None):
        self.lock = threading.Lock()
        self.when, self.visit = when, visit
        self.interrupts = False

    def __enter__(self):
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
        self.lock.acquire()

    def __exit__(self, *exc_info):
        self.lock.release()
        if self.visit is not None and self.when():
            visit, self.visit = self.visit, None
            visit()


class Clock(ManualClock):
    """A clock that has `visit()` called at each look at it after the first."""

    def __init__(self, visit):
        super().__init__()
        self.visit = visit
        self.looks = 0

    def monotonic(self):
        self.looks += 1
        if self.looks > 1:
            self.visit()
        return super().monotonic()


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(process_pool, "WorkerProcess", Worker)
    made = ProcessPool(
        "pool", 1, "forkserver",
        memory_limit=None, max_tasks=None, max_rss=None, idle=60.0, events=None, register=None,
    )  # fmt: skip
    yield made
    made.close(wait=False, drop_queued=True)


def take(pool, seconds=0.0, clock=SYSTEM, interrupter=None):
    turn = Turn()
    try:
        pool.take(turn, Limit(seconds, clock, None), interrupter or Interrupter(), None)
    except BaseException:
        pool.leave(turn)
        raise
    return turn


def test_a_worker_given_back_in_the_moment_of_the_shutdown_is_ended_once_and_its_place_comes_back_once(pool):
    turn = take(pool)
    worker = turn.worker
    pool._lock = Lock(lambda: pool.idle, lambda: pool.close(wait=False, drop_queued=False))
    pool.give_back(turn)
    assert pool.is_closed
    assert worker.ends == 1
    closing = threading.Thread(target=pool.close, args=(True, False), daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_a_worker_given_back_after_the_shutdown_is_ended(pool):
    turn = take(pool)
    worker = turn.worker
    pool.close(wait=False, drop_queued=False)
    pool.give_back(turn)
    assert worker.ends == 1
    assert (pool.idle, pool.held, pool._places) == ([], set(), 0)


@pytest.mark.parametrize("come_free", [ProcessPool.give_back, ProcessPool.lose], ids=["a worker", "a place"])
def test_what_a_queued_call_gets_in_the_moment_of_a_ctrl_c_is_there_for_the_next_one(pool, come_free):
    turn = take(pool)
    worker = turn.worker

    def grant_and_interrupt():
        come_free(pool, turn)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(pool, 10.0, Clock(grant_and_interrupt))
    assert (take(pool).worker is worker) == (come_free is ProcessPool.give_back)


def test_a_worker_is_given_back_and_ended_when_idle_though_no_thread_could_be_had_to_watch_it(pool, monkeypatch):
    class Watchdog:
        def __init__(self):
            self.errors, self.armed = [RuntimeError("can't start new thread")], []

        def arm(self, when, callback):
            if self.errors:
                raise self.errors.pop()
            self.armed.append(callback)

    monkeypatch.setattr(process_pool, "WATCHDOG", watchdog := Watchdog())
    turn = take(pool)
    worker = turn.worker
    pool.give_back(turn)
    assert pool.idle == [worker]
    pool.give_back(take(pool))
    assert len(watchdog.armed) == 1


def test_a_queued_call_that_a_ctrl_c_meets_at_its_deadline_gets_nothing_afterwards(pool):
    turn = take(pool)
    worker = turn.worker
    pool._lock = Lock()

    def end_and_interrupt():
        clock.visit = lambda: None
        clock.advance(10.0)
        pool._lock.interrupts = True  # on its way out of the queue

    clock = Clock(end_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        take(pool, 10.0, clock)
    pool.give_back(turn)
    assert take(pool).worker is worker


def test_a_call_that_a_ctrl_c_meets_on_its_way_into_the_queue_gets_nothing_afterwards(pool):
    class Interrupted(Interrupter):
        def aim(self, target):
            raise KeyboardInterrupt

    turn = take(pool)
    worker = turn.worker
    with pytest.raises(KeyboardInterrupt):
        take(pool, 10.0, interrupter=Interrupted())
    pool.give_back(turn)
    assert take(pool).worker is worker
