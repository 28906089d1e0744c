"""What `classify` does whatever the library: rules of the user, chains, groups, memory, and never raising."""

import gc
import itertools
import pickle
import subprocess
import sys
import timeit
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Classification, Classifier, ConfigError, ErrorCategory, classify
from resilience.core import classify as module_under_test

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

T, P, R, L = ErrorCategory.TRANSIENT, ErrorCategory.PERMANENT, ErrorCategory.RESOURCE, ErrorCategory.LOGIC


class Unheard(Exception):
    pass


def raised_by(act):
    try:
        act()
    except BaseException as error:
        return error
    return pytest.fail("nothing was raised")


def chained(*errors, by="cause"):
    """The last of `errors`, each raised from, or while handling, the one before."""
    for before, after in itertools.pairwise(errors):
        if by == "cause":
            after.__cause__ = before
        after.__context__ = before
    return errors[-1]


# -- the value ---------------------------------------------------------------------------------------------------------


def test_a_classification_is_an_immutable_value_that_reads_well():
    verdict = Classification(T, outcome="answered", retry_after=3, reason="http:429")
    assert repr(verdict) == "Classification(transient, retryable, answered, retry_after=3, reason='http:429')"
    assert verdict == Classification("transient", True, "answered", 3.0, "http:429")
    assert hash(verdict) == hash(pickle.loads(pickle.dumps(verdict)))
    assert verdict != Classification(T, outcome="answered", reason="http:429")
    for change in (lambda: setattr(verdict, "reason", "x"), lambda: delattr(verdict, "reason")):
        assert isinstance(raised_by(change), AttributeError)
    assert not hasattr(verdict, "__dict__")


def test_transient_and_resource_errors_are_retryable_unless_said_otherwise():
    assert [Classification(category).retryable for category in (T, R, P, L)] == [True, True, False, False]
    assert not Classification(T, retryable=False).retryable


@pytest.mark.parametrize(
    ("key", "value"),
    [("category", "fatal"), ("category", None), ("outcome", "sent"), ("outcome", None), ("retry_after", -1.0),
     ("retry_after", float("nan")), ("retry_after", float("inf")), ("retry_after", "5")],
)  # fmt: skip
def test_a_classification_refuses_bad_values(key, value):
    with pytest.raises(ConfigError) as refused:
        Classification(**{"category": T, key: value})
    assert refused.value.key == key


# -- rules of the user -------------------------------------------------------------------------------------------------


def test_rules_of_the_user_come_first_and_in_order():
    mine = Classification(P, reason="mine")
    classifier = Classifier(
        rules=[
            lambda error: None,
            (KeyError, T),
            ((OSError, EOFError), mine),
            (lambda error: "quota" in str(error), R),
            lambda error: L if isinstance(error, Unheard) else None,
        ]
    )
    assert classifier.classify(KeyError("x")) == Classification(T, reason="rule:KeyError")
    assert classifier.classify(ConnectionRefusedError()) is mine
    assert classifier.classify(EOFError()) is mine
    assert classifier.classify(RuntimeError("over quota")).category == R
    assert classifier.classify(Unheard()).category == L
    assert classifier.classify(ValueError("x")) is classify(ValueError("x"))
    assert classifier.classify(RuntimeError("x")) is classify(RuntimeError("x"))


def test_rules_name_themselves_as_the_reason():
    def by_hand(error):
        return "permanent"

    assert Classifier([by_hand]).classify(Unheard()).reason == "rule:by_hand"
    assert Classifier([((KeyError, IndexError), T)]).classify(KeyError()).reason == "rule:KeyError|IndexError"


def test_rules_are_asked_about_causes_and_members_of_groups_too():
    classifier = Classifier([(LookupError, T), (Unheard, R)])
    assert classifier.classify(chained(Unheard(), RuntimeError("x"))).category == R
    assert classifier.classify(ExceptionGroup("g", [KeyError(), OSError(24, "x")])).retryable
    whole = Classifier([(ExceptionGroup, P)])
    assert whole.classify(ExceptionGroup("g", [OSError()])).reason == "rule:ExceptionGroup"
    assert whole.classify(chained(ExceptionGroup("g", [OSError()]), Unheard())).category == P


def test_what_is_no_exception_is_never_retryable_whatever_the_rules_say():
    classifier = Classifier([(BaseException, T), lambda error: T])
    for error in (KeyboardInterrupt(), SystemExit(), GeneratorExit(), BaseExceptionGroup("g", [KeyboardInterrupt()])):
        assert not classifier.classify(error).retryable
        assert not classify(error).retryable


@pytest.mark.parametrize(
    "rules",
    [5, None, [5], ["transient"], [ValueError], [(ValueError,)], [(ValueError, T, T)], [(ValueError, None)],
     [(ValueError, "fatal")], [("ValueError", T)], [((), T)], [((ValueError, 5), T)], [(int, T)], (ValueError, T),
     [[ValueError, T]]],
    ids=repr,
)  # fmt: skip
def test_bad_rules_are_refused(rules):
    with pytest.raises(ConfigError) as refused:
        Classifier(rules=rules)
    assert refused.value.key == "rules"


def test_an_opinion_of_a_rule_that_is_none_is_refused_when_it_is_given():
    with pytest.raises(ConfigError, match="expected a Classification"):
        Classifier([lambda error: True]).classify(Unheard())


def test_an_exception_of_a_rule_passes_through():
    with pytest.raises(ZeroDivisionError):
        Classifier([lambda error: 1 / 0]).classify(Unheard())


# -- chains ------------------------------------------------------------------------------------------------------------


def test_the_own_type_comes_before_the_cause():
    assert classify(chained(ConnectionRefusedError(), ValueError("bad answer"))).reason == "python:ValueError"


def test_a_type_without_a_verdict_is_judged_by_its_cause():
    assert classify(chained(ConnectionRefusedError(), Unheard())).outcome == "not_sent"
    assert classify(chained(FileNotFoundError(), Unheard(), RuntimeError("x"))).reason == "errno:ENOENT"
    assert classify(chained(RuntimeError("x"), Unheard())).reason == "unknown"


def test_a_type_without_a_verdict_is_judged_by_its_context_unless_that_is_suppressed():
    def wraps():
        try:
            raise PermissionError("no")
        except PermissionError:
            raise Unheard("while handling it")  # noqa: B904  # the subject

    def hides():
        try:
            raise PermissionError("no")
        except PermissionError:
            raise Unheard("instead of it") from None

    assert classify(raised_by(wraps)).category == P
    assert classify(raised_by(hides)).category == T


def test_the_cause_comes_before_the_context():
    error = Unheard()
    error.__cause__, error.__context__ = MemoryError(), ValueError()
    assert classify(error).reason == "python:MemoryError"
    error.__cause__ = None
    error.__suppress_context__ = False
    assert classify(error).reason == "python:ValueError"


def test_what_was_handled_when_the_call_began_says_nothing_about_the_call():
    def call():
        raise Unheard("for reasons of its own")

    def call_that_handles():
        try:
            raise MemoryError
        except MemoryError:
            raise Unheard("inside")  # noqa: B904  # the subject

    for handled in (ValueError("before"), chained(Unheard(), KeyError("long before"), by="context")):
        try:
            raise handled
        except Exception as handling:
            error, inner = raised_by(call), raised_by(call_that_handles)
            assert classify(error).category == L  # nobody said what was being handled
            assert classify(error, handling=handling).reason == "unknown"
            assert classify(inner, handling=handling).reason == "python:MemoryError"
            assert Classifier([(KeyError, P), (ValueError, P)]).classify(error, handling=handling).reason == "unknown"


def test_an_error_that_was_handled_and_is_raised_again_is_judged_without_its_context():
    handled = chained(ValueError("long before"), Unheard("before"), by="context")
    assert classify(handled, handling=handled).reason == "unknown"
    assert classify(handled).reason == "python:ValueError"


def test_cycles_and_long_chains_end():
    first, second = Unheard(), Unheard()
    first.__cause__, second.__cause__ = second, first
    assert classify(first).reason == "unknown"
    first.__cause__ = first
    assert classify(first).reason == "unknown"
    first.__cause__, first.__context__ = None, first
    assert classify(first).reason == "unknown"
    assert classify(chained(*(Unheard() for _ in range(100_000)))).reason == "unknown"
    deep = chained(MemoryError(), *(Unheard() for _ in range(50)))
    assert classify(deep).reason == "python:MemoryError"


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "verdict"),
    [
        ([OSError(111, "x"), TimeoutError()], (T, True, "unknown", "group:errno:ECONNREFUSED")),
        ([OSError(111, "x"), OSError(24, "x")], (R, True, "not_sent", "group:errno:EMFILE")),
        ([OSError(111, "x"), OSError(2, "x")], (P, False, "not_sent", "group:errno:ENOENT")),
        ([OSError(24, "x"), OSError(2, "x"), ValueError()], (L, False, "unknown", "group:python:ValueError")),
        ([Unheard(), RuntimeError()], (T, True, "unknown", "group:unknown")),
        ([OSError(24, "x"), ExceptionGroup("in", [KeyError()])], (L, False, "unknown", "group:python:LookupError")),
    ],
)
def test_a_group_is_retryable_if_every_member_is_and_the_worst_names_the_category(members, verdict):
    for order in (members, members[::-1]):
        found = classify(ExceptionGroup("g", order))
        assert (found.category, found.retryable, found.outcome) == verdict[:3]
    assert classify(ExceptionGroup("g", members)).reason == verdict[3]


def test_members_of_groups_are_judged_by_their_causes_and_the_longest_wait_counts():
    from resilience import RateLimitExceeded

    waits = [RateLimitExceeded(name="r", retry_after=seconds) for seconds in (1.0, 3.0, 2.0)]
    assert classify(ExceptionGroup("g", waits)).retry_after == 3.0
    assert not classify(ExceptionGroup("g", [waits[0], chained(KeyError(), Unheard())])).retryable
    assert classify(chained(ExceptionGroup("g", [KeyError()]), Unheard())).category == L


def test_a_final_member_makes_its_group_final_whatever_its_category():
    from resilience import CircuitOpenError

    found = classify(ExceptionGroup("g", [OSError(24, "x"), CircuitOpenError(name="b")]))
    assert (found.category, found.retryable) == (T, False)


def test_members_with_a_cause_in_common_are_all_judged_by_it():
    cause = chained(ConnectionRefusedError(), Unheard())
    members = [chained(cause, Unheard()), chained(cause, Unheard())]
    assert classify(ExceptionGroup("g", members)).outcome == "not_sent"


def test_a_group_with_an_interrupt_is_never_retryable():
    found = classify(BaseExceptionGroup("g", [OSError(111, "x"), KeyboardInterrupt()]))
    assert (found.retryable, found.reason) == (False, "group:base:KeyboardInterrupt")


def test_deep_wide_and_knotted_groups_end():
    deep = KeyError()
    for _ in range(500):
        deep = ExceptionGroup("g", [deep])
    assert classify(deep).category == L
    shared = OSError(111, "x")
    for _ in range(40):  # 2 ** 40 ways to the bottom
        shared = ExceptionGroup("g", [shared, ExceptionGroup("h", [shared])])
    assert classify(shared).reason == "group:errno:ECONNREFUSED"
    assert classify(ExceptionGroup("wide", [Unheard() for _ in range(10_000)] + [KeyError()])).category == L
    member = Unheard()
    knot = ExceptionGroup("g", [member])
    member.__cause__ = knot
    assert classify(knot).retryable
    error = Unheard()
    for _ in range(300):  # causes that are groups, whose members have causes that are groups ...
        error = chained(ExceptionGroup("g", [error]), Unheard())
    assert classify(error).category == T


# -- memory, speed, lightness ------------------------------------------------------------------------------------------


def test_what_the_type_alone_decides_is_one_object():
    assert classify(ConnectionRefusedError()) is classify(ConnectionRefusedError(111, "other"))
    assert classify(RuntimeError("a")) is classify(RuntimeError("b")) is classify(Exception())
    assert classify(OSError(24, "a")) is classify(OSError(24, "b"))
    assert classify(ValueError()) is classify(chained(MemoryError(), ValueError()))


def test_memory_does_not_grow_with_types_made_as_the_program_goes():
    first = type("Passing", (Exception,), {})
    classify(first())
    gone = weakref.ref(first)
    del first
    for number in range(3_000):
        base = (Unheard, ValueError, OSError, KeyboardInterrupt)[number % 4]
        classify(type(f"Passing{number}", (base,), {})())
        for memory in (module_under_test._plans, module_under_test._fixed, module_under_test._groups):
            assert len(memory) <= module_under_test._REMEMBERED
    gc.collect()
    assert gone() is None
    assert classify(ConnectionRefusedError()).reason == "errno:ECONNREFUSED"


def test_classifying_again_is_cheap():
    for error, promised in ((RuntimeError("x"), 300e-9), (ConnectionRefusedError(), 300e-9), (OSError(24, ""), 400e-9)):
        best = min(timeit.repeat(lambda error=error: classify(error), number=2_000, repeat=5)) / 2_000
        assert best < promised * 10, f"{best * 1e9:.0f} ns for {error!r}"


def test_no_library_is_imported_to_judge():
    code = """if 1:
        import sys
        from resilience import classify
        def made(module, name, base=Exception):
            return type(name, (base,), {"__module__": module, "__qualname__": name})()
        for module, name in (("redis.exceptions", "ResponseError"), ("psycopg2", "OperationalError"),
                             ("requests.exceptions", "HTTPError"), ("sqlite3", "OperationalError"),
                             ("subprocess", "CalledProcessError"), ("ssl", "SSLError"), ("mine", "Error")):
            print(classify(made(module, name)).reason)
        heavy = {"redis", "psycopg2", "requests", "urllib3", "sqlite3", "subprocess", "ssl", "socket", "http.client",
                 "typing", "dataclasses", "logging", "email", "datetime", "threading"}
        print(sorted(heavy & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=library_path())
    assert done.stderr == ""
    assert done.stdout.split("\n")[:-1] == [
        "redis:ResponseError", "psycopg2:OperationalError", "requests:HTTPError", "sqlite:OperationalError",
        "subprocess:CalledProcessError", "ssl:SSLError", "unknown", "[]",
    ]  # fmt: skip


def library_path():
    """Only our own package: what the site would load by itself is no concern of this test."""
    from pathlib import Path

    return {"PYTHONPATH": str(Path(module_under_test.__file__).parents[2])}


# -- never raising -----------------------------------------------------------------------------------------------------


class Hides(Exception):
    __cause__ = property(lambda self: 1 / 0)
    __context__ = property(lambda self: 1 / 0)
    errno = args = response = reason = property(lambda self: 1 / 0)

    def __str__(self):
        raise RecursionError


class Lies(OSError):
    __cause__ = "nothing"
    __suppress_context__ = False
    errno = (24,)
    exceptions = 5


class Nameless(Exception):
    __module__ = None


KINDS = [
    Unheard, RuntimeError, OSError, ConnectionRefusedError, ValueError, MemoryError, KeyboardInterrupt, SystemExit,
    Hides, Lies, Nameless, TypeError, TimeoutError, EOFError, StopIteration, UserWarning,
]  # fmt: skip
LEAVES = st.builds(
    lambda kind, args: kind(*args),
    st.sampled_from(KINDS),
    st.lists(st.none() | st.text() | st.integers() | st.just([]) | st.builds(Unheard), max_size=3),
)


def a_group(members):
    return BaseExceptionGroup("g", members)


ERRORS = st.recursive(LEAVES, lambda inner: st.builds(a_group, st.lists(inner, min_size=1, max_size=4)), max_leaves=12)


@pytest.mark.parametrize("kind", [Hides, Lies, Nameless])
def test_strange_classes_are_judged_without_raising(kind):
    assert classify(kind()).retryable
    assert Classifier([lambda error: None]).classify(kind()).retryable
    assert classify(chained(kind(), Unheard())).retryable


@given(st.lists(ERRORS, min_size=1, max_size=6), st.data())
def test_no_tangle_of_exceptions_makes_it_raise_or_retry_what_it_must_not(errors, data):
    for error in errors:
        for link in ("__cause__", "__context__"):
            if not isinstance(error, (Hides, Lies)):
                setattr(error, link, data.draw(st.none() | st.sampled_from(errors)))
    handling = data.draw(st.none() | st.sampled_from(errors))
    for judge in (classify, Classifier([(Unheard, P), lambda error: None]).classify):
        for error in errors:
            verdict = judge(error, handling=handling)
            assert isinstance(verdict, Classification)
            assert verdict.outcome in ("not_sent", "unknown", "answered", "partial")
            assert verdict.reason
            if not isinstance(error, Exception):
                assert not verdict.retryable
            if isinstance(error, BaseExceptionGroup):
                assert verdict.retryable == all(
                    judge(member, handling=handling).retryable for member in error.exceptions
                )
