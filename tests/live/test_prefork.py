"""Made in a parent, used in its children: manager, store, breakers, limiters, pools, sessions and threads, as gunicorn
does it with `preload_app`; and the same breaker between processes that were spawned."""

import json
import os
import subprocess
import sys

import psycopg2
import pytest
import redis

from resilience.testing import FaultServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PREFORK = """
import json, os, signal, sys, time
from resilience import CircuitBreakerConfig, ErrorRecoveryManager, RateLimiter, WorkerGroup, fan_out, open_store
from resilience.integrations.psycopg2 import ResilientPool, run_transaction
from resilience.integrations.redis import resilient_redis
from resilience.integrations.requests import resilient_session

store_url, redis_url, dsn, http, table = sys.argv[1:]
ROUNDS, PATIENCE = 10, 60.0
store = open_store(store_url)
manager = ErrorRecoveryManager(store=store)
breaker = manager.circuit_breaker(table, CircuitBreakerConfig(failure_threshold=5, timeout=3600.0))
manager.register_rate_limiter("api_call", RateLimiter("api", rate=1000.0, burst=1000))
session = resilient_session(manager)
cache = resilient_redis(redis_url, manager)
pool = ResilientPool(dsn, manager, minconn=1, maxconn=4)
beats = []
group = WorkerGroup(manager)
group.add("beat", lambda: beats.append(os.getpid()), 0.02)

def insert(connection):
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (%s)", (os.getpid(),))

def round_of_work(_=None):
    manager.execute_with_retry("concurrent_operation", int, "7")
    run_transaction(pool, insert)
    cache.incr(table)
    assert session.get(http).status_code == 200

def work():
    for _ in range(ROUNDS // 2):
        round_of_work()
    assert not fan_out(round_of_work, range(ROUNDS // 2), max_workers=3, manager=manager).errors
    assert manager.submit("api_call", int, "8").result(PATIENCE) == 8

def down():
    raise ConnectionError("down")

def fail():
    try:
        breaker.call(down)
    except ConnectionError:
        pass

def until(state):
    end = time.monotonic() + PATIENCE
    while str(breaker.state) != state:
        assert time.monotonic() < end, f"{os.getpid()} sees {breaker.state}, not {state}"
        time.sleep(0.005)

def child(orders, answers):
    own = WorkerGroup(manager, name="own")
    own.add("own beat", lambda: beats.append(os.getpid()), 0.02)
    own.start()
    for order in orders:
        word, *rest = order.split()
        {"work": work, "fail": fail, "until": until, "end": lambda: None}[word](*rest)
        answers.write(word + "\\n")
        answers.flush()
        if word == "end":
            break
    assert own.stop() == []
    assert os.getpid() in beats
    pool.close()
    manager.close()

class Worker:
    def __init__(self):
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.orders)
            os.close(self.answers)
            try:
                with open(orders) as reader, open(answers, "w") as writer:
                    child(reader, writer)
            except BaseException:
                import traceback
                traceback.print_exc()
                sys.exit(1)
            sys.exit(0)
        os.close(orders)
        os.close(answers)
        self.orders, self.answers = open(self.orders, "w"), open(self.answers)

    def order(self, words):
        self.orders.write(words + "\\n")
        self.orders.flush()

    def answered(self, words):
        answer = self.answers.readline()
        assert answer == words.split()[0] + "\\n", f"{self.pid} answered {answer!r} to {words}"

    def ended(self):
        self.orders.close()
        self.answers.close()
        return os.waitpid(self.pid, 0)[1]

def all_do(words):
    for worker in workers:
        worker.order(words)
    for worker in workers:
        worker.answered(words)

group.start()
work()
workers = []  # each inherits the pipes of those before it, as with any forking server
for _ in range(4):
    workers.append(Worker())
all_do("work")
work()
all_do("fail")
assert str(breaker.state) == "closed", "four failures are not five"
fail()
all_do("until open")
until("open")
killed = workers[1]
os.kill(killed.pid, signal.SIGKILL)
killed_by = killed.ended()
workers[1] = Worker()
all_do("until open")
breaker.reset()
all_do("until closed")
all_do("work")
all_do("end")
codes = [worker.ended() for worker in workers]
work()
before = len(beats)
end = time.monotonic() + PATIENCE
while len(beats) == before:
    assert time.monotonic() < end, "the parent's worker has stopped"
    time.sleep(0.005)
assert set(beats) == {os.getpid()}
assert group.stop() == []
pool.close()
cache.close()
session.close()
manager.close()
store.close()
print(json.dumps({"killed_by": killed_by, "codes": codes, "works": 4 + 1 + 1 + 4 + 1, "rounds": ROUNDS}))
"""


@pytest.fixture(params=["file", "redis", "postgresql"])
def store_url(request, tmp_path, valkey_url, postgres_dsn):
    return {"file": f"file://{tmp_path}/state", "redis": valkey_url, "postgresql": postgres_dsn}[request.param]


def test_four_forked_workers_work_and_share_and_one_is_killed_and_replaced(store_url, valkey_url, postgres_dsn):
    table = f"prefork_{store_url.partition(':')[0]}"
    database, cache = psycopg2.connect(postgres_dsn), redis.Redis.from_url(valkey_url)
    try:
        with database, database.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {table} (pid int)")
        with FaultServer() as server:
            run = [sys.executable, "-W", "default::ResourceWarning", "-c", PREFORK]
            run += [store_url, valkey_url, postgres_dsn, f"{server.url}/ok", table]
            done = subprocess.run(run, capture_output=True, text=True, timeout=110, check=False)
            asked, connections = len(server.requests), server.connections
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "ResourceWarning" not in done.stderr, done.stderr
        told = json.loads(done.stdout)
        assert told["killed_by"] == 9 and told["codes"] == [0, 0, 0, 0]
        expected = told["works"] * told["rounds"]
        with database, database.cursor() as cursor:
            cursor.execute(f"SELECT count(*), count(DISTINCT pid) FROM {table}")
            rows = cursor.fetchone()
        assert (rows, int(cache.get(table)), asked) == ((expected, 6), expected, expected)
        assert connections >= 6, "each process has its own"
    finally:
        with database, database.cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {table}")
        database.close()
        cache.delete(table)
        cache.close()


SPAWN = """
import multiprocessing, sys, time
from resilience import CircuitBreaker, CircuitBreakerConfig, open_store

CONFIG = CircuitBreakerConfig(failure_threshold=4, timeout=3600.0)

def until_open(breaker):
    end = time.monotonic() + 60
    while str(breaker.state) != "open":
        assert time.monotonic() < end, str(breaker.state)
        time.sleep(0.005)

def child(url, ready):
    with open_store(url) as store:
        breaker = CircuitBreaker("spawned", CONFIG, store=store)
        ready.wait(60)
        breaker.acquire().failure()
        until_open(breaker)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with open_store(sys.argv[1]) as store:
        breaker = CircuitBreaker("spawned", CONFIG, store=store)
        ready = spawn.Barrier(4)
        children = [spawn.Process(target=child, args=(sys.argv[1], ready)) for _ in range(4)]
        for one in children:
            one.start()
        until_open(breaker)
        for one in children:
            one.join(60)
        assert [one.exitcode for one in children] == [0, 0, 0, 0]
"""


def test_four_spawned_workers_open_the_breaker_of_their_parent(tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWN, encoding="utf-8")
    run = [sys.executable, script, f"file://{tmp_path}/state"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
