"""When a fallback answers, with what, and what is kept for later."""

import inspect
import logging

import pytest

import resilience
from resilience import ErrorRecoveryManager
from resilience.core.errors import (
    BulkheadFullError,
    CircuitOpenError,
    ConfigError,
    DeadlineExceeded,
    OperationCancelled,
    OutcomeUnknown,
    RateLimitExceeded,
    ShutdownInProgress,
    WorkersExhausted,
)
from resilience.core.events import EventStream
from resilience.core.pipeline import Call, Pipeline, invoke
from resilience.strategies.fallback import Fallback, LastGood
from resilience.testing import EventLog, Flaky, ManualClock


def raising(error):
    raise error


@pytest.fixture
def clock():
    return ManualClock(1000.0)


# fmt: off
ANSWERED = [ConnectionError("x"), TimeoutError("x"), RuntimeError("unknown"), MemoryError(), BulkheadFullError(),
            CircuitOpenError(), RateLimitExceeded(), WorkersExhausted(), DeadlineExceeded(), OutcomeUnknown()]
RAISED = [TypeError("x"), ValueError("x"), KeyError("x"), AssertionError(), NotImplementedError(), AttributeError(),
          PermissionError("x"), OperationCancelled(), ShutdownInProgress()]
# fmt: on


@pytest.mark.parametrize("error", ANSWERED, ids=lambda error: type(error).__name__)
def test_by_default_it_answers_rejections_deadlines_unknown_outcomes_and_transient_errors(error):
    assert Fallback("saved").call(raising, error) == "saved"


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_by_default_bugs_refusals_and_the_callers_own_wish_are_raised(error):
    with pytest.raises(type(error)) as caught:
        Fallback("saved").call(raising, error)
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("on", [None, BaseException, lambda error: True], ids=["default", "type", "predicate"])
def test_what_ends_the_program_is_never_answered(error, on):
    with pytest.raises(type(error)):
        Fallback("saved", on=on).call(raising, error)


@pytest.mark.parametrize(
    "on", [ValueError, (KeyError, ValueError), Exception, lambda error: str(error) == "x"],
    ids=["type", "types", "base", "predicate"],
)  # fmt: skip
def test_on_says_which_errors_are_answered(on):
    assert Fallback("saved", on=on).call(raising, ValueError("x")) == "saved"


@pytest.mark.parametrize("on", [KeyError, (KeyError, TypeError), (), lambda error: False])
def test_other_errors_are_raised(on):
    with pytest.raises(ConnectionError):
        Fallback("saved", on=on).call(raising, ConnectionError())


def test_a_success_is_not_answered():
    assert Fallback(lambda: pytest.fail("must not run")).call(lambda: None) is None


@pytest.mark.parametrize("answer", [None, 0, "text", [1], {}])
def test_a_value_is_given_as_it_is(answer):
    assert Fallback(answer).call(raising, ConnectionError()) is answer


def test_a_callable_gives_the_answer_with_the_error_if_it_takes_one():
    error = ConnectionError("down")
    assert Fallback(lambda: "plain").call(raising, error) == "plain"
    assert Fallback(lambda seen: seen).call(raising, error) is error
    assert Fallback(lambda *seen: seen).call(raising, error) == (error,)
    assert Fallback(lambda seen=None: seen).call(raising, error) is None
    assert Fallback(dict).call(raising, error) == {}


def test_an_error_of_the_fallback_is_raised_from_the_first_one():
    first, second = ConnectionError("first"), LookupError("second")
    with pytest.raises(LookupError) as caught:
        Fallback(lambda: raising(second)).call(raising, first)
    assert caught.value is second
    assert caught.value.__context__ is first
    assert caught.value.__cause__ is first


def test_what_was_answered_is_marked_on_the_call():
    call = Call(raising, (error := ConnectionError(),), {}, "x")
    assert Fallback("saved").run(invoke, call) == "saved"
    assert call.fallback_used is True
    assert call.saved_from is error
    fine = Call(int, (), {}, "x")
    Fallback("saved").run(invoke, fine)
    assert (fine.fallback_used, fine.saved_from) == (False, None)


def test_an_answer_is_told_as_event_and_logged(clock, caplog):
    stream, log = EventStream(clock=clock), EventLog()
    stream.subscribe(log)
    with caplog.at_level(logging.INFO, "resilience.fallback"):
        Pipeline(Fallback("saved", events=stream), name="api").call(raising, ConnectionError("down"))
    assert stream.flush(30)
    assert [(event.kind, event.name) for event in log.events] == [("fallback_used", "api")]
    assert "down" in log.events[0].error
    assert "api: fallback used after ConnectionError" in caplog.text


def test_chained_fallbacks_go_on_from_the_inner_to_the_outer():
    order = []

    def second_source():
        order.append("second")
        raise ConnectionError("second down")

    pipeline = Pipeline(Fallback("default"), Fallback(second_source), name="x")
    assert pipeline.call(raising, ConnectionError("first down")) == "default"
    assert order == ["second"]
    assert Pipeline(Fallback("outer"), Fallback("inner"), name="x").call(raising, ConnectionError()) == "inner"


def test_a_fallback_has_a_tenth_of_the_time_left_for_itself(clock):
    seen = []

    def inside():
        seen.append(resilience.remaining())
        resilience.sleep(60.0)

    with resilience.deadline(5.0, clock=clock):
        answer = Fallback(lambda: resilience.remaining(), clock=clock).call(inside)
    assert seen == [pytest.approx(4.5)]
    assert answer == pytest.approx(0.5)


def test_it_keeps_a_second_at_most(clock):
    with resilience.deadline(100.0, clock=clock):
        assert Fallback("saved", clock=clock).call(resilience.remaining) == pytest.approx(99.0)


def test_a_fallback_without_a_clock_keeps_to_the_clock_of_the_deadline(clock):
    with resilience.deadline(5.0, clock=clock):
        assert Fallback("saved").call(resilience.remaining) == pytest.approx(4.5)


def test_recovery_says_that_a_fallback_was_used():
    with ErrorRecoveryManager(clock=ManualClock()) as manager:
        manager.register_fallback("api_call", Fallback("saved"))
        saved = manager.execute_with_recovery("api_call", raising, PermissionError("denied"))
        assert (saved.success, saved.fallback_used) == (False, False)
        saved = manager.execute_with_recovery("api_call", raising, ConnectionError("down"))
        assert (saved.success, saved.value, saved.error, saved.fallback_used) == (True, "saved", None, True)
        fine = manager.execute_with_recovery("api_call", lambda: 1)
        assert (fine.value, fine.fallback_used) == (1, False)


def test_a_fallback_given_with_the_call_answers_for_it():
    with ErrorRecoveryManager(clock=ManualClock()) as manager:
        result = manager.execute_with_recovery("api_call", raising, ConnectionError("down"), fallback=lambda: "own")
        assert (result.value, result.fallback_used) == ("own", True)


# -- LastGood ------------------------------------------------------------------------------------------------------


def test_the_last_good_answer_is_served_while_it_is_young(clock):
    last = LastGood(10.0, clock=clock)
    source = Flaky([None, ConnectionError(), ConnectionError(), None, ConnectionError()], lambda: source.calls)
    assert last.call(source) == 1
    clock.advance(10.0)
    assert last.call(source) == 1
    clock.advance(0.1)
    with pytest.raises(ConnectionError):
        last.call(source)
    assert last.call(source) == 4
    clock.advance(9.0)
    assert last.call(source) == 4


def test_serving_an_answer_does_not_make_it_younger(clock):
    last = LastGood(10.0, clock=clock)
    source = Flaky([None, ConnectionError(), ConnectionError()])
    last.call(source)
    clock.advance(9.0)
    assert last.call(source) == "ok"
    clock.advance(9.0)
    with pytest.raises(ConnectionError):
        last.call(source)


def test_without_a_good_answer_the_error_is_raised(clock):
    with pytest.raises(ConnectionError):
        LastGood(10.0, clock=clock).call(raising, ConnectionError())


def test_each_set_of_arguments_has_its_own_answer(clock):
    last, down = LastGood(10.0, clock=clock), []

    @last
    def price(symbol, *, currency="EUR"):
        if down:
            raise ConnectionError("down")
        return f"{symbol} in {currency}"

    price("A"), price("B"), price("A", currency="USD")
    down.append(True)
    assert [price("A"), price("B"), price("A", currency="USD")] == ["A in EUR", "B in EUR", "A in USD"]
    with pytest.raises(ConnectionError):
        price("C")


def test_two_functions_never_share_an_answer(clock):
    last, down = LastGood(10.0, clock=clock), []

    def make(value):
        def read():
            if down:
                raise ConnectionError("down")
            return value

        return last(read)

    one, two = make(1), make(2)
    assert (one(), two()) == (1, 2)
    down.append(True)
    assert (one(), two()) == (1, 2)


def test_methods_of_two_objects_never_share_an_answer(clock):
    class Client:
        def __init__(self, name):
            self.name, self.down = name, False

        def read(self):
            if self.down:
                raise ConnectionError("down")
            return self.name

    last = LastGood(10.0, clock=clock)
    one, two = Client("one"), Client("two")
    assert (last.call(one.read), last.call(two.read)) == ("one", "two")
    one.down = two.down = True
    assert (last.call(one.read), last.call(two.read)) == ("one", "two")


def test_an_answer_of_none_is_an_answer(clock):
    last = LastGood(10.0, clock=clock)
    source = Flaky([None, ConnectionError()], None)
    assert last.call(source) is None
    assert last.call(source) is None


def test_arguments_that_cannot_be_hashed_share_no_memory(clock):
    last = LastGood(10.0, clock=clock)
    source = Flaky([None, ConnectionError()])
    assert last.call(source, []) == "ok"
    with pytest.raises(ConnectionError):
        last.call(source, [])


def test_the_answer_of_a_fallback_is_never_kept(clock):
    source = Flaky([ConnectionError(), ConnectionError(), None, ConnectionError()], "real")
    last = LastGood(10.0, clock=clock)
    pipeline = Pipeline(last, Fallback("made up"), name="x")
    assert pipeline.call(source) == "made up"
    assert last._kept == {}
    with pytest.raises(ConnectionError):
        last.call(source)
    assert pipeline.call(source) == "real"
    assert last.call(source) == "real"


def test_an_answer_of_its_own_is_marked_and_a_fallback_around_it_is_for_the_rest(clock):
    source = Flaky([None, ConnectionError(), ConnectionError()])
    pipeline = Pipeline(Fallback("default"), last := LastGood(10.0, clock=clock), name="x")
    assert pipeline.call(source) == "ok"
    call = Call(source, (), {}, "x")
    assert last.run(invoke, call) == "ok"
    assert call.fallback_used is True
    clock.advance(11.0)
    assert pipeline.call(source) == "default"


def test_errors_it_is_not_asked_to_cover_are_raised_though_an_answer_is_kept(clock):
    last = LastGood(10.0, clock=clock, on=ConnectionError)
    source = Flaky([None, ConnectionError(), RuntimeError()])
    last.call(source)
    assert last.call(source) == "ok"
    with pytest.raises(RuntimeError):
        last.call(source)


def test_the_oldest_answers_go_when_there_are_too_many(clock):
    last, down = LastGood(10.0, max_entries=3, clock=clock), []

    @last
    def echo(number):
        if down:
            raise ConnectionError("down")
        return number

    for number in (1, 2, 3, 1, 4):
        echo(number)
    down.append(True)
    assert [echo(number) for number in (1, 3, 4)] == [1, 3, 4]
    with pytest.raises(ConnectionError):
        echo(2)


# -- both ----------------------------------------------------------------------------------------------------------


async def coroutine():
    pass


def generator():
    yield 1


@pytest.mark.parametrize("strategy", [Fallback("x"), LastGood(1.0)], ids=["Fallback", "LastGood"])
@pytest.mark.parametrize("fn", [coroutine, generator])
def test_coroutine_and_generator_functions_are_refused(strategy, fn):
    with pytest.raises(TypeError):
        strategy(fn)


@pytest.mark.parametrize("strategy", [Fallback("x"), LastGood(1.0)], ids=["Fallback", "LastGood"])
def test_a_decorated_function_keeps_its_signature(strategy):
    @strategy
    def add(first: int, second: int = 1) -> int:
        """Adds."""
        return first + second

    assert add(1, second=2) == 3
    assert str(inspect.signature(add)) == "(first: int, second: int = 1) -> int"


@pytest.mark.parametrize("on", ["ConnectionError", 3, int, (ValueError, int), [ValueError]])
@pytest.mark.parametrize("make", [lambda on: Fallback("x", on=on), lambda on: LastGood(1.0, on=on)])
def test_a_bad_on_is_refused_by_name(make, on):
    with pytest.raises(ConfigError) as caught:
        make(on)
    assert caught.value.key == "on"


@pytest.mark.parametrize(
    ("key", "value"),
    [("ttl", 0), ("ttl", -1.0), ("ttl", float("nan")), ("ttl", None), ("max_entries", 0), ("max_entries", 1.5)],
)
def test_bad_parameters_of_last_good_are_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        LastGood(**{"ttl": 1.0, key: value})
    assert caught.value.key == key


def test_their_reprs_say_what_they_are():
    assert repr(Fallback("x")) == "Fallback('x')"
    assert repr(LastGood(2.5)) == "LastGood(2.5)"
