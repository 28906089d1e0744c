"""One owner of the retries in a call tree, however the calls are nested."""

import pytest

from resilience import ErrorRecoveryManager, Pipeline, Retry, RetryPolicy, fan_out, history
from resilience.testing import Flaky, ManualClock


@pytest.fixture
def clock():
    return ManualClock()


def plain(retries, **changes):
    return RetryPolicy(**{"max_retries": retries, "base_delay": 1.0, "max_delay": 60.0, "jitter": False, **changes})


def test_three_nested_layers_make_as_many_calls_as_the_outermost_allows(clock):
    layers = [Retry(plain(2), clock=clock) for _ in range(3)]
    work = Flaky(99)
    with pytest.raises(ConnectionError) as caught:
        layers[0].call(lambda: layers[1].call(lambda: layers[2].call(work)))
    assert work.calls == 3
    assert len(history(caught.value)) == 3


def test_nesting_is_seen_through_pipelines_decorators_and_blocks(clock):
    work = Flaky(99)
    inner = plain(2, base_delay=0.0)

    @Pipeline(inner)
    def protected():
        return work()

    for outer in (Pipeline(inner).call, Pipeline(inner)(lambda fn: fn()), inner.call):
        before = work.calls
        with pytest.raises(ConnectionError):
            outer(protected)
        assert work.calls - before == 3
    before = work.calls
    with pytest.raises(ConnectionError):
        for attempt in inner.attempts():
            with attempt:
                protected()
    assert work.calls - before == 3


def test_nesting_is_seen_across_the_hop_to_a_worker_thread():
    from resilience import Timeout

    work = Flaky(99)
    inner = plain(2, base_delay=0.0)
    with pytest.raises(ConnectionError):
        Pipeline(inner, Timeout(10.0)).call(lambda: inner.call(work))
    assert work.calls == 3


def test_a_layer_may_opt_out_of_the_single_owner(clock):
    work = Flaky(99)
    inner = Retry(plain(2, nested="multiply"), clock=clock)
    with pytest.raises(ConnectionError):
        Retry(plain(2), clock=clock).call(inner.call, work)
    assert work.calls == 9


def test_a_function_that_calls_itself_is_owned_by_its_first_call(clock):
    work = Flaky(99)
    retry = Retry(plain(2), clock=clock)

    def recursive(depth):
        return retry.call(recursive, depth - 1) if depth else work()

    with pytest.raises(ConnectionError):
        retry.call(recursive, 4)
    assert work.calls == 3


@pytest.mark.parametrize("isolation", ["caller", "thread"])
def test_nesting_is_seen_through_a_named_operation(isolation):
    work, inner = Flaky(99), plain(2, base_delay=0.0)
    with ErrorRecoveryManager() as manager:
        manager.register_retry_policy("outer", plain(2, base_delay=0.0))

        @manager.protect("outer", isolation=isolation)
        def protected():
            return inner.call(work)

        with pytest.raises(ConnectionError):
            protected()
    assert work.calls == 3


@pytest.mark.parametrize("policy", [plain(2, base_delay=0.0), plain(2, base_delay=0.0, max_elapsed=60.0)])
def test_three_layers_of_every_form_make_three_calls(policy):
    work, forms, pipeline = Flaky(1000), 0, Pipeline(policy)
    around = [policy, pipeline, lambda fn: lambda: policy.call(fn), lambda fn: lambda: pipeline.call(fn)]
    for outer in around:
        for middle in around:
            for inner in around:
                with pytest.raises(ConnectionError):
                    outer(middle(inner(work)))()
                forms += 1
    assert work.calls == 3 * forms


def test_the_inner_policy_says_that_it_left_the_retries_to_the_outer_one(clock):
    reasons, work = [], Flaky(99)

    def watched():
        try:
            Retry(plain(2), clock=clock).call(work)
        except ConnectionError as error:
            reasons.append((history(error).stop_reason, len(history(error))))
            raise

    with pytest.raises(ConnectionError):
        Retry(plain(2), clock=clock).call(watched)
    assert reasons == [("nested", 1)] * 3


def test_an_inner_policy_retries_what_no_outer_one_would(clock):
    work = Flaky([ConnectionError()] * 2)
    outer = Retry(plain(2, give_up_on=ConnectionError), clock=clock)
    assert outer.call(Retry(plain(2), clock=clock).call, work) == "ok"
    assert work.calls == 3


def test_the_outermost_of_those_that_would_retry_owns_the_retries(clock):
    work = Flaky([ConnectionError()] * 99)
    careful = Retry(plain(5, idempotent=False), clock=clock)
    middle, inner = Retry(plain(1), clock=clock), Retry(plain(3), clock=clock)
    with pytest.raises(ConnectionError):
        careful.call(middle.call, inner.call, work)
    assert work.calls == 2


def test_failing_results_belong_to_the_outermost_policy_that_calls_them_failed(clock):
    calls = []
    failing = plain(2, retry_on_result=lambda value: value is None)

    def work():
        calls.append(1)

    Retry(plain(2), clock=clock).call(Retry(failing, clock=clock).call, work)
    assert len(calls) == 3  # the outer one would take None for a success
    calls.clear()
    Retry(failing, clock=clock).call(Retry(failing, clock=clock).call, work)
    assert len(calls) == 3
    calls.clear()
    strange = plain(2, retry_on_result=lambda value: value["key"])  # made for other results
    with pytest.raises(TypeError):
        Retry(strange, clock=clock).call(Retry(failing, clock=clock).call, work)
    assert len(calls) == 3


def test_a_policy_whose_call_has_ended_owns_nothing(clock):
    outer, inner = Retry(plain(2), clock=clock), Retry(plain(2), clock=clock)
    kept = []
    outer.call(lambda: kept.append(1))
    for attempt in outer.attempts():
        with attempt:
            kept.append(2)
    work = Flaky(99)
    with pytest.raises(ConnectionError):
        inner.call(work)
    assert work.calls == 3


def test_each_item_of_a_fan_out_is_a_tree_of_its_own():
    inner, outer = plain(2, base_delay=0.0), plain(2, base_delay=0.0)
    works = [Flaky(2) for _ in range(8)]
    result = outer.call(fan_out, inner.call, works, max_workers=2, failure_threshold=1.0)
    assert result.values == ["ok"] * 8
    assert [work.calls for work in works] == [3] * 8


def test_an_outer_layer_that_opted_out_owns_nothing(clock):
    work = Flaky(99)
    outer = Retry(plain(2, nested="multiply"), clock=clock)
    with pytest.raises(ConnectionError):
        outer.call(Retry(plain(2), clock=clock).call, work)
    assert work.calls == 9
