"""The express lane: a context that is made when somebody looks is the same one for as long as its call runs."""

import gc

import pytest

from resilience import ErrorRecoveryManager, OperationCancelled, RetryPolicy, current
from resilience.core.context import OperationContext
from resilience.testing import ManualClock


@pytest.fixture
def manager():
    with ErrorRecoveryManager(clock=ManualClock()) as made:
        yield made


def lanes(manager, *bodies):
    """Nested calls in the express lane, outermost first: each body is given what calls the next one."""
    call = None
    for depth, body in reversed(list(enumerate(bodies))):
        call = in_lane(manager, f"level {depth}", body, call)
    return call


def in_lane(manager, name, body, inner):
    call = manager.protect(name, isolation="caller")(lambda look: body(inner and (lambda: inner(look)), look))
    call(False)  # the lane opens with the second call
    return call


def outermost():
    context = current()
    while context.parent is not None:
        context = context.parent
    return context


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_cancel_from_inside_of_a_nested_lane_holds_in_those_around_it(manager, depth):
    begun = []

    def cancel(inner, look):
        if look:
            outermost().cancel("enough")

    def go_on(inner, look):
        inner()
        if look:
            begun.append(current().operation)
            current().checkpoint()

    call = lanes(manager, *[go_on] * (depth - 1), cancel)
    with pytest.raises(OperationCancelled, match="enough"):
        call(True)
    assert begun == [f"level {depth - 2}"]
    call(False)


def test_a_call_has_one_context_however_often_it_is_looked_at_from_the_inside(manager):
    seen = []

    def look_out(inner, look):
        seen.append(outermost())

    def around(inner, look):
        for _ in range(3):
            inner()

    lanes(manager, around, lambda inner, look: inner(), look_out)(True)
    assert len({id(context) for context in seen[-3:]}) == 1


def test_contexts_of_ended_calls_do_not_pile_up(manager):
    def contexts():
        gc.collect()
        return sum(type(thing) is OperationContext for thing in gc.get_objects())

    def around(inner, look):
        for _ in range(300 if look else 1):
            inner()

    def through(inner, look):
        inner()

    call = lanes(manager, through, around, through, lambda inner, look: current())
    before = contexts()
    call(True)
    assert contexts() < before + 20


@pytest.mark.parametrize("nested", [False, True])
def test_a_call_cancelled_in_its_first_attempt_makes_no_second_one(manager, nested):
    manager.register_retry_policy("level 0", RetryPolicy(max_retries=3, base_delay=0.0))
    attempts = []

    def cancel(inner, look):
        if look:
            outermost().cancel("enough")

    def attempt(inner, look):
        if look:
            attempts.append(1)
        inner() if nested else cancel(None, look)
        if look:
            raise ConnectionError("down")

    call = lanes(manager, attempt, *([cancel] if nested else []))
    with pytest.raises((OperationCancelled, ConnectionError)):
        call(True)
    assert attempts == [1]
