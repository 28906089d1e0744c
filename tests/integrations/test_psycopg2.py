"""A pool under a manager, against a real PostgreSQL behind a network that misbehaves."""

import gc
import itertools
import os
import sys
import threading
from urllib.parse import urlsplit

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import errors, extensions, sql

from resilience import (
    CircuitBreakerConfig,
    CircuitOpenError,
    ConfigError,
    DeadlineExceeded,
    ErrorRecoveryManager,
    OutcomeUnknown,
    RetryPolicy,
    classify,
    deadline,
    history,
)
from resilience.core.clock import SYSTEM
from resilience.integrations.psycopg2 import (
    FailedTransaction,
    PoolExhausted,
    ResilientPool,
    connecting,
    run_transaction,
)
from resilience.integrations.psycopg2 import pool as pool_module
from resilience.testing import BlackHole, DeadPort, FaultProxy

QUICK = RetryPolicy(max_retries=5, base_delay=0.001, max_delay=0.005)
SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE query LIKE '%pg_sleep(%' AND state = 'active' AND pid <> pg_backend_pid()"
)


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        made.register_retry_policy("database_operation", QUICK)
        made.register_circuit_breaker("database_operation", CircuitBreakerConfig(failure_threshold=50))
        yield made


@pytest.fixture
def proxy(postgres_dsn):
    parts = urlsplit(postgres_dsn)
    with FaultProxy(parts.hostname, parts.port) as running:
        yield running


@pytest.fixture
def pool(proxy, manager):
    with ResilientPool(f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres", manager, 0, 3) as made:
        yield made


@pytest.fixture
def direct(postgres_dsn):
    connection = psycopg2.connect(postgres_dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS drivers; CREATE TABLE drivers (id serial PRIMARY KEY, n int)")
        yield cursor
        cursor.execute("DROP TABLE drivers")
    connection.close()


def one(cursor, query, *values):
    cursor.execute(query, values or None)
    row = cursor.fetchone()
    return row[0] if len(row) == 1 else row


def read(connection):
    with connection.cursor() as cursor:
        return one(cursor, "SELECT 41 + 1")


def calls(manager):
    return manager.monitor.operations()["database_operation"]


def test_a_transaction_is_committed_and_its_value_given(pool, direct, manager):
    def add(connection):
        with connection.cursor() as cursor:
            return one(cursor, "INSERT INTO drivers (n) VALUES (%s) RETURNING n", 7)

    assert run_transaction(pool, add) == 7
    assert one(direct, "SELECT n FROM drivers") == 7
    assert calls(manager)["successes"] == 1


def test_a_transaction_whose_function_raises_is_rolled_back(pool, direct):
    def fail(connection):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO drivers (n) VALUES (1)")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_transaction(pool, fail)
    assert one(direct, "SELECT count(*) FROM drivers") == 0
    assert pool.stats()["held"] == 0


def test_a_block_commits_or_rolls_back(pool, direct):
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO drivers (n) VALUES (1)")
    with pytest.raises(ZeroDivisionError), pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO drivers (n) VALUES (2)")
        _ = 1 / 0
    assert one(direct, "SELECT array_agg(n) FROM drivers") == [1]


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_living_server_ends_the_statement_and_the_connection_is_kept(pool, direct, autocommit):
    connection = pool.getconn()
    connection.autocommit = autocommit
    pid = connection.info.backend_pid
    begun = SYSTEM.monotonic()
    with connection.cursor() as cursor, pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
        cursor.execute("SELECT pg_sleep(60)")
    assert SYSTEM.monotonic() - begun < 2.0
    assert (caught.value.ambient, classify(caught.value).outcome) == (True, "answered")
    connection.rollback()
    with connection.cursor() as cursor:
        assert one(cursor, "SELECT pg_backend_pid()") == pid
        assert one(cursor, "SHOW statement_timeout") in ("0", "5s")
    pool.putconn(connection)
    assert one(direct, SLEEPING) == 0


def test_the_server_ends_a_statement_after_a_begin_in_autocommit(pool, direct):
    with pool.lend() as connection:
        connection.autocommit = True
        with deadline(0.3), connection.cursor() as cursor:
            cursor.execute("BEGIN")
            with pytest.raises(DeadlineExceeded) as caught:
                cursor.execute("SELECT pg_sleep(60)")
        assert caught.value.outcome == "answered"
        assert not connection.closed
    assert one(direct, SLEEPING) == 0


def test_an_error_after_a_begin_in_autocommit_is_the_servers_own(pool):
    with pool.lend() as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            with pytest.raises(errors.SyntaxError):
                cursor.execute("CREATE TABEL drivers")


@pytest.mark.parametrize("end", ["ROLLBACK TO SAVEPOINT early", "ROLLBACK AND CHAIN"])
def test_what_takes_the_timeout_back_does_not_leave_the_server_without(pool, direct, end):
    with pool.lend() as connection, connection.cursor() as cursor:
        cursor.execute("SAVEPOINT early")
        with deadline(0.3):
            cursor.execute(end)
            with pytest.raises(DeadlineExceeded) as caught:
                cursor.execute("SELECT pg_sleep(60)")
        assert caught.value.outcome == "answered"
        assert not connection.closed
    assert one(direct, SLEEPING) == 0


def test_the_timeout_of_a_statement_does_not_stay_on_the_session(pool):
    connection = pool.getconn()
    with deadline(0.3), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.commit()
    with extensions.cursor(connection) as plain:
        plain.execute("SHOW statement_timeout")
        assert plain.fetchone() == ("0",)
    connection.rollback()
    connection.autocommit = True
    with deadline(5.0), connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE once (n int)")
        cursor.execute("SELECT 1")
    with extensions.cursor(connection) as plain:
        plain.execute("SHOW statement_timeout")
        assert plain.fetchone() == ("0",)
    pool.putconn(connection)


def test_a_dead_network_ends_the_statement_by_the_grace_and_the_connection_is_replaced(pool, proxy, direct):
    with pool.lend() as connection:
        assert read(connection) == 42
        connection.commit()
        proxy.black_hole = True
        begun = SYSTEM.monotonic()
        with connection.cursor() as cursor, pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
            cursor.execute("SELECT 1")
        assert SYSTEM.monotonic() - begun < 2.0
        assert classify(caught.value).outcome == "unknown"
        assert connection.closed
    proxy.black_hole = False
    assert run_transaction(pool, read) == 42


@pytest.mark.parametrize("what", ["a named cursor", "the session"])
def test_a_dead_network_ends_the_end_of_a_cursor_and_of_a_session(pool, proxy, what):
    with deadline(0.3), pool.lend() as connection:
        cursor = connection.cursor("served")
        cursor.execute("SELECT generate_series(1, 5000)")
        cursor.fetchone()
        proxy.black_hole = True
        lifted = threading.Timer(8.0, setattr, (proxy, "black_hole", False))  # rather than to hang
        lifted.start()
        begun = SYSTEM.monotonic()
        with pytest.raises(DeadlineExceeded):
            cursor.close() if what == "a named cursor" else connection.reset()
        assert SYSTEM.monotonic() - begun < 5.0
        assert connection.closed
    lifted.cancel()
    proxy.black_hole = False
    with pool.connection() as connection:
        assert read(connection) == 42


def test_the_operations_timeout_bounds_an_attempt_and_blames_the_server(pool, proxy, manager):
    manager.register_timeout("database_operation", 0.1)
    manager.register_retry_policy("database_operation", RetryPolicy(max_retries=1, base_delay=0.001))

    def sleep(connection):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")

    with pytest.raises(DeadlineExceeded) as caught:
        run_transaction(pool, sleep)
    assert not caught.value.ambient
    assert len(history(caught.value)) == 2
    assert manager.circuit_breaker("database_operation").stats.failures == 2
    assert calls(manager)["timeouts"] == 1


@pytest.mark.parametrize("place", [BlackHole, DeadPort])
def test_connecting_ends_at_the_deadline_with_nothing_sent(manager, place):
    with place() as dead, ResilientPool(f"host=127.0.0.1 port={dead.port} user=nobody", manager) as pool:
        begun = SYSTEM.monotonic()
        with pytest.raises((DeadlineExceeded, psycopg2.OperationalError)) as caught, deadline(0.3):
            run_transaction(pool, read)
        assert SYSTEM.monotonic() - begun < 2.0
        assert classify(caught.value).outcome == "not_sent"
        assert pool.stats()["opening"] == 0


def test_cursors_of_every_kind_obey(pool, direct):
    direct.execute("INSERT INTO drivers (n) SELECT generate_series(1, 500)")
    with deadline(20.0), pool.connection() as connection:
        with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute("SELECT n FROM drivers WHERE n = %(n)s", {"n": 5})
            assert cursor.fetchone() == {"n": 5}
        with connection.cursor("served", cursor_factory=psycopg2.extras.DictCursor) as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT n FROM drivers ORDER BY n")
            assert cursor.fetchone()["n"] == 1
            assert [row["n"] for row in cursor.fetchmany(2)] == [2, 3]
            assert len(list(cursor)) == 497
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT {} , '100%'").format(sql.Literal("it's")))
            assert cursor.fetchone() == ("it's", "100%")
            cursor.execute("SELECT %s || '%%'", ("a",))
            assert cursor.fetchone() == ("a%",)
            cursor.execute(b"SELECT 1")
            assert cursor.fetchone() == (1,)
            cursor.executemany("INSERT INTO drivers (n) VALUES (%s)", [(1001,), (1002,)])
            psycopg2.extras.execute_values(cursor, "INSERT INTO drivers (n) VALUES %s", [(1003,), (1004,)])
            assert one(cursor, "SELECT count(*) FROM drivers WHERE n > 1000") == 4
            cursor.callproc("abs", (-3,))
            assert cursor.fetchone() == (3,)
    with deadline(0.2), pool.lend() as connection, connection.cursor("served") as cursor:
        with pytest.raises(DeadlineExceeded):
            cursor.execute("SELECT pg_sleep(30)")
            cursor.fetchone()
    assert one(direct, SLEEPING) == 0


def test_statements_that_refuse_company_get_their_timeout_in_trips_of_their_own(pool, direct):
    connection = pool.getconn()
    connection.autocommit = True
    with deadline(20.0), connection.cursor() as cursor:
        cursor.execute("VACUUM drivers")
        cursor.execute("DO $$ BEGIN PERFORM 1; COMMIT; END $$")
        with pytest.raises(DeadlineExceeded), deadline(0.2):
            cursor.execute("DO $$ BEGIN PERFORM pg_sleep(60); END $$")
        assert one(cursor, "SELECT 1") == 1
    pool.putconn(connection)


def test_a_copy_ends_at_the_deadline(pool, direct, tmp_path):
    direct.execute("INSERT INTO drivers (n) SELECT generate_series(1, 10)")
    with pool.connection() as connection, connection.cursor() as cursor, (tmp_path / "rows").open("w+") as file:
        with deadline(10.0):
            cursor.copy_expert("COPY drivers (n) TO STDOUT", file)
        assert file.tell() == 21
    with pool.lend() as connection, connection.cursor() as cursor, (tmp_path / "rows").open("w+") as file:
        with deadline(0.2), pytest.raises(DeadlineExceeded):
            cursor.copy_expert("COPY (SELECT pg_sleep(60)) TO STDOUT", file)


def test_an_exhausted_pool_waits_and_then_names_the_holders(pool):
    held = [pool.getconn() for _ in range(3)]
    begun = SYSTEM.monotonic()
    with pytest.raises(PoolExhausted) as caught, deadline(0.2):
        pool.getconn()
    assert 0.15 < SYSTEM.monotonic() - begun < 2.0
    assert len(caught.value.holders) == 3
    assert "test_psycopg2.py:" in str(caught.value)
    assert "MainThread" in str(caught.value)
    assert caught.value.phase == "queued"
    back = threading.Timer(0.2, lambda: pool.putconn(held.pop()))
    back.start()
    with deadline(10.0):
        held.append(pool.getconn())
    back.join()
    for connection in held:
        pool.putconn(connection)


def interrupted(run, number):
    """Runs it with a Ctrl-C before the line `number` of the pool's code; False when it has fewer."""
    lines = iter(range(number + 1))

    def look(frame, event, _):
        if frame.f_code.co_filename != pool_module.__file__:
            return None
        if event == "line" and next(lines, None) == number:
            raise KeyboardInterrupt
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("idle", [False, True])
def test_a_ctrl_c_at_any_line_of_taking_a_connection_leaves_its_place_free(pool, idle):
    pool._probe_after = 0.0
    taken = []
    for number in itertools.count():
        if idle:
            with pool.lend() as connection:
                read(connection)
        if not interrupted(lambda: taken.append(pool.getconn()), number):
            break
        stats = pool.stats()
        assert (stats["held"], stats["opening"]) == (0, 0), f"line {number}"
        pool.close()
        pool._closed = False
    assert number > 10
    pool.putconn(*taken)


def test_a_ctrl_c_in_the_rollback_of_a_connection_given_back_leaves_its_place_free(pool, monkeypatch):
    connection = pool.getconn()
    read(connection)

    def rollback():
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "rollback", rollback)
    with pytest.raises(KeyboardInterrupt):
        pool.putconn(connection)
    stats = pool.stats()
    assert (stats["held"], stats["idle"]) == (0, 0)
    assert connection.closed


def test_a_connection_that_cannot_be_set_up_in_time_is_left_behind(pool, monkeypatch):
    is_set_up = threading.Event()
    monkeypatch.setattr(connecting, "_mind_the_client", lambda made: is_set_up.wait(10))
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded), deadline(0.2):
        pool.getconn()
    assert SYSTEM.monotonic() - begun < 5
    is_set_up.set()


def test_an_exhausted_pool_is_no_failure_of_the_server_and_not_waited_for_twice(pool, manager):
    held = [pool.getconn() for _ in range(3)]
    manager.register_timeout("database_operation", 0.1)
    with pytest.raises(PoolExhausted) as caught:
        run_transaction(pool, read)
    assert len(history(caught.value)) == 1
    assert manager.circuit_breaker("database_operation").stats.failures == 0
    for connection in held:
        pool.putconn(connection)


def test_dead_connections_are_replaced_and_their_generation_goes(pool, proxy, manager):
    held = [pool.getconn() for _ in range(3)]
    for connection in held:
        pool.putconn(connection)
    assert pool.stats()["idle"] == 3
    proxy.cut()
    for _ in range(20):
        assert run_transaction(pool, read) == 42
    assert pool.stats()["generation"] == 1
    assert calls(manager)["retries"] == 0


def test_silent_idle_connections_are_asked_once(proxy, manager):
    dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    with ResilientPool(dsn, manager, 0, 2, probe_after=0.0) as pool:
        run_transaction(pool, read)
        proxy.black_hole = True
        healing = threading.Timer(0.3, lambda: setattr(proxy, "black_hole", False))
        healing.start()
        assert run_transaction(pool, read) == 42
        healing.join()


def test_poisoned_connections_are_healed_or_replaced(pool, direct):
    connection = pool.getconn()
    with connection.cursor() as cursor, pytest.raises(errors.DivisionByZero):
        cursor.execute("SELECT 1 / 0")
    pool.putconn(connection)
    again = pool.getconn()
    assert again is connection
    assert read(again) == 42
    direct.execute("SELECT pg_terminate_backend(%s)", (again.info.backend_pid,))
    with pytest.raises(psycopg2.OperationalError):
        read(again)
    pool.putconn(again)
    assert run_transaction(pool, read) == 42


def test_a_statement_is_not_repeated_in_a_failed_transaction(pool):
    with pool.lend() as connection, connection.cursor() as cursor:
        with pytest.raises(errors.DivisionByZero):
            cursor.execute("SELECT 1 / 0")
        with pytest.raises(FailedTransaction, match="run_transaction") as caught:
            RetryPolicy(max_retries=5, base_delay=0.001).call(cursor.execute, "SELECT 1")
        assert "DivisionByZero" in str(caught.value)
        assert len(history(caught.value)) == 1
        with pytest.raises(FailedTransaction):
            connection.commit()
        cursor.execute("ROLLBACK")
        assert read(connection) == 42


def test_a_savepoint_saves_a_failed_transaction(pool):
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SAVEPOINT here")
        with pytest.raises(errors.DivisionByZero):
            cursor.execute("SELECT 1 / 0")
        cursor.execute("ROLLBACK TO SAVEPOINT here")
        assert one(cursor, "SELECT 1") == 1


def test_serialization_failures_run_the_whole_transaction_again(pool, direct, manager):
    direct.execute("INSERT INTO drivers (id, n) VALUES (1, 0)")
    meeting = threading.Barrier(2)

    def add(connection):
        with connection.cursor() as cursor:
            seen = one(cursor, "SELECT n FROM drivers WHERE id = 1")
            if seen == 0:
                meeting.wait(20)
            cursor.execute("UPDATE drivers SET n = %s WHERE id = 1", (seen + 1,))

    threads = [threading.Thread(target=run_transaction, args=(pool, add), kwargs={"isolation_level": "SERIALIZABLE"})
               for _ in range(2)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one(direct, "SELECT n FROM drivers WHERE id = 1") == 2
    assert calls(manager)["retries"] >= 1
    assert manager.circuit_breaker("database_operation").stats.failures == 0
    connection = pool.getconn()
    assert one(connection.cursor(), "SHOW transaction_isolation") == "read committed"
    pool.putconn(connection)


def test_a_lost_connection_before_commit_runs_the_transaction_again(pool, proxy, direct):
    cuts = []

    def add(connection):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO drivers (n) VALUES (1)")
            if not cuts:
                cuts.append(proxy.cut())
            cursor.execute("INSERT INTO drivers (n) VALUES (2)")

    run_transaction(pool, add)
    assert one(direct, "SELECT count(*) FROM drivers") == 2


@pytest.mark.parametrize("loss", ["dropped", "silent"])
def test_a_loss_at_commit_is_an_unknown_outcome(pool, proxy, direct, manager, loss):
    manager.register_timeout("database_operation", 0.5)

    def add(connection):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO drivers (n) VALUES (1)")
        if loss == "dropped":
            proxy.drop_replies(1, to=b"COMMIT")
        else:
            proxy.black_hole = True

    with pytest.raises(OutcomeUnknown) as caught:
        run_transaction(pool, add)
    assert caught.value.phase == "commit"
    if loss == "dropped":
        assert one(direct, "SELECT count(*) FROM drivers") == 1
    proxy.black_hole = False
    assert run_transaction(pool, read) == 42


def test_a_read_only_transaction_is_repeated_even_at_its_end(pool, proxy, manager):
    def reading(connection):
        proxy.drop_replies(1, to=b"ROLLBACK") if not proxy.dropped else None
        return read(connection)

    assert run_transaction(pool, reading, readonly=True) == 42
    manager.register_retry_policy("database_operation", RetryPolicy(max_retries=0))
    with pytest.raises(errors.ReadOnlySqlTransaction):
        run_transaction(pool, lambda connection: connection.cursor().execute("CREATE TABLE no (n int)"), readonly=True)


def test_within_a_transaction_another_one_is_attempted_once(pool, proxy, manager):
    attempts = []

    def inner(connection):
        attempts.append(1)
        raise errors.SerializationFailure("made up")

    def outer(connection):
        run_transaction(pool, inner)

    with pytest.raises(errors.SerializationFailure):
        run_transaction(pool, outer)
    assert len(attempts) == 6
    assert calls(manager)["calls"] == 1


def test_an_open_breaker_answers_at_once(pool, manager):
    manager.circuit_breaker("database_operation").force_open()
    begun = SYSTEM.monotonic()
    with pytest.raises(CircuitOpenError):
        run_transaction(pool, read)
    with pytest.raises(CircuitOpenError), pool.connection():
        pass
    assert SYSTEM.monotonic() - begun < 0.5


@pytest.mark.parametrize("ending", ["the pool", "the block"])
def test_a_forked_child_that_ends_leaves_its_parents_connections_alone(pool, direct, ending):
    with pool.lend() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO drivers (n) VALUES (1)")
        if ending == "the pool":  # an idle one at the time of the fork, which the parent takes meanwhile
            with pool.lend() as other:
                read(other)
        gate, opened = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.read(gate, 1)
                if ending == "the pool":
                    pool.close()
                else:
                    pool.putconn(connection)
            finally:
                os._exit(0)
        with pool.lend() as other, other.cursor() as busy:
            assert one(busy, "SELECT 1") == 1
            os.write(opened, b"!")
            os.waitpid(child, 0)
            assert one(busy, "SELECT 2") == 2
            assert one(cursor, "SELECT 3") == 3
        connection.commit()
        os.close(gate)
        os.close(opened)
    assert one(direct, "SELECT count(*) FROM drivers") == 1


def test_a_pool_that_is_not_closed_is_told_of(postgres_dsn, manager):
    pool = ResilientPool(postgres_dsn, manager)
    run_transaction(pool, read)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del pool
        gc.collect()


def test_in_a_worker_process_the_server_looks_after_its_client(pool, monkeypatch):
    def interval(connection):
        with connection.cursor() as cursor:
            return one(cursor, "SHOW client_connection_check_interval")

    assert run_transaction(pool, interval) == "0"
    with pool.lend():
        monkeypatch.setattr("multiprocessing.parent_process", lambda: "somebody")
        assert run_transaction(pool, interval) == "500ms"


def test_surplus_idle_connections_are_closed(postgres_dsn, manager):
    with ResilientPool(postgres_dsn, manager, 1, 3, max_idle=0.0) as pool:
        held = [pool.getconn() for _ in range(3)]
        for connection in held:
            pool.putconn(connection)
        pool.putconn(pool.getconn())
        assert pool.stats()["idle"] <= 2


def test_bad_settings_are_refused(manager):
    for arguments in ({"minconn": 3, "maxconn": 2}, {"maxconn": 0}, {"minconn": -1}, {"probe_after": -1}):
        with pytest.raises(ConfigError):
            ResilientPool("", manager, **arguments)


def test_many_threads_share_a_pool(pool, direct):
    failures = []

    def work():
        for _ in range(20):
            try:
                assert run_transaction(pool, read) == 42
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pool.stats()["held"] == 0
    assert pool.stats()["idle"] <= 3
