"""Wrappers with the parameters of what they wrap: calls, errors and looks are the function's own."""

import functools
import inspect
import traceback

import pytest

from resilience import CircuitBreaker, CircuitBreakerConfig, Pipeline, RetryPolicy
from resilience.core import signature
from resilience.core.signature import Template


def none():
    return ()


def plain(a, b):
    return a, b


def with_defaults(a, b=2, c=None):
    return a, b, c


def positional(a, b=5, /, c=6):
    return a, b, c


def named(a, *, key, other=4):
    return a, key, other


def variadic(a, *rest, **more):
    return a, rest, more


def of_our_own_words(fn, token, lead, pipeline, result, Call=1, grant=2, breaker=3):
    return fn, token, lead, pipeline, result, Call, grant, breaker


CALLS = [
    (none, (), {}),
    (plain, (1, 2), {}),
    (plain, (1,), {"b": 2}),
    (with_defaults, (1,), {}),
    (with_defaults, (1,), {"c": 3}),
    (positional, (1,), {"c": 3}),
    (named, (1,), {"key": 2}),
    (named, (), {"a": 1, "key": 2, "other": 3}),
    (variadic, (1, 2, 3), {"x": 4}),
    (of_our_own_words, (1, 2, 3, 4, 5), {"Call": 6}),
]
GUARDS = [
    lambda: Pipeline(RetryPolicy(base_delay=0.0), CircuitBreaker("b")),
    lambda: Pipeline(RetryPolicy(base_delay=0.0)),
    lambda: CircuitBreaker("b"),
    lambda: CircuitBreaker("b", CircuitBreakerConfig(slow_call_duration=60.0)),  # no express lane
]


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize(("fn", "args", "kwargs"), CALLS)
def test_a_call_arrives_as_it_was_made(guard, fn, args, kwargs):
    assert guard()(fn)(*args, **kwargs) == fn(*args, **kwargs)


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("fn", [none, plain, with_defaults, positional, named, variadic])
def test_a_failed_call_is_repeated_with_the_same_arguments(guard, fn):
    seen = []

    def failing(*args, **kwargs):
        seen.append((args, kwargs))
        raise ConnectionError

    calls = {none: ((), {}), plain: ((1, 2), {}), with_defaults: ((1, 2, None), {}), positional: ((1, 5, 6), {}),
             named: ((1,), {"key": 2, "other": 4}), variadic: ((1, 2), {"x": 3})}  # fmt: skip
    args, kwargs = calls[fn]
    wrapped = guard()(_with_body(fn, failing))
    with pytest.raises(ConnectionError):
        wrapped(*args, **kwargs)
    assert seen and all(each == seen[0] for each in seen)


def _with_body(fn, body):
    """A function with the parameters of `fn` that hands them to `body` by what they are."""
    parameters = inspect.signature(fn).parameters.values()
    text = ", ".join(
        f"{each.name}={each.name}" if each.kind is each.KEYWORD_ONLY
        else {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "") + each.name
        for each in parameters
    )  # fmt: skip
    made = {"body": body}
    exec(f"def made{inspect.signature(fn)}:\n    return body({text})", made)
    return made["made"]


@pytest.mark.parametrize("fn", [none, plain, with_defaults, positional, named, variadic, of_our_own_words])
def test_it_looks_like_the_function(fn):
    wrapped = CircuitBreaker("b")(fn)
    assert inspect.signature(wrapped) == inspect.signature(fn)
    assert wrapped.__name__ == fn.__name__ and wrapped.__qualname__ == fn.__qualname__ and wrapped.__wrapped__ is fn


def test_a_wrong_call_is_refused_in_the_name_of_the_function_and_counts_nothing():
    breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=1))
    with pytest.raises(TypeError, match=r"plain\(\) missing 1 required positional argument: 'b'"):
        breaker(plain)(1)
    assert breaker.stats.failures == 0 and breaker.stats.permitted == 0


def test_methods_partials_builtins_and_callables_work():
    breaker = CircuitBreaker("b")

    class Service:
        @breaker
        def get(self, item, default=None):
            return self, item, default

        __call__ = get

    service = Service()
    assert service.get(1) == (service, 1, None) and service.get(item=2, default=3) == (service, 2, 3)
    assert breaker(service.get)(4) == (service, 4, None)
    assert breaker(service)(5) == (service, 5, None)
    assert breaker(functools.partial(plain, 1))(2) == (1, 2)
    assert breaker(len)([1]) == 1
    assert breaker(int)("7") == 7


def test_its_lines_are_shown_in_tracebacks():
    with pytest.raises(ZeroDivisionError) as caught:
        CircuitBreaker("b")(lambda x: 1 / x)(0)
    assert "result = fn(x)" in "".join(traceback.format_exception(None, caught.value, caught.value.__traceback__))


def test_functions_of_one_shape_share_one_code_and_endless_shapes_are_not_kept(monkeypatch):
    monkeypatch.setattr(signature, "_MOST_SHAPES", 3)
    told = []
    template = Template("    def wrapper({parameters}):\n        return fn({arguments}), {packed}", (), {})
    template.each_code(told.append)
    made = {}
    for number in range(8):
        exec(f"def f{number}(p{number}): return p{number}", made)
        assert template.wrap(made[f"f{number}"])(number)[0] == number
    same = template.wrap(lambda p0: p0)
    assert same.__code__ is template.wrap(made["f0"]).__code__
    assert len(told) <= 5
    late = []
    template.each_code(late.append)
    assert late == told
