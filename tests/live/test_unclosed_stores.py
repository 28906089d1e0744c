"""Stores that nobody closes, and stores that nobody has opened by himself: what they hold goes when they do."""

import gc
import os
import tempfile
import threading
import time
import uuid
import warnings
import weakref

import psutil
import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    ErrorRecoveryManager,
    RateLimiter,
    StoreUnavailable,
    open_store,
)
from resilience.testing import eventually

PATIENCE = 30.0
OURS = ("resilience-store", "resilience-clerk", "resilience-account", "billing-1")


@pytest.fixture(params=["memory", "file", "redis", "postgres"])
def url(request, tmp_path):
    """A store of each kind."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "file":
        return f"file://{tmp_path}/state"
    return request.getfixturevalue("valkey_url" if request.param == "redis" else "postgres_dsn")


@pytest.fixture
def warned():
    """What was warned of since; no warning is kept together with its source."""
    gc.collect()
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *_: seen.append((category, str(message)))
        yield seen


def held():
    """Threads of stores, and open files, of this process."""
    threads = sorted(thread.name for thread in threading.enumerate() if thread.name in OURS)
    return threads, psutil.Process().num_fds()


def settles(before, gone=lambda: None):
    """Whether nothing more is held than `before`, and `gone` is, after a while."""
    end = time.monotonic() + PATIENCE
    while (now := held()) > before or now[1] > before[1] or gone() is not None:
        assert time.monotonic() < end, (before, now, gone())
        gc.collect()
        time.sleep(0.01)
    return True


@pytest.fixture
def before():
    """What is held when a test begins: nothing of the tests before it."""
    end = time.monotonic() + PATIENCE
    while held()[0]:
        assert time.monotonic() < end, held()
        gc.collect()
        time.sleep(0.01)
    return held()


def refused():
    raise ConnectionError("refused")


def count(old, now):
    return {"n": (old or {"n": 0})["n"] + 1}, None


def used(store):
    """A store after it has been changed, listened to, and shared by breakers and limiters."""
    name = uuid.uuid4().hex
    heard = threading.Event()
    store.subscribe(name, lambda key, data: heard.set())
    breaker = CircuitBreaker(name, CircuitBreakerConfig(failure_threshold=2), store=store)
    limiter = RateLimiter(name, 100, store=store)
    with pytest.raises(ConnectionError):
        breaker.call(refused)
    assert limiter.call(lambda: 1) == 1
    store.transact(name, count)
    assert heard.wait(PATIENCE)
    assert store.link.flush(PATIENCE)
    return store


def test_a_store_that_is_dropped_unclosed_is_collected_with_a_warning(url, before, warned):
    gone = weakref.ref(used(open_store(url)))
    assert settles(before, gone)
    told = [text for category, text in warned if category is ResourceWarning and "Store" in text]
    assert len(told) == (not url.startswith("memory")), told
    for text in told:
        assert text.startswith("unclosed <")
        assert "close()" in text


def test_one_that_nobody_listens_to_goes_at_once(url, before, warned):
    store = open_store(url)
    store.transact(uuid.uuid4().hex, count)
    del store
    assert held() <= before
    assert len(warned) == (not url.startswith("memory"))


def test_a_closed_or_unused_store_warns_of_nothing(url, before, warned):
    store = used(open_store(url))
    store.close()
    del store
    open_store(url)
    assert settles(before)
    assert warned == []


@pytest.mark.parametrize("url", ["file", "redis", "postgres"], indirect=True)
def test_without_a_thread_to_be_had_nothing_is_held_and_the_next_try_hears(url, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    heard = threading.Event()
    with open_store(url) as store:
        store.keys("nothing")
        open_files = held()[1]
        with monkeypatch.context() as short, pytest.raises(StoreUnavailable, match="can't start"):
            short.setattr(threading.Thread, "start", refuse)
            store.subscribe("", lambda key, data: heard.set())
        assert held()[1] <= open_files  # files of earlier tests may go meanwhile
        store.subscribe("", lambda key, data: heard.set())
        with open_store(url) as other:
            other.transact(uuid.uuid4().hex, count)
        assert heard.wait(PATIENCE)


def test_a_breaker_made_with_a_url_takes_its_store_with_it(url, before, warned):
    breaker = CircuitBreaker("mine", store=url)
    assert breaker.call(lambda: 1) == 1
    gone = weakref.ref(breaker.store)
    assert breaker.store is CircuitBreaker("other", store=url).store
    del breaker
    assert settles(before, gone)
    assert warned == []


def test_the_last_manager_on_a_url_closes_its_store(url, before):
    first, second = ErrorRecoveryManager(store=url), ErrorRecoveryManager(store=url)
    name = uuid.uuid4().hex
    mine, theirs = first.circuit_breaker(name), second.circuit_breaker(name)
    assert mine.call(lambda: 1) == theirs.call(lambda: 1) == 1
    store = mine.store
    assert store is theirs.store
    first.close()
    first.close()
    assert not store.closed
    mine.force_open("by hand")
    eventually(lambda: str(theirs.state) == "forced_open")
    second.close()
    assert store.closed
    assert settles(before)


def test_a_breaker_goes_on_by_itself_when_its_manager_is_closed(url):
    config = CircuitBreakerConfig(failure_threshold=2, timeout=600.0)
    with ErrorRecoveryManager(store=url) as manager:
        used_before = manager.circuit_breaker(uuid.uuid4().hex, config)
        assert used_before.call(lambda: 1) == 1
        first_used_after = manager.circuit_breaker(uuid.uuid4().hex, config)
        limiter = RateLimiter("late", 1000, store=url)
        del limiter
    gc.collect()
    assert used_before.store.closed
    threads = threading.active_count()
    began = time.monotonic()
    for breaker in (used_before, first_used_after):
        assert breaker.call(lambda: 1) == 1
        for _ in range(2):
            with pytest.raises(ConnectionError):
                breaker.call(refused)
        assert str(breaker.state) == "open"
        breaker.reset()
        assert breaker.call(lambda: 2) == 2
    assert time.monotonic() - began < 5.0
    assert threading.active_count() <= threads + 1


def test_a_store_given_by_a_url_stays_while_a_breaker_of_its_own_uses_it(url):
    breaker = CircuitBreaker("stays", store=url)
    with ErrorRecoveryManager(store=url) as manager:
        assert manager.circuit_breaker("goes").store is breaker.store
    assert not breaker.store.closed
    assert breaker.call(lambda: 1) == 1
    with ErrorRecoveryManager(store=url) as manager:
        assert manager.circuit_breaker("again").store is breaker.store
        store = breaker.store
        gone = weakref.ref(breaker)
        del breaker
        eventually(lambda: gc.collect() >= 0 and gone() is None)
    assert store.closed


def test_a_manager_leaves_a_store_of_its_user_open(url):
    with open_store(url) as store:
        with ErrorRecoveryManager(store=store) as manager:
            assert manager.circuit_breaker("a").call(lambda: 1) == 1
        assert not store.closed
        assert store.keys("nothing") == []


@pytest.fixture
def quick_folder(tmp_path):
    """In memory where there is such a place: closing a file waits for a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


def cycle(url):
    with ErrorRecoveryManager(store=url) as manager:
        breaker = manager.circuit_breaker("billing", CircuitBreakerConfig(failure_threshold=10**6))
        with pytest.raises(ConnectionError):
            breaker.call(refused)
        assert manager.execute_with_retry("billing", lambda: "paid") == "paid"


@pytest.mark.slow
def test_a_thousand_managers_on_a_file_leave_threads_and_files_as_they_were(quick_folder, before):
    url = f"file://{quick_folder}/state"
    cycle(url)
    most = 0
    gc.disable()  # nothing waits for the collector
    try:
        for _ in range(1_000):
            cycle(url)
            most = max(most, held()[1] - before[1])
    finally:
        gc.enable()
    print(f"at most {most} more open files in between")
    assert most < 500
    assert settles(before)
