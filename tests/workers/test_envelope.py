"""Envelopes: every error arrives as something that can be caught, shown and classified, whatever it holds."""

import importlib
import pickle
import socket
import sys
import threading

import pytest

from resilience import classify
from resilience.core.errors import CircuitOpenError, DeadlineExceeded
from resilience.workers.envelope import pack_error, pack_value, unpack_error, unpack_value
from resilience.workers.wire import CALL, Inbox, frame, receive, send_all

try:
    ExceptionGroup  # noqa: B018  # not before Python 3.11
except NameError:
    from exceptiongroup import ExceptionGroup


def travelled(error):
    return unpack_error(pack_error(error, "a test"))


def raised(fn):
    try:
        fn()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("one", 2),
        ConnectionRefusedError(111, "refused"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        KeyboardInterrupt(),
        CircuitOpenError(name="b", retry_after=3.0),
        DeadlineExceeded(name="x", timeout=1.0, reclaimed=True, stack="here"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was(error):
    back = travelled(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    if isinstance(error, Exception):
        assert classify(back).reason == classify(error).reason


def test_causes_contexts_and_their_suppression_travel():
    def fail():
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise OSError(5, "second")  # noqa: B904
        except OSError as error:
            raise RuntimeError("third") from error

    back = travelled(raised(fail))
    assert back.__suppress_context__
    assert isinstance(back.__cause__, OSError)
    assert isinstance(back.__cause__.__context__, KeyError)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """The name of a library that the worker has imported; `forget` is what the parent's process knows of it."""
    (tmp_path / "some_driver.py").write_text("class Lost(OSError):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_driver"
    sys.modules.pop("some_driver", None)


@pytest.mark.parametrize("is_here", [True, False])
def test_the_cause_of_an_error_of_ours_imports_no_library_for_the_caller(driver, is_here):
    error = DeadlineExceeded(name="x", timeout=1.0)
    error.__cause__ = importlib.import_module(driver).Lost("reset")
    data = pack_error(error, "a test")
    if not is_here:
        del sys.modules[driver]
    back = unpack_error(data)
    assert type(back) is DeadlineExceeded
    assert (driver in sys.modules) is is_here
    assert type(back.__cause__).__name__ == ("Lost" if is_here else "Exception")
    assert str(back.__cause__) == ("reset" if is_here else "some_driver.Lost: reset")


def test_the_cause_of_any_other_error_may_be_what_classifies_it(driver):
    error = RuntimeError("no data")
    error.__cause__ = importlib.import_module(driver).Lost("reset")
    data = pack_error(error, "a test")
    del sys.modules[driver]
    assert type(unpack_error(data).__cause__).__name__ == "Lost"


def test_a_circle_of_causes_ends():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    back = travelled(one)
    assert str(back.__cause__) == "two"
    assert back.__cause__.__cause__ is None


def test_a_long_chain_is_cut():
    error = None
    for number in range(100):
        link = ValueError(number)
        link.__cause__ = error
        error = link
    back, length = travelled(error), 0
    while back is not None:
        back, length = back.__cause__, length + 1
    assert 5 < length < 20


def test_a_group_with_a_member_that_cannot_be_pickled_keeps_all_members():
    held = ValueError("held")
    held.lock = threading.Lock()
    back = travelled(ExceptionGroup("several", [KeyError("plain"), held, *[OSError(n) for n in range(20)]]))
    assert back.message == "several"
    assert [type(member) for member in back.exceptions] == [KeyError, ValueError] + [OSError] * 20
    assert "without what cannot be sent" in back.exceptions[1].__notes__[0]


def test_an_error_that_resists_everything_still_arrives():
    class Hostile(LookupError):
        def __str__(self):
            return "hostile"

        def __reduce__(self):
            raise TypeError("no")

    back = travelled(Hostile("x"))
    assert type(back) is LookupError
    assert str(back) == "hostile"


class Mute(Exception):
    def __init__(self, *, needed):
        super().__init__()

    def __str__(self):
        return self.missing


class Opaque:
    def __repr__(self):
        raise LookupError("not for you")

    def __reduce__(self):
        raise TypeError("stays here")


@pytest.mark.parametrize(
    ("error", "arrives_as", "text"),
    [(Mute(needed=1), Exception, "(Mute: it cannot be shown)"),
     (ValueError(Opaque()), ValueError, "(Opaque: it cannot be shown)")],
)  # fmt: skip
def test_an_error_that_cannot_show_itself_still_arrives(error, arrives_as, text):
    back = unpack_error(pack_error(error, "here"))
    assert type(back) is arrives_as
    assert str(back) == text
    assert type(error).__name__ in "".join(back.__notes__)


def test_values_that_do_not_travel_say_so():
    with pytest.raises(TypeError, match="return plain data instead of lock"):
        pack_value(len, threading.Lock())
    assert unpack_value(pack_value(len, {"a": 1})) == {"a": 1}
    with pytest.raises(TypeError, match="cannot be loaded here"):
        unpack_value(b"garbage")
    assert isinstance(unpack_error(b"garbage"), RuntimeError)
    assert isinstance(unpack_error(pickle.dumps((None, ""))), RuntimeError)


def test_frames_are_put_together_from_pieces_of_any_size():
    here, there = socket.socketpair()
    with here, there:
        there.setblocking(False)
        inbox = Inbox(there)
        assert inbox.take() is None
        data = frame(CALL, b"x" * 1000) + frame(CALL, b"")
        for position in range(0, len(data), 7):
            here.sendall(data[position : position + 7])
            inbox.fill()
        assert inbox.take() == (CALL, b"x" * 1000)
        assert inbox.take() == (CALL, b"")
        assert inbox.take() is None
        there.setblocking(True)
        send_all(here, frame(CALL, b"again"))
        assert receive(there) == (CALL, b"again")
        here.close()
        assert receive(there) is None


def test_garbage_on_the_line_is_no_frame():
    here, there = socket.socketpair()
    with here, there:
        there.setblocking(False)
        inbox = Inbox(there)
        here.sendall(b"Stack (most recent call first):")
        inbox.fill()
        with pytest.raises(ValueError, match="not a frame"):
            inbox.take()
