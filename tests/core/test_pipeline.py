"""The composed pipeline is the whole truth; the express lane in front of it changes nothing but the cost."""

import asyncio
import functools
import inspect
from dataclasses import dataclass

import pytest

from resilience import CircuitBreaker, ErrorRecoveryManager, RetryPolicy, Timeout
from resilience.core.errors import ConfigError
from resilience.core.pipeline import Call, Pipeline


class Recorder:
    def __init__(self, name, log):
        self.name = name
        self.log = log

    def run(self, proceed, call):
        self.log.append(f"{self.name} in")
        try:
            return proceed(call)
        finally:
            self.log.append(f"{self.name} out")


class Twice:
    """Quiet: does nothing around a success; repeats a failure once."""

    quiet = True
    name = "twice"

    def run(self, proceed, call):
        try:
            return proceed(call)
        except ValueError:
            call.attempt = 2
            return proceed(call)


def test_the_first_strategy_is_the_outermost():
    log = []
    pipeline = Pipeline(Recorder("a", log), Recorder("b", log))
    assert pipeline.call(lambda: log.append("fn") or 7) == 7
    assert log == ["a in", "b in", "fn", "b out", "a out"]


def test_a_pipeline_is_a_strategy():
    log = []
    inner = Pipeline(Recorder("b", log))
    assert Pipeline(Recorder("a", log), inner).call(lambda: 1) == 1
    assert log == ["a in", "b in", "b out", "a out"]


def test_the_representation_shows_the_nesting():
    log = []
    assert repr(Pipeline(Recorder("a", log), Twice(), name="job")) == "<Pipeline 'job': Recorder[a](Twice[twice](fn))>"


def test_what_is_neither_strategy_nor_policy_is_refused():
    with pytest.raises(ConfigError) as caught:
        Pipeline("retry")
    assert caught.value.key == "strategies"


def test_the_express_lane_hands_a_failure_over_without_running_the_function_twice():
    calls = []

    def fails_once(value):
        calls.append(value)
        if len(calls) == 1:
            raise ValueError("first")
        return value

    assert Pipeline(Twice()).call(fails_once, 5) == 5
    assert calls == [5, 5]
    calls.clear()
    assert Pipeline(Twice())(fails_once)(6) == 6
    assert calls == [6, 6]


def test_the_traceback_of_a_failure_reaches_the_users_line():
    def broken():
        raise KeyError("users line")

    with pytest.raises(KeyError) as caught:
        Pipeline(Twice()).call(broken)
    assert caught.traceback[-1].name == "broken"
    assert caught.value.__context__ is None


def test_a_base_exception_passes_the_express_lane_untouched():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline(Twice()).call(stop)


def test_decorating_keeps_name_signature_and_documentation():
    @Pipeline(Twice())
    def fetch(url: str, *, timeout: float = 1.0) -> str:
        """Fetches."""
        return url

    assert fetch.__name__ == "fetch"
    assert fetch.__doc__ == "Fetches."
    assert list(inspect.signature(fetch).parameters) == ["url", "timeout"]
    assert fetch("x", timeout=2.0) == "x"


async def coroutine():
    return 1


async def async_generator():
    yield 1


def generator():
    yield 1


class AsyncCallable:
    async def __call__(self):
        return 1


@pytest.mark.parametrize(
    "fn", [coroutine, async_generator, generator, functools.partial(coroutine), AsyncCallable()],
    ids=["coroutine", "async generator", "generator", "partial", "object"],
)  # fmt: skip
def test_functions_whose_work_happens_after_they_return_are_refused(fn):
    with pytest.raises(TypeError, match=r"protect|asyncio"):
        Pipeline()(fn)


def test_a_coroutine_that_comes_back_from_a_call_is_closed_and_refused():
    for strategies in ((), (Recorder("a", []),)):
        with pytest.raises(TypeError, match="coroutine"):
            Pipeline(*strategies).call(coroutine)


def test_an_async_caller_may_still_use_blocking_functions():
    async def main():
        return Pipeline(Twice()).call(lambda: 3)

    assert asyncio.run(main()) == 3


def test_a_call_keeps_its_arguments():
    call = Call(max, (1, 2), {"default": 0}, "op")
    assert (call.args, call.kwargs, call.name, call.attempt) == ((1, 2), {"default": 0}, "op", 1)


@dataclass(frozen=True)
class Frozen(Exception):
    """Refuses every attribute, also those that Python itself sets."""

    code: int


@pytest.mark.parametrize("isolation", ["thread", "caller"])
def test_an_error_that_refuses_attributes_is_raised_as_it_is(isolation):
    def fail():
        raise Frozen(7) from ConnectionError("down")

    strategies = RetryPolicy(max_retries=1, base_delay=0.0), CircuitBreaker("x"), Timeout(60.0, isolation=isolation)
    with pytest.raises(Frozen) as caught:
        Pipeline(*strategies).call(fail)
    assert caught.value.code == 7
    assert isinstance(caught.value.__cause__, ConnectionError)
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("x", RetryPolicy(max_retries=1, base_delay=0.0))
        with pytest.raises(Frozen):
            manager.protect("x", isolation=isolation)(fail)()
