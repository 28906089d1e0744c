"""What `classify` says about psycopg2: a real PostgreSQL, asked for what goes wrong."""

import socket
import threading

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.pool
import pytest

from resilience import classify


def told(error):
    verdict = classify(error)
    can = "retry" if verdict.retryable else "final"
    return f"{verdict.category} {can} {verdict.outcome} {verdict.reason}"


def raised_by(act, *args, **kwargs):
    try:
        act(*args, **kwargs)
    except Exception as error:
        return error
    return pytest.fail("nothing was raised")


@pytest.fixture
def connect(postgres_dsn):
    """Makes connections that are closed after the test; the table `classify_item` is there and empty."""
    made = []

    def connect(autocommit=False, **options):
        made.append(psycopg2.connect(postgres_dsn, **options))
        made[-1].autocommit = autocommit
        return made[-1]

    run(
        connect(autocommit=True),
        """DROP TABLE IF EXISTS classify_item;
        CREATE TABLE classify_item (id int PRIMARY KEY, name text NOT NULL, CHECK (id < 100));
        INSERT INTO classify_item VALUES (1, 'a'), (2, 'b')""",
    )
    yield connect
    for connection in made:
        connection.close()


def run(connection, *statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def statement(text):
    return lambda connect: run(connect(), text)


def serialization_failure(connect):
    first, second = connect(), connect()
    for connection in (first, second):
        connection.set_session(isolation_level="SERIALIZABLE")
        run(connection, "SELECT sum(id) FROM classify_item")
    run(first, "UPDATE classify_item SET name = 'x' WHERE id = 1")
    first.commit()
    run(second, "UPDATE classify_item SET name = 'y' WHERE id = 1")


def deadlock(connect):
    first, second = connect(), connect()
    run(first, "UPDATE classify_item SET name = 'x' WHERE id = 1")
    run(second, "UPDATE classify_item SET name = 'x' WHERE id = 2")
    errors = []

    def cross(connection, number):
        try:
            run(connection, f"UPDATE classify_item SET name = 'y' WHERE id = {number}")
        except psycopg2.Error as error:
            errors.append(error)
        connection.rollback()

    thread = threading.Thread(target=cross, args=(first, 2))
    thread.start()
    cross(second, 1)
    thread.join()
    raise errors[0]


def lock_not_available(connect):
    run(connect(), "LOCK TABLE classify_item")
    run(connect(), "LOCK TABLE classify_item NOWAIT")


def aborted_transaction(connect):
    connection = connect()
    raised_by(run, connection, "SELECT 1/0")
    run(connection, "SELECT 1")


def terminated_between(connect):
    victim = connect()
    run(connect(), f"SELECT pg_terminate_backend({victim.info.backend_pid}, 5000)")
    run(victim, "SELECT 1")


def terminated_while_running(connect):
    victim, other = connect(), connect()
    end = f"SELECT pg_sleep(0.05), pg_terminate_backend({victim.info.backend_pid})"
    thread = threading.Thread(target=run, args=(other, end))
    thread.start()
    try:
        run(victim, "SELECT pg_sleep(5)")
    finally:
        thread.join()


def terminated_and_used_again(connect):
    connection = connect()
    raised_by(run, connection, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
    run(connection, "SELECT 1")


def idle_in_transaction(connect):
    connection = connect()
    run(connection, "SET idle_in_transaction_session_timeout = 10")
    connection.commit()
    run(connection, "SELECT 1")
    with connection.cursor() as cursor:
        threading.Event().wait(0.1)
        cursor.execute("SELECT 1")


def closed_cursor(connect):
    cursor = connect().cursor()
    cursor.close()
    cursor.execute("SELECT 1")


def closed_connection(connect):
    connection = connect()
    connection.close()
    connection.cursor()


CASES = [
    (serialization_failure, "transient retry answered sqlstate:40001"),
    (deadlock, "transient retry answered sqlstate:40P01"),
    (lock_not_available, "transient retry answered sqlstate:55P03"),
    (statement("SET statement_timeout = 10; SELECT pg_sleep(5)"), "transient retry answered sqlstate:57014"),
    (
        statement("SET lock_timeout = 10; SELECT pg_cancel_backend(pg_backend_pid()); SELECT pg_sleep(5)"),
        "transient retry answered sqlstate:57014",
    ),
    (terminated_while_running, "transient retry unknown postgres:connection lost"),
    (terminated_between, "transient retry unknown postgres:connection lost"),
    (terminated_and_used_again, "transient retry not_sent postgres:connection already closed"),
    (idle_in_transaction, "transient retry unknown postgres:connection lost"),
    (statement("SET transaction_read_only = on; DELETE FROM classify_item"), "transient retry answered sqlstate:25006"),
    (aborted_transaction, "logic final answered sqlstate:25P02"),
    (statement("INSERT INTO classify_item VALUES (1, 'twice')"), "permanent final answered sqlstate:23505"),
    (statement("INSERT INTO classify_item VALUES (3, NULL)"), "permanent final answered sqlstate:23502"),
    (statement("INSERT INTO classify_item VALUES (1000, 'c')"), "permanent final answered sqlstate:23514"),
    (statement("SELEKT 1"), "logic final answered sqlstate:42601"),
    (statement("SELECT * FROM nothing_there"), "logic final answered sqlstate:42P01"),
    (statement("SET ROLE guest; DELETE FROM classify_item"), "permanent final answered sqlstate:42501"),
    (statement("SELECT 1/0"), "logic final answered sqlstate:22012"),
    (statement("SELECT 'x'::int"), "logic final answered sqlstate:22P02"),
    (statement("DO $$ BEGIN RAISE 'no'; END $$"), "permanent final answered sqlstate:P0001"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = '53100'; END $$"), "resource retry answered sqlstate:53100"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = '53200'; END $$"), "resource retry answered sqlstate:53200"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = '08006'; END $$"), "transient retry unknown sqlstate:08006"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = '57P01'; END $$"), "transient retry unknown sqlstate:57P01"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = '57P03'; END $$"), "transient retry not_sent sqlstate:57P03"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = '58030'; END $$"), "transient retry unknown sqlstate:58030"),
    (statement("DO $$ BEGIN RAISE 'x' USING ERRCODE = 'XX001'; END $$"), "logic final answered sqlstate:XX001"),
    (closed_cursor, "logic final not_sent psycopg2:InterfaceError"),
    (closed_connection, "transient retry not_sent postgres:connection already closed"),
    (lambda connect: connect(user="guest", password="wrong"), "permanent final not_sent postgres:refused"),
    (lambda connect: connect(user="stranger"), "permanent final not_sent postgres:refused"),
    (lambda connect: connect(dbname="nothing_there"), "permanent final not_sent postgres:refused"),
    (lambda connect: connect(sslmode="require"), "permanent final not_sent postgres:tls"),
    (lambda connect: connect(nothing="x"), "logic final not_sent postgres:dsn"),
    (lambda connect: connect(host="no-such-host.invalid"), "transient retry not_sent postgres:connecting"),
]


@pytest.mark.parametrize(("act", "verdict"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_real_server(connect, act, verdict):
    error = raised_by(act, connect)
    assert isinstance(error, psycopg2.Error)
    assert told(error) == verdict


def test_a_dead_port_was_sent_nothing():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        error = raised_by(psycopg2.connect, host="127.0.0.1", port=holder.getsockname()[1], user="x")
    assert told(error) == "transient retry not_sent postgres:connecting"


def test_a_server_that_closes_while_connecting_was_sent_nothing():
    def hang_up():
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up)
        thread.start()
        error = raised_by(
            psycopg2.connect, host="127.0.0.1", port=listener.getsockname()[1], user="x", sslmode="disable"
        )
        thread.join()
    assert told(error) == "transient retry not_sent postgres:connecting"


def test_a_connection_cut_under_a_statement_is_unknown(connect):
    connection = connect()
    watchdog = threading.Timer(0.05, cut, (connection.fileno(),))
    watchdog.start()
    error = raised_by(run, connection, "SELECT pg_sleep(5)")
    watchdog.join()
    assert isinstance(error, psycopg2.OperationalError)
    assert told(error) == "transient retry unknown postgres:connection lost"


def cut(descriptor):
    with socket.socket(fileno=descriptor) as line:
        line.shutdown(socket.SHUT_RDWR)
        line.detach()


def test_a_server_without_room_for_clients_wants_resources(connect):
    role = connect(autocommit=True)
    run(role, "DROP ROLE IF EXISTS classify_one", "CREATE ROLE classify_one LOGIN CONNECTION LIMIT 0")
    try:
        error = raised_by(connect, user="classify_one")
    finally:
        run(role, "DROP ROLE classify_one")
    assert told(error) == "resource retry not_sent postgres:too many connections"


def test_a_pool_that_is_used_up_wants_resources(postgres_dsn):
    pool = psycopg2.pool.SimpleConnectionPool(1, 1, postgres_dsn)
    pool.getconn()
    assert told(raised_by(pool.getconn)) == "resource retry not_sent postgres:pool exhausted"
    pool.closeall()
    assert told(raised_by(pool.getconn)) == "logic final not_sent psycopg2:PoolError"


def test_errors_made_by_hand_have_the_verdict_of_their_class():
    assert told(psycopg2.errors.SerializationFailure()) == "transient retry answered sqlstate:40001"
    assert told(psycopg2.errors.DeadlockDetected()) == "transient retry answered sqlstate:40P01"
    assert told(psycopg2.errors.AdminShutdown()) == "transient retry unknown sqlstate:57P01"
    assert told(psycopg2.errors.TooManyConnections()) == "resource retry not_sent sqlstate:53300"
    assert told(psycopg2.errors.UniqueViolation()) == "permanent final answered psycopg2:IntegrityError"
    assert told(psycopg2.extensions.TransactionRollbackError()).startswith("transient retry answered")
    assert told(psycopg2.OperationalError("what")) == "transient retry unknown psycopg2:OperationalError"


def test_every_error_of_the_driver_has_a_verdict_of_its_own():
    for kind in vars(psycopg2.errors).values():
        if isinstance(kind, type) and issubclass(kind, psycopg2.Error):
            assert classify(kind()).reason.startswith(("sqlstate:", "psycopg2:")), kind
