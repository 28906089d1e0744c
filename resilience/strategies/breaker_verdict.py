"""What a breaker makes of an exception: a failure of the dependency, a success of it, or nobody's.

Loaded at the first failure, since it brings the table of all errors with it.
"""

from __future__ import annotations

import sys

from ..core.classify import classify
from ..core.errors import (
    CallRejected,
    DeadlineExceeded,
    ErrorCategory,
    OperationCancelled,
    OutcomeUnknown,
    ResilienceError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from .breaker_config import CircuitBreakerConfig

ORDINARY: set[type] = set()  # types of exceptions, other than ours, that only `classify` need be asked about
_MOST_ORDINARY = 1_000  # types are few, unless a program makes them as it goes
_BLAMELESS = (ErrorCategory.PERMANENT, ErrorCategory.LOGIC)


def verdict(config: CircuitBreakerConfig, error: BaseException) -> bool | None:
    """True for a failure, False for a success (an `is_failure` may say so), None for an outcome to ignore.

    Ignored: whatever is not an `Exception`, our rejections (nothing ran), the caller's cancel and ambient deadline;
    and, unless `is_failure` decides, what `classify` calls PERMANENT or LOGIC: the dependency did its work.
    """
    ours = isinstance(error, ResilienceError)
    if ours and _is_neutral(error):
        return None
    if not isinstance(error, Exception):
        return None
    if config.is_failure is not None:
        return config.is_failure(error, None)
    if ours and isinstance(error, (DeadlineExceeded, OutcomeUnknown)):
        return True
    if not ours and len(ORDINARY) < _MOST_ORDINARY:
        ORDINARY.add(type(error))
    handling = None if error.__context__ is None else _handled_outside(error)
    return None if classify(error, handling=handling).category in _BLAMELESS else True


def timed_out(error: BaseException | None) -> bool:
    """Whether the call was ended by its own time limit: such a call is slow, however short the limit was."""
    return isinstance(error, DeadlineExceeded) and not error.ambient


def _handled_outside(error: Exception) -> BaseException | None:
    """The exception that was being handled already when the call began; it says nothing about the call.

    What the function has caught itself was caught in a frame that is gone by now; what its callers handle was caught in
    one of the frames we stand on.
    """
    frames = set()
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        frames.add(frame)
        frame = frame.f_back
    context = error.__context__
    for _ in range(50):
        if context is None or (context.__traceback__ is not None and context.__traceback__.tb_frame in frames):
            break
        context = context.__context__
    return context


def _is_neutral(error: BaseException) -> bool:
    if isinstance(error, OutcomeUnknown) and error.__cause__ is not None:  # cut: by whom?
        error = error.__cause__
    if isinstance(error, DeadlineExceeded):
        return error.ambient
    return isinstance(error, (CallRejected, OperationCancelled))
