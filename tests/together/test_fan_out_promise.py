"""One promise of fan-out, whatever happens to the dependency, the threads and the pools.

One outcome per item, in input order; no item runs again after its success; it falls back when half of the attempts
fail; the whole job within its deadline.
"""

import concurrent.futures
import itertools
import multiprocessing
import random
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from resilience import DeadlineExceeded, ErrorRecoveryManager, RetryPolicy, fan_out, fan_out_iter
from resilience.testing import Gate

COUNT = 1_000
DIES = "__import__('os')._exit(7)"


class Ledger:
    """Writes down every attempt: what began and what succeeded, in order."""

    def __init__(self, failing, always):
        self.failing, self.always = frozenset(failing), always
        self.lock = threading.Lock()
        self.begun, self.done, self.repeated = {}, set(), []

    def __call__(self, item):
        with self.lock:
            self.begun[item] = self.begun.get(item, 0) + 1
            if item in self.done:
                self.repeated.append(item)
            turn = self.begun[item]
        if item in self.failing and (self.always or turn == 1):
            raise ConnectionError("down")
        with self.lock:
            self.done.add(item)
        return -item


def check(items, ledger):
    assert [item.index for item in items] == list(range(COUNT))
    assert [item.item for item in items] == list(range(COUNT))
    assert all(item.value == -item.item for item in items if item.ok)
    assert {item.index for item in items if item.ok} == ledger.done
    assert ledger.repeated == []
    assert all(item.attempts == ledger.begun[item.item] <= 2 for item in items)


@pytest.mark.parametrize("streamed", [False, True], ids=["gathered", "streamed"])
@pytest.mark.parametrize("always", [True, False], ids=["for good", "once"])
@pytest.mark.parametrize("share", [0, 49, 50, 100])
@pytest.mark.parametrize("order", ["evenly", "at random"])
def test_1_000_items(share, always, streamed, order):
    failing = [item for item in range(COUNT) if item * share // 100 != (item + 1) * share // 100]
    if order == "at random":
        failing = random.Random(share).sample(range(COUNT), share * COUNT // 100)
    assert len(failing) == share * COUNT // 100
    ledger = Ledger(failing, always)
    if streamed:
        items, degraded = list(fan_out_iter(ledger, range(COUNT), max_workers=8, deadline=100.0)), None
    else:
        result = fan_out(ledger, range(COUNT), max_workers=8, deadline=100.0)
        items, degraded = list(result.items), result.degraded
    check(items, ledger)
    if share == 0:
        assert degraded is None
    if share >= 50:
        assert streamed or "of the last attempts failed" in degraded
        assert "sequential" in {item.mode for item in items}
    assert all(item.error is None or item.item in failing for item in items)
    if always:
        assert {item.index for item in items if not item.ok} == set(failing)


@pytest.mark.parametrize("allowed", [0, 1, 5])
def test_1_000_items_when_threads_cannot_start(allowed, monkeypatch):
    start, started, refused = threading.Thread.start, itertools.count(), threading.Event()

    def limited(thread):
        if thread.name.startswith("fan_out-") and next(started) >= allowed:
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    ledger = Ledger(range(0, COUNT, 10), always=False)
    gate = Gate()
    opener = threading.Thread(target=lambda: (refused.wait(30), gate.open()))
    opener.start()

    def work(item):
        if item < allowed:  # none of those that run becomes idle before one was refused
            gate(item)
        return ledger(item)

    result = fan_out(work, range(COUNT), max_workers=8, deadline=100.0)
    opener.join()
    check(list(result.items), ledger)
    assert result.degraded is not None


@pytest.mark.parametrize("given", ["pool", "factory"])
def test_1_000_items_when_the_pool_of_threads_dies_in_the_middle(given):
    pools = []

    def make():
        pools.append(ThreadPoolExecutor(8))
        return pools[-1]

    ledger = Ledger(range(0, COUNT, 20), always=True)

    def work(item):
        if item == 300:
            pools[0].shutdown(wait=False, cancel_futures=True)
        return ledger(item)

    result = fan_out(work, range(COUNT), executor=make() if given == "pool" else make, deadline=100.0)
    check(list(result.items), ledger)
    assert result.degraded == "the executor broke (RuntimeError)"
    assert len(pools) == (1 if given == "pool" else 2)
    for pool in pools:
        pool.shutdown()


def processes(count):
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("forkserver"))


@pytest.mark.parametrize("given", ["pool", "factory"])
def test_1_000_items_of_which_three_end_the_process_they_run_in(given):
    """`eval` is a function that any process knows; an item that breaks a pool never runs in this one."""
    deadly = {100, 101, 700}
    items = [DIES if number in deadly else f"{number} + 1" for number in range(COUNT)]
    if given == "pool":
        with processes(4) as pool:
            result = fan_out(eval, items, executor=pool, deadline=100.0)
    else:
        result = fan_out(eval, items, executor=lambda: processes(4), deadline=100.0)
    failed = {item.index: item.error for item in result.items if not item.ok}
    assert set(failed) == deadly
    assert all(isinstance(error, concurrent.futures.BrokenExecutor) for error in failed.values())
    assert [item.value for item in result.items if item.ok] == [n + 1 for n in range(COUNT) if n not in deadly]
    assert result.degraded == "the executor broke (BrokenProcessPool)"


def test_every_item_ends_the_process_it_runs_in():
    with processes(2) as pool:
        result = fan_out(eval, [DIES] * 6, executor=pool, deadline=100.0)
    assert all(isinstance(item.error, concurrent.futures.BrokenExecutor) for item in result.items)
    assert len(result.items) == 6


def test_errors_and_unpicklable_items_of_processes_are_the_items_own():
    with processes(2) as pool:
        result = fan_out(eval, ["1", "1 / 0", compile("1", "<item>", "eval"), "4"], executor=pool, deadline=100.0)
    kinds = [type(item.error).__name__ for item in result.items]
    assert kinds == ["NoneType", "ZeroDivisionError", "TypeError", "NoneType"]
    assert result.values == [1, 4]


@pytest.mark.parametrize("share", [0, 49, 50, 100])
def test_1_000_items_of_a_named_operation_with_retries_within_a_deadline(share):
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("probe", RetryPolicy(max_retries=1, base_delay=0.0, jitter=False))
        manager.register_timeout("probe", None)
        failing = {item for item in range(COUNT) if item * share // 100 != (item + 1) * share // 100}
        ledger = Ledger(failing, always=True)
        result = fan_out(ledger, range(COUNT), operation="probe", manager=manager, max_workers=8, deadline=100.0)
    assert {item.index for item in result.items if not item.ok} == failing
    assert ledger.repeated == []
    assert all(item.attempts == ledger.begun[item.item] for item in result.items)
    assert all(item.attempts in (2, 4) for item in result.items if not item.ok)
    assert (result.degraded is not None) == (share > 0), "49 % of the items are two thirds of the attempts"


@pytest.mark.parametrize("hung", [1, 8], ids=["one hangs", "all hang"])
def test_1_000_items_of_which_some_hang_end_with_the_deadline(hung):
    gate, ledger = Gate(), Ledger(range(0, COUNT, 4), always=True)

    def work(item):
        return gate(item) if item < hung else ledger(item)

    begun = time.monotonic()
    result = fan_out(work, iter(range(COUNT)), max_workers=8, deadline=1.0)
    assert time.monotonic() - begun < 10
    gate.open()
    assert [item.index for item in result.items] == list(range(COUNT))
    late = [item for item in result.items if isinstance(item.error, DeadlineExceeded)]
    running = [item for item in late if item.error.phase == "running"]
    assert {item.index for item in running} == set(range(hung))
    assert ledger.repeated == []
