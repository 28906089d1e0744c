"""A Redis client under a manager, against a real server behind a network that misbehaves."""

import threading
from urllib.parse import urlsplit

import pytest
import redis

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
from resilience.integrations.redis import guard, idempotent, is_idempotent, resilient_redis
from resilience.integrations.redis.connection import scope_of_call
from resilience.testing import BlackHole, DeadPort, FaultProxy, eventually

QUICK = RetryPolicy(max_retries=3, base_delay=0.001, max_delay=0.002)


@pytest.fixture
def proxy(valkey_url):
    parts = urlsplit(valkey_url)
    with FaultProxy(parts.hostname, parts.port) as running:
        yield running


@pytest.fixture
def manager():
    with ErrorRecoveryManager() as made:
        made.register_retry_policy("redis_operation", QUICK)
        made.register_circuit_breaker("redis_operation", CircuitBreakerConfig(failure_threshold=50))
        yield made


@pytest.fixture
def direct(valkey_url):
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.flushdb()
        yield client


@pytest.fixture
def client(proxy, manager, direct):
    with resilient_redis(f"redis://127.0.0.1:{proxy.port}/0?decode_responses=True", manager) as made:
        yield made


def calls(manager):
    return manager.monitor.operations()["redis_operation"]


def test_it_is_the_client_one_knows(client, manager):
    assert isinstance(client, redis.Redis)
    assert client.set("name", "value", ex=10)
    assert client.get("name") == "value"
    assert client.hset("hash", mapping={"a": 1}) == 1
    assert client.incr("n") == 1
    assert list(client.scan_iter("na*")) == ["name"]
    script = client.register_script("return redis.call('incr', KEYS[1])")
    assert script(keys=["n"]) == 2
    with client.lock("lock", timeout=1):
        assert client.exists("lock")
    assert manager.monitor.operations()["redis_operation"]["successes"] >= 8


def test_an_incr_whose_reply_is_lost_three_times_ran_once(client, proxy, direct):
    client.ping()
    proxy.drop_replies(3, to=b"INCR")
    with pytest.raises(OutcomeUnknown) as caught:
        client.incr("n")
    assert caught.value.phase == "sent"
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert direct.get("n") == "1"
    proxy.drop_replies(0)
    assert client.incr("n") == 2


@pytest.mark.parametrize("command", [("GET", "k"), ("SET", "k", "v"), ("DEL", "k"), ("EXPIRE", "k", 100)])
def test_idempotent_commands_are_repeated_when_their_reply_is_lost(client, proxy, direct, manager, command):
    direct.set("k", "v")
    client.ping()
    proxy.drop_replies(3, to=command[0].encode())
    client.execute_command(*command)
    assert proxy.dropped == 3
    assert calls(manager)["retries"] == 3


def test_commands_nobody_knows_are_not_repeated(client, proxy, direct):
    proxy.drop_replies(1, to=b"EVAL")
    with pytest.raises(OutcomeUnknown):
        client.eval("return redis.call('incr', 'n')", 0)
    assert direct.get("n") == "1"


def test_the_caller_may_know_better(client, proxy, direct):
    proxy.drop_replies(1, to=b"EVAL")
    with idempotent():
        client.eval("return redis.call('set', 'n', 5)", 0)
    assert proxy.dropped == 1
    assert direct.get("n") == "5"


@pytest.mark.parametrize(
    ("command", "expected"),
    [("GET k", True), ("get k", True), ("SET k v", True), ("SET k v EX 5", True), ("SET k v NX", False),
     ("SET k v GET", False), ("INCR k", False), ("LPUSH k v", False), ("RPOP k", False), ("SADD k v", False),
     ("ZADD k 1 a", True), ("ZADD k INCR 1 a", False), ("EVAL x 0", False), ("MODULE.THING k", False),
     ("CONFIG GET x", True), ("CONFIG SET x y", False), ("SCRIPT LOAD x", True), ("PUBLISH c m", False)],
)  # fmt: skip
def test_the_table_of_commands(command, expected):
    assert is_idempotent(*command.split()) is expected
    assert is_idempotent(*command.encode().split()) is expected


def test_what_was_not_sent_is_repeated_whatever_the_command(manager):
    with DeadPort() as dead, resilient_redis(f"redis://127.0.0.1:{dead.port}", manager) as client:
        with pytest.raises(redis.ConnectionError) as caught:
            client.incr("n")
    assert len(history(caught.value)) == 4


def test_answered_errors_stay_what_they_are(client, manager):
    client.set("text", "abc")
    with pytest.raises(redis.ResponseError):
        client.incr("text")
    assert manager.circuit_breaker("redis_operation").stats.failures == 0
    assert calls(manager)["retries"] == 0


def test_a_silent_server_ends_at_the_deadline_and_its_connection_is_not_used_again(client, proxy):
    client.set("k", "old")
    proxy.black_hole = True
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
        client.get("k")
    assert SYSTEM.monotonic() - begun < 2.0
    assert caught.value.ambient
    assert classify(caught.value).outcome == "unknown"
    proxy.black_hole = False
    assert client.get("k") == "old"
    assert client.ping()


def test_a_dripping_reply_ends_at_the_deadline(client, proxy, direct):
    direct.set("big", "x" * 1000)
    client.ping()
    proxy.drip = 0.02
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded), deadline(0.3):
        client.get("big")
    assert SYSTEM.monotonic() - begun < 2.0


def test_a_black_hole_ends_at_the_deadline_with_nothing_sent(manager):
    with BlackHole() as hole, resilient_redis(f"redis://127.0.0.1:{hole.port}", manager) as client:
        begun = SYSTEM.monotonic()
        with pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
            client.incr("n")
        assert SYSTEM.monotonic() - begun < 2.0
        assert classify(caught.value).outcome == "not_sent"


def test_an_attempt_ends_by_the_operations_own_timeout_and_blames_the_server(client, proxy, manager):
    manager.register_timeout("redis_operation", 0.1)
    client.ping()
    proxy.black_hole = True
    with pytest.raises(DeadlineExceeded) as caught:
        client.get("k")
    assert not caught.value.ambient
    assert manager.circuit_breaker("redis_operation").stats.failures == 4


def test_an_incr_that_is_cut_by_its_deadline_is_called_unknown(client, proxy):
    client.ping()
    proxy.black_hole = True
    with pytest.raises(OutcomeUnknown) as caught, deadline(0.1):
        client.incr("n")
    assert isinstance(caught.value.__cause__, DeadlineExceeded)


def test_a_blocking_command_gives_up_in_time_and_takes_nothing(client, direct):
    begun = SYSTEM.monotonic()
    with pytest.raises(DeadlineExceeded) as caught, deadline(0.3):
        client.blpop("queue", timeout=60)
    assert SYSTEM.monotonic() - begun < 2.0
    assert caught.value.phase == "waiting"
    direct.rpush("queue", "item")
    assert direct.llen("queue") == 1
    with deadline(5.0):
        assert client.blpop("queue", timeout=60)[1] == "item"


def test_a_blocking_command_may_wait_longer_than_the_operations_timeout(client, direct, manager):
    manager.register_timeout("redis_operation", 0.1)
    late = threading.Timer(0.4, lambda: direct.rpush("queue", "item"))
    late.start()
    assert client.blpop("queue", timeout=10)[1] == "item"
    late.join()
    assert client.blpop("queue", timeout=0.05) is None
    assert client.xread({"stream": "$"}, block=50) in ([], {}, None)


def test_a_blocking_command_on_a_dead_server_ends_too(client, proxy, manager):
    manager.register_timeout("redis_operation", 0.1)
    client.ping()
    proxy.black_hole = True
    begun = SYSTEM.monotonic()
    with pytest.raises(OutcomeUnknown):
        client.blpop("queue", timeout=0.1)
    assert SYSTEM.monotonic() - begun < 2.0


def test_a_pipeline_of_idempotent_commands_is_repeated_whole(client, proxy, direct, manager):
    client.ping()
    proxy.drop_replies(2, to=b"MULTI")
    with client.pipeline() as pipe:
        pipe.set("a", 1).set("b", 2).get("a")
        assert pipe.execute() == [True, True, "1"]
    assert proxy.dropped == 2
    assert calls(manager)["retries"] == 2


@pytest.mark.parametrize("transaction", [True, False])
def test_a_pipeline_with_another_command_runs_once(client, proxy, direct, transaction):
    client.ping()
    proxy.drop_replies(3, to=b"INCR")
    with client.pipeline(transaction=transaction) as pipe, pytest.raises(OutcomeUnknown):
        pipe.set("a", 1).incr("n")
        pipe.execute()
    assert direct.get("n") == "1"


def test_a_watched_transaction_whose_reply_is_lost_is_not_run_again(client, proxy, direct):
    """redis-py calls that a WatchError, and its `transaction()` runs the function once more."""
    direct.set("n", 0)
    client.ping()
    proxy.drop_replies(1, to=b"EXEC")

    def add(pipe):
        seen = int(pipe.get("n"))
        pipe.multi()
        pipe.incrby("n", 10)
        return seen

    with pytest.raises(OutcomeUnknown):
        client.transaction(add, "n")
    assert direct.get("n") == "10"


def test_a_watched_transaction_that_lost_the_race_runs_again(client, direct):
    direct.set("n", 0)
    disturbed = []

    def add(pipe):
        seen = int(pipe.get("n"))
        if not disturbed:
            disturbed.append(direct.set("n", 100))
        pipe.multi()
        pipe.set("n", seen + 1)

    client.transaction(add, "n")
    assert direct.get("n") == "101"


def test_a_pipeline_that_a_deadline_cuts_leaves_nothing_behind_for_the_next(client, proxy):
    client.mset({f"k{number}": number for number in range(50)})
    proxy.drip = 0.01
    with client.pipeline(transaction=False) as pipe, pytest.raises(DeadlineExceeded), deadline(0.2):
        for number in range(50):
            pipe.get(f"k{number}")
        pipe.execute()
    proxy.drip = 0.0
    assert client.get("k7") == "7"


@pytest.mark.parametrize("reads", [True, False])
def test_the_end_of_a_watched_transaction_waits_for_no_server_beyond_the_deadline(client, proxy, manager, reads):
    manager.register_timeout("redis_operation", 20.0)
    lifted = threading.Timer(8.0, setattr, (proxy, "black_hole", False))  # rather than to hang
    begun = SYSTEM.monotonic()
    with deadline(0.3), client.pipeline() as pipeline:
        pipeline.watch("k")
        proxy.black_hole = True
        lifted.start()
        if reads:
            with pytest.raises(DeadlineExceeded):
                pipeline.get("k")
    assert SYSTEM.monotonic() - begun < 5.0
    lifted.cancel()
    proxy.black_hole = False
    assert client.set("k", "next")


def test_the_end_of_a_watched_transaction_keeps_its_connection(client, proxy):
    with client.pipeline() as pipeline:
        pipeline.watch("k")
    client.set("k", "next")
    assert proxy.connections == 1


def test_after_the_deadline_nothing_is_sent(client, direct):
    client.set("n", 0)  # its connection is there
    with client.pipeline() as watching:
        watching.watch("other")
        for run in (
            lambda: client.incr("n"),
            lambda: client.pipeline().incr("n").execute(),
            lambda: client.blpop("list", 1),
            lambda: watching.incr("n"),
        ):
            with pytest.raises(DeadlineExceeded) as caught, deadline(0.0):
                run()
            assert classify(caught.value).outcome == "not_sent"
    assert direct.get("n") == "0"


class CtrlC:
    """In the place of a method: lets some calls pass, then is interrupted at its start."""

    def __init__(self, method, after=0):
        self.method = method
        self.left = after

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.method(*args, **kwargs)


@pytest.mark.parametrize("several", [False, True])
def test_a_ctrl_c_before_the_reply_leaves_no_reply_for_the_next_command(client, proxy, direct, monkeypatch, several):
    direct.mset({"a": "1", "b": "2", "c": "3"})
    client.ping()
    proxy.latency, proxy.drip = 0.02, 0.003 if several else 0.0
    asked = client.pipeline(transaction=False).get("a").get("b") if several else client
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(asked, "parse_response", CtrlC(asked.parse_response, after=int(several)))
        asked.execute() if several else asked.get("a")
    assert client.get("c") == "3"
    assert scope_of_call.get() is None


def test_a_watched_transaction_whose_reply_was_given_up_does_not_go_on_unwatched(client, proxy, direct, monkeypatch):
    direct.mset({"a": "1", "b": "2"})
    proxy.latency = 0.02
    with client.pipeline() as pipeline:
        pipeline.watch("a")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(pipeline, "parse_response", CtrlC(pipeline.parse_response))
            pipeline.get("a")
        with pytest.raises(redis.WatchError):
            pipeline.get("b")
    assert client.get("b") == "2"


def test_a_ctrl_c_at_the_start_of_an_attempt_leaves_the_thread_outside_of_it(client, monkeypatch):
    class Interrupted:
        get = scope_of_call.get

        def set(self, scope):
            scope_of_call.set(scope)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(guard, "scope_of_call", Interrupted())
        client.ping()
    assert scope_of_call.get() is None
    assert client.ping()


def test_messages_end_at_the_deadline_and_the_subscription_stays(client, direct):
    with client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("news")
        with pytest.raises(DeadlineExceeded), deadline(0.2):
            while True:
                channel.get_message(timeout=60)
        direct.publish("news", "hello")
        got = None
        with deadline(10.0):
            while got is None:
                got = channel.get_message(timeout=5)
        assert got["data"] == "hello"
        with pytest.raises(DeadlineExceeded), deadline(0.2):
            next(channel.listen())


def test_a_subscription_survives_a_lost_connection(client, direct, proxy):
    with client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("news")
        assert channel.get_message(timeout=0.2) is None
        proxy.cut()
        give_up = SYSTEM.monotonic() + 10
        got = None
        while got is None and SYSTEM.monotonic() < give_up:
            got = channel.get_message(timeout=0.1)
            direct.publish("news", "hello")
        assert got["data"] == "hello"


def test_a_restarted_server_costs_no_error(client, proxy):
    for _ in range(5):
        client.ping()
    proxy.cut()
    assert client.incr("n") == 1


def test_the_breaker_opens_and_then_answers_at_once(proxy, manager, direct):
    manager.register_circuit_breaker("cache", CircuitBreakerConfig(failure_threshold=2, timeout=60.0))
    manager.register_retry_policy("cache", RetryPolicy(max_retries=0))
    with resilient_redis(f"redis://127.0.0.1:{proxy.port}", manager, operation="cache") as client:
        proxy.refuse = True
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.get("k")
        begun = SYSTEM.monotonic()
        with pytest.raises(CircuitOpenError):
            client.get("k")
        assert SYSTEM.monotonic() - begun < 0.5
    assert manager.status()["breakers"]["cache"]["state"] == "open"


def test_an_open_breaker_refuses_transactions_and_subscriptions_too(client, manager):
    with client.pipeline() as pipe, client.pubsub() as channel:
        pipe.watch("k")
        manager.circuit_breaker("redis_operation").force_open()
        for step in (lambda: pipe.get("k"), lambda: channel.subscribe("news"), client.pipeline().get("k").execute):
            with pytest.raises(CircuitOpenError):
                step()
        manager.circuit_breaker("redis_operation").reset()


def test_a_client_is_taken_with_its_settings_and_left_as_it_was(proxy, manager, direct):
    pool = redis.BlockingConnectionPool(host="127.0.0.1", port=proxy.port, max_connections=1, decode_responses=True)
    with redis.Redis(connection_pool=pool) as own, resilient_redis(own, manager) as client:
        assert client.set("k", "v")
        assert client.get("k") == "v"
        assert own.get("k") == "v"
        with client.client() as holder:  # takes the only connection
            assert holder.ping()
            begun = SYSTEM.monotonic()
            with pytest.raises(DeadlineExceeded), deadline(0.2):
                client.get("k")
            assert SYSTEM.monotonic() - begun < 2.0
        assert client.get("k") == "v"
        pool.disconnect()


def test_a_single_connection_client_works(client):
    with client.client() as single:
        assert single.set("k", "v")
        assert single.get("k") == "v"


def test_what_cannot_be_made_resilient_is_refused(manager):
    with pytest.raises(ConfigError):
        resilient_redis(42, manager)


def test_inside_its_own_operation_a_command_is_part_of_that_call(client, proxy, manager, direct):
    client.ping()
    before = calls(manager)["calls"]
    proxy.drop_replies(2, to=b"GET")
    direct.set("k", "v")
    assert manager.execute_with_retry("redis_operation", client.get, "k") == "v"
    assert calls(manager)["calls"] - before == 1
    assert calls(manager)["retries"] == 2


def test_a_fallback_answers_for_a_silent_server(client, proxy, manager):
    client.ping()
    manager.register_fallback("redis_operation", "stale")
    proxy.black_hole = True
    begun = SYSTEM.monotonic()
    with deadline(0.3):
        assert client.get("k") == "stale"
    assert SYSTEM.monotonic() - begun < 2.0


def test_closing_the_client_closes_its_connections(proxy, manager):
    client = resilient_redis(f"redis://127.0.0.1:{proxy.port}", manager)
    assert client.ping()
    assert proxy.open_connections == 1
    client.close()
    eventually(lambda: proxy.open_connections == 0)


def test_a_pool_that_cannot_be_made_anew_is_refused(manager):
    from redis.sentinel import Sentinel

    master = Sentinel([("127.0.0.1", 1)]).master_for("name")
    with master, pytest.raises(ConfigError, match="SentinelConnectionPool"):
        resilient_redis(master, manager)
