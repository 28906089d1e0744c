"""What a manager leaves in its store, and what the report makes of it."""

import os
import threading
import weakref

import pytest
from resilience_cli.report.figures import Figures

from resilience import ErrorRecoveryManager, RetryPolicy, open_store
from resilience.core.errors import StoreUnavailable
from resilience.monitoring.accounts import KEPT, PREFIX
from resilience.stores.memory import MemoryStore


@pytest.fixture
def store():
    with MemoryStore() as made:
        yield made


def down():
    raise ConnectionError("down")


def calls(manager, good, bad):
    manager.register_retry_policy("op", RetryPolicy(max_retries=2, base_delay=0.0))
    for _ in range(good):
        manager.execute_with_retry("op", int)
    for _ in range(bad):
        with pytest.raises(ConnectionError):
            manager.execute_with_retry("op", down)


def the_account(store):
    (key,) = store.keys(PREFIX)
    return store.read(key)


def test_a_closed_manager_has_left_exactly_what_it_did(store):
    with ErrorRecoveryManager(store=store) as manager:
        calls(manager, 30, 20)
    account = the_account(store)
    assert account["ended"] is True
    figures = account["operations"]["op"]
    assert (figures["calls"], figures["successes"], figures["failures"], figures["retries"]) == (50, 30, 20, 40)
    assert sum(figures["durations"].values()) == 50
    assert account["errors"]["errors"] == 20
    assert [(alert["rule"], alert["firing"]) for alert in account["alerts"]] == [("retry_rate", True)]


def test_a_running_manager_writes_without_being_asked(store):
    written = threading.Event()
    store.subscribe(PREFIX, lambda key, data: written.set())
    with ErrorRecoveryManager(store=store):
        assert written.wait(60)
        assert the_account(store)["ended"] is False


def test_nothing_is_written_after_the_last_word(store):
    with ErrorRecoveryManager(store=store) as manager:
        pass
    assert manager._account.write(manager) is True
    assert the_account(store)["ended"] is True


def test_an_alert_that_has_cleared_is_still_told(store):
    with ErrorRecoveryManager(store=store) as manager:
        calls(manager, 0, 25)
        manager._account.write(manager)
        for _ in range(100):
            manager.execute_with_retry("op", int)
    assert [(alert["rule"], alert["firing"]) for alert in the_account(store)["alerts"]] == [("retry_rate", False)]


def test_accounts_of_several_managers_add_up(store):
    for _ in range(3):
        with ErrorRecoveryManager(store=store) as manager:
            calls(manager, 10, 5)
    figures = Figures()
    for key in store.keys(PREFIX):
        figures.add_account(key, store.read(key))
    told = figures.as_dict()
    op = told["operations"]["op"]
    assert (op["calls"], op["successes"], op["failures"], op["retries"]) == (45, 30, 15, 30)
    assert 0 < op["p50"] <= op["p99"]
    assert told["errors"]["errors"] == 15
    assert told["errors"]["total"] == 45
    (group,) = told["errors"]["groups"]
    assert (group["type"], group["count"]) == ("ConnectionError", 15)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_parent_did_before_a_fork_is_told_once(tmp_path):
    url = f"file://{tmp_path}/state"
    with ErrorRecoveryManager(store=url) as manager:
        calls(manager, 10, 5)
        child = os.fork()
        if child == 0:
            try:
                calls(manager, 2, 1)
                with pytest.raises(ZeroDivisionError):
                    manager.execute_with_retry("other", lambda: 1 / 0)
                manager.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    figures = Figures()
    with open_store(url) as store:
        for key in store.keys(PREFIX):
            figures.add_account(key, store.read(key))
    told = figures.as_dict()
    op = told["operations"]["op"]
    assert (op["calls"], op["successes"], op["failures"], op["retries"]) == (18, 12, 6, 12)
    assert told["operations"]["other"]["calls"] == 1
    assert (told["errors"]["errors"], told["errors"]["total"]) == (7, 19)
    assert {group["type"]: group["count"] for group in told["errors"]["groups"]} == {
        "ConnectionError": 6, "ZeroDivisionError": 1,
    }  # fmt: skip


def test_without_a_thread_to_be_had_a_manager_writes_its_account_at_the_end(store, monkeypatch, caplog):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        manager = ErrorRecoveryManager(store=store)
    assert "no account of this process until its end" in caplog.text
    manager.close()
    assert the_account(store)["ended"] is True


class Away(MemoryStore):
    def transact(self, key, change, *, within=2.0):
        raise StoreUnavailable("away")

    def keys(self, prefix=""):
        raise StoreUnavailable("away")


class Hanging(MemoryStore):
    def __init__(self):
        super().__init__()
        self.release = threading.Event()

    def transact(self, key, change, *, within=2.0):
        self.release.wait()


def test_a_store_that_is_away_changes_nothing_for_the_manager():
    with ErrorRecoveryManager(store=Away()) as manager:
        assert manager._account.write(manager) is False
        assert manager.execute_with_retry("op", int) == 0


def test_a_store_that_hangs_delays_neither_calls_nor_for_long_the_end():
    store = Hanging()
    ended = threading.Event()

    def use():
        with ErrorRecoveryManager(store=store) as manager:
            assert manager.execute_with_retry("op", int) == 0
        ended.set()

    threading.Thread(target=use, daemon=True).start()
    assert ended.wait(60)
    store.release.set()


def test_a_forgotten_manager_is_not_kept_alive_by_its_account(store):
    manager = ErrorRecoveryManager(store=store)
    reference = weakref.ref(manager)
    manager.close()
    del manager
    for _ in range(1000):
        if reference() is None:
            return
        threading.Event().wait(0.01)
    raise AssertionError("it is kept alive")


def test_the_oldest_accounts_make_room(store):
    for number in range(KEPT + 20):
        store.transact(f"{PREFIX}{9_000_000_000 + number:011d}-host-1-1", lambda _, now: ({"version": 1}, None))
    store.transact(f"{PREFIX}00000000001-host-1-1", lambda _, now: ({"version": 1}, None))
    with ErrorRecoveryManager(store=store) as manager:
        manager._account._make_room()
        assert len(store.keys(PREFIX)) <= KEPT + 1
        assert f"{PREFIX}00000000001-host-1-1" not in store.keys(PREFIX)
