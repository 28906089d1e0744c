"""The forms a retry takes in code: the loop, the decorator, the call."""

import inspect

import pytest

from resilience import (
    Retry,
    RetryBudget,
    RetryPolicy,
)
from resilience.testing import Flaky, ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def plain(retries, **changes):
    return RetryPolicy(**{"max_retries": retries, "base_delay": 1.0, "max_delay": 60.0, "jitter": False, **changes})


def test_the_loop_form_repeats_its_block(clock):
    work, seen = Flaky(2), []
    for attempt in Retry(plain(3), clock=clock).attempts():
        with attempt:
            seen.append(attempt.number)
            work()
    assert seen == [1, 2, 3]
    with pytest.raises(ValueError, match="final"):
        for attempt in Retry(plain(3), clock=clock).attempts():
            with attempt:
                raise ValueError("final")


def test_the_loop_form_without_its_block_is_refused():
    with pytest.raises(RuntimeError, match="with attempt"):
        for _ in plain(3).attempts():
            pass


def test_the_loop_form_lets_what_is_no_exception_pass(clock):
    turns = 0
    with pytest.raises(KeyboardInterrupt):
        for attempt in Retry(plain(3), clock=clock).attempts():
            with attempt:
                turns += 1
                raise KeyboardInterrupt
    assert turns == 1


# -- decorating --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [plain(1), plain(1, budget=RetryBudget())], ids=["direct", "with a budget"])
def test_a_decorated_function_keeps_its_name_and_its_signature(policy):
    def greet(name: str, *, loud: bool = False) -> str:
        """Says hello."""
        return name.upper() if loud else name

    decorated = policy(greet)
    assert decorated("ada", loud=True) == "ADA"
    assert inspect.signature(decorated) == inspect.signature(greet)
    assert (decorated.__name__, decorated.__doc__) == ("greet", "Says hello.")


def test_a_decorated_method_gets_its_object():
    class Client:
        tries = 0

        @plain(2, base_delay=0.0)
        def fetch(self, key):
            self.tries += 1
            if self.tries < 3:
                raise ConnectionError
            return key

        @plain(2, base_delay=0.0, max_elapsed=60.0)
        def store(self, key):
            return self, key

    client = Client()
    assert (client.fetch("k"), client.tries) == ("k", 3)
    assert client.store("k") == (client, "k")


async def asynchronous():
    pass


async def stream():
    yield 1


def generator():
    yield 1


@pytest.mark.parametrize("fn", [asynchronous, stream, generator])
def test_functions_that_work_after_they_return_are_refused(fn):
    with pytest.raises(TypeError, match="protect"):
        plain(1)(fn)


@pytest.mark.parametrize("policy", [plain(3), plain(3, max_elapsed=60.0)], ids=["direct", "timed"])
def test_a_coroutine_that_comes_out_of_a_call_is_closed_and_refused(policy):
    made = []

    def fn():
        made.append(asynchronous())
        return made[-1]

    with pytest.raises(TypeError, match="blocking"):
        policy.call(fn)
    assert len(made) == 1
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED
