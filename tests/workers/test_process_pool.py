"""The books of a pool of worker processes: every place comes back, whatever comes in between. No process is started."""

import threading

import pytest

from resilience.core.clock import SYSTEM
from resilience.core.errors import DeadlineExceeded
from resilience.workers import process_pool
from resilience.workers.ledger import LEDGER
from resilience.workers.process_pool import ProcessPool
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
    """A lock that has `visit()` called, once, as soon as it is free and `when()` is true."""

    def __init__(self, when, visit):
        self.lock = threading.Lock()
        self.when, self.visit = when, visit

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *exc_info):
        self.lock.release()
        if self.visit is not None and self.when():
            visit, self.visit = self.visit, None
            visit()


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(process_pool, "WorkerProcess", Worker)
    made = ProcessPool(
        "pool", 1, "forkserver",
        memory_limit=None, max_tasks=None, max_rss=None, idle=60.0, events=None, register=None,
    )  # fmt: skip
    yield made
    made.close(wait=False, drop_queued=True)


def take(pool, seconds=0.0, clock=SYSTEM):
    return pool.take(Limit(seconds, clock, None), Interrupter(), None)


def test_a_worker_given_back_in_the_moment_of_the_shutdown_is_ended_once_and_its_place_comes_back_once(pool):
    worker = take(pool)
    pool._lock = Lock(lambda: pool.idle, lambda: pool.close(wait=False, drop_queued=False))
    pool.give_back(worker)
    assert pool.is_closed
    assert worker.ends == 1
    closing = threading.Thread(target=pool.close, args=(True, False), daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
