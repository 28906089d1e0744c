"""What guards a name keeps its memory while other things are registered, and lives on the manager's clock."""

import pytest

from resilience import BulkheadFullError, ErrorRecoveryManager, RateLimitExceeded, RetryPolicy, history
from resilience.stores.memory import MemoryStore
from resilience.testing import Flaky, ManualClock

LIMITED = """
error_recovery:
  operations:
    narrow:
      bulkhead: {max_concurrent: 1}
    slow:
      rate_limit: {rate: 1, per: 60s, burst: 1}
    sick:
      retry: {max_retries: 1, base_delay: 0s}
      retry_budget: {ratio: 20%, min_per_second: 0.1}
"""


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def manager(tmp_path, clock):
    file = tmp_path / "resilience.yaml"
    file.write_text(LIMITED, encoding="utf-8")
    with ErrorRecoveryManager.from_config(str(file), env={}, clock=clock) as manager:
        yield manager


def call(manager, name, fn=lambda: "done"):
    return manager.protect(name, isolation="caller")(fn)()


def test_a_configured_bulkhead_knows_who_is_inside_when_something_else_is_registered(manager):
    def inside():
        manager.register_retry_policy("narrow", RetryPolicy(max_retries=0))
        manager.timeouts.update_config(narrow=5.0)
        with pytest.raises(BulkheadFullError):
            call(manager, "narrow")
        return "the only one"

    assert call(manager, "narrow", inside) == "the only one"
    assert call(manager, "narrow") == "done"


def test_a_configured_rate_limit_lives_on_the_managers_clock_and_keeps_its_place(manager, clock):
    manager.register_retry_policy("slow", RetryPolicy(max_retries=0))
    assert call(manager, "slow") == "done"
    manager.timeouts.update_config(slow=5.0)
    with pytest.raises(RateLimitExceeded) as refused:
        call(manager, "slow")
    assert refused.value.retry_after == pytest.approx(60.0)
    clock.advance(60.0)
    assert call(manager, "slow") == "done"


def test_a_registered_guard_takes_the_place_of_the_configured_one(manager):
    manager.register_bulkhead("narrow", None)

    def inside():
        return call(manager, "narrow")

    assert call(manager, "narrow", inside) == "done"


def test_a_configured_retry_budget_keeps_its_books_and_bounds_the_retries(manager):
    made = []

    def down():
        made.append(1)
        raise ConnectionError("down")

    for number in range(20):
        manager.timeouts.update_config(sick=5.0 + number)  # builds the operation anew
        with pytest.raises(ConnectionError) as failed:
            call(manager, "sick", down)
        assert history(failed.value).stop_reason in ("attempts exhausted", "budget empty")
        assert len(made) == number + 1 + max(1, -(-(number + 1) // 5) if number else 1)


def test_configured_budgets_of_one_store_are_one_budget(tmp_path, clock):
    file = tmp_path / "resilience.yaml"
    file.write_text(LIMITED, encoding="utf-8")
    store = MemoryStore(clock=clock)
    with (
        ErrorRecoveryManager.from_config(str(file), env={}, store=store, clock=clock) as one,
        ErrorRecoveryManager.from_config(str(file), env={}, store=store, clock=clock) as two,
    ):
        flaky = [Flaky(1), Flaky(1)]
        assert call(one, "sick", flaky[0]) == "ok"
        with pytest.raises(ConnectionError):
            call(two, "sick", flaky[1])
    store.close()
