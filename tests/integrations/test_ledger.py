"""What the toolkit opens is in the ledger and in `manager.status()` while it lives: connections, threads, commands."""

import errno
import gc
import os
import threading
import warnings

import pytest
import requests

from resilience import (
    BulkheadFullError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    OperationCancelled,
    ResourceType,
    RetryPolicy,
)
from resilience.integrations.psycopg2 import ResilientPool
from resilience.integrations.redis import resilient_redis
from resilience.integrations.requests import DeadlineAdapter, resilient_session
from resilience.integrations.subprocess import run
from resilience.testing import DeadPort, FaultServer, Gate, eventually
from resilience.workers.ledger import LEDGER

ONCE = RetryPolicy(max_retries=0)


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        made.register_retry_policy("ledger", ONCE)
        yield made


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


class Http:
    def __init__(self, manager, request):
        self.server = request.getfixturevalue("server")
        self.client = resilient_session(manager, operation="ledger")
        self.client.trust_env = False

    def use(self):
        assert self.client.get(f"{self.server.url}/ok").ok

    def use_another(self):
        assert self.client.get(f"http://localhost:{self.server.port}/ok").ok

    def fail(self, port):
        self.client.get(f"http://127.0.0.1:{port}/")

    def close(self):
        self.client.close()


class Redis:
    def __init__(self, manager, request):
        self.manager = manager
        self.client = resilient_redis(request.getfixturevalue("valkey_url"), manager, operation="ledger")

    def use(self):
        assert self.client.ping()

    def use_another(self):
        with self.client.client():
            self.client.ping()

    def fail(self, port):
        resilient_redis(f"redis://127.0.0.1:{port}/0", self.manager, operation="ledger").ping()

    def close(self):
        self.client.close()


class Postgres:
    def __init__(self, manager, request):
        self.manager = manager
        self.client = ResilientPool(request.getfixturevalue("postgres_dsn"), manager, 0, 3, operation="ledger")

    def use(self):
        with self.client.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def use_another(self):
        with self.client.lend(), self.client.lend():
            pass

    def fail(self, port):
        with ResilientPool(f"postgresql://postgres@127.0.0.1:{port}/x", self.manager, 0, 1, operation="ledger") as pool:
            pool.getconn()

    def close(self):
        self.client.close()


@pytest.fixture(params=[Http, Redis, Postgres], ids=lambda kind: kind.__name__.lower())
def driver(request, manager):
    made = request.param(manager, request)
    yield made
    made.close()


def registered(manager):
    told = manager.status()["resources"]["connection"]
    return told["total_created"], told["current_active"], told["total_cleaned"], told["leaks_detected"]


def alive(manager, kind="connection", owner="ledger"):
    return manager.status()["alive"].get(kind, {}).get(owner, 0)


def test_a_connection_is_counted_from_its_making_to_its_end_and_not_when_it_is_used(driver, manager):
    for _ in range(5):
        driver.use()
        assert (registered(manager), alive(manager)) == ((1, 1, 0, 0), 1)
    (handle,) = [handle for handle in manager.resources.active() if handle.type is ResourceType.CONNECTION]
    assert handle.resource_id.startswith("ledger ")
    assert "test_ledger.py" in handle.opened_at
    driver.close()
    assert (registered(manager), alive(manager)) == ((1, 0, 1, 0), 0)


def test_a_connection_that_cannot_be_made_is_not_open(driver, manager):
    with DeadPort() as port, pytest.raises(Exception, match=r"(?i)refused"):
        driver.fail(port.port)
    assert (registered(manager), alive(manager)) == ((1, 0, 1, 0), 0)


def test_a_connection_without_a_descriptor_for_its_second_handle_is_not_open(manager, server, monkeypatch):
    def refuse(file):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with resilient_session(manager, operation="ledger") as session:
        session.trust_env = False
        monkeypatch.setattr(os, "dup", refuse)
        with pytest.raises(requests.ConnectionError, match="Too many open files"):
            session.get(f"{server.url}/ok")
        monkeypatch.undo()
        assert (registered(manager), alive(manager)) == ((1, 0, 1, 0), 0)
        assert session.get(f"{server.url}/ok").ok


def test_a_limit_refuses_one_more_and_leaves_what_is_open_in_use(driver, manager):
    manager.resources.set_limit(ResourceType.CONNECTION, 1)
    driver.use()
    with pytest.raises(BulkheadFullError, match="1 of 1 are open"):
        driver.use_another()
    driver.use()
    assert registered(manager)[:2] == (1, 1)
    manager.resources.set_limit(ResourceType.CONNECTION, None)
    driver.use_another()


def test_the_books_being_closed_fails_no_call(driver, manager):
    manager.resources.shutdown()
    driver.use()
    assert (registered(manager)[0], alive(manager)) == (0, 1)


def test_a_client_that_is_dropped_is_collected_with_its_connections(driver, manager):
    driver.use()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        driver.client = None
        driver.close = lambda: None
        gc.collect()
    assert registered(manager)[1:3] == (0, 1)
    assert alive(manager) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_counts_its_own_connections_only(driver, manager):
    driver.use()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = registered(manager), alive(manager)
            driver.use()
            code = 0 if (before, registered(manager), alive(manager)) == (((0, 0, 0, 0), 0), (1, 1, 0, 0), 1) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    driver.use()
    assert (registered(manager), alive(manager)) == ((1, 1, 0, 0), 1)


def test_a_streamed_answer_that_is_dropped_unread_is_a_leak_with_its_line(manager, server, caplog):
    with resilient_session(manager, operation="ledger") as session:
        session.trust_env = False
        response = session.get(f"{server.url}/drip/5", stream=True)
        assert registered(manager)[:2] == (1, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del response
            gc.collect()
        assert (registered(manager), alive(manager)) == ((1, 0, 0, 1), 0)
    assert caplog.text.count("leak: connection 'ledger to 127.0.0.1") == 1
    assert "test_ledger.py" in caplog.text


def test_without_a_manager_the_ledger_knows_them(server):
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", DeadlineAdapter(30.0))
        assert session.get(f"{server.url}/ok").ok
        assert LEDGER.alive()["connection"]["requests"] == 1
    assert "requests" not in LEDGER.alive().get("connection", {})


def test_a_command_is_registered_while_it_runs(manager):
    seen = []

    def look():
        eventually(lambda: alive(manager, "child", "sleepy"))
        seen.append(manager.status()["resources"]["process"]["current_active"])
        context.cancel("seen")

    watcher = threading.Thread(target=look)
    with pytest.raises(OperationCancelled, match="seen"), manager.timeouts.operation("backfill") as context:
        watcher.start()
        run(["sleep", "60"], name="sleepy", manager=manager)
    watcher.join(60.0)
    assert seen == [1]
    told = manager.status()["resources"]["process"]
    assert (told["total_created"], told["current_active"], alive(manager, "child", "sleepy")) == (1, 0, 0)
    manager.resources.set_limit(ResourceType.PROCESS, 1)
    with manager.resources.register_resource("mine", ResourceType.PROCESS), pytest.raises(BulkheadFullError):
        run(["true"], manager=manager)


def test_an_abandoned_thread_is_counted_apart_until_it_ends(manager):
    gate = Gate()
    manager.register_timeout("ledger", 0.05)
    phase = "queued"
    while phase == "queued":  # on a busy machine it has not begun by then
        with pytest.raises(DeadlineExceeded) as caught:
            manager.execute_with_retry("ledger", gate)
        phase = caught.value.phase
    told = manager.status()
    thread = told["resources"]["thread"]
    assert (told["abandoned"], told["alive"].get("thread", {}).get("ledger", 0)) == ({"ledger": 1}, 0)
    assert (thread["current_active"], thread["abandoned"]) == (1, 1)
    gate.open()
    eventually(lambda: manager.status()["resources"]["thread"]["current_active"] == 0)
    assert manager.status()["abandoned"] == {}
    assert manager.status()["resources"]["thread"]["abandoned"] == 0


def test_the_threads_that_work_in_the_background_are_told(manager):
    manager.events.subscribe(lambda event: None, ["degraded"])
    manager.enable_degradation_mode()
    assert manager.status()["alive"]["thread"]["resilience-events"] >= 1
