"""Fallback: an answer in place of a failure, marked as such; `LastGood`: the last real answer, for a while."""

from __future__ import annotations

import functools
import inspect
import threading

from ..core import ambient
from ..core.clock import SYSTEM
from ..core.errors import (
    CallRejected,
    DeadlineExceeded,
    ErrorCategory,
    OperationCancelled,
    OutcomeUnknown,
    ShutdownInProgress,
    require,
    require_count,
    require_seconds,
)
from ..core.forks import afresh_in_children
from ..core.history import error_text
from ..core.logs import logger
from ..core.pipeline import Call, invoke, refuse_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    from ..core.clock import Clock
    from ..core.events import EventStream

    P = ParamSpec("P")
    R = TypeVar("R")

RESERVED = 0.1  # share of the time left that the fallback keeps for itself, at most RESERVED_AT_MOST seconds
RESERVED_AT_MOST = 1.0


def is_worth_a_fallback(error: BaseException) -> bool:
    """The default of `on`: rejections, deadlines, unknown outcomes and transient or resource errors; not bugs."""
    if isinstance(error, (OperationCancelled, ShutdownInProgress)):  # nobody wants an answer any more
        return False
    if isinstance(error, (CallRejected, DeadlineExceeded, OutcomeUnknown)):
        return True
    from ..core.classify import classify

    return classify(error).category in (ErrorCategory.TRANSIENT, ErrorCategory.RESOURCE)


class _Answering:
    """What `Fallback` and `LastGood` share: when to answer, and how it is told."""

    name: str
    events: EventStream | None
    _on: Any

    def _answers(self, error: BaseException) -> bool:
        on = self._on
        if on is None:
            return is_worth_a_fallback(error)
        if isinstance(on, (type, tuple)):
            return isinstance(error, on)
        return bool(on(error))

    def _mark(self, call: Call, error: BaseException) -> None:
        call.fallback_used = True
        call.saved_from = error
        name = self.name or call.name
        if self.events is not None:
            self.events.emit("fallback_used", name, error=error_text(error))
        logger("fallback").info("%s: fallback used after %s", name or "call", error_text(error))

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline and answers for it where it fails."""
        raise NotImplementedError

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Calls `fn(*args, **kwargs)` and answers for it where it fails."""
        return self.run(invoke, Call(fn, args, kwargs, self.name))

    def __call__(self, fn: Callable[P, R]) -> Callable[P, Any]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        refuse_async(fn)

        @functools.wraps(fn)
        def answered(*args: P.args, **kwargs: P.kwargs) -> Any:
            return self.call(fn, *args, **kwargs)

        return answered


class Fallback(_Answering):
    """Answers a failure with a value, or with what a callable gives (it gets the error if it takes an argument).

    `on` says which failures: exception types, a predicate, or None for rejections, deadlines, `OutcomeUnknown` and
    transient errors. An error of the fallback itself is raised from the first one. The calls inside leave a tenth of
    the remaining time (at most 1 s) for it. Safe to share between threads.
    """

    def __init__(
        self,
        value_or_callable: Any,
        on: Any = None,
        *,
        name: str = "",
        clock: Clock | None = None,
        events: EventStream | None = None,
    ) -> None:
        _check_on(on)
        self.name = name
        self.events = events
        self._on = on
        self._answer = value_or_callable
        self._takes_error = callable(value_or_callable) and _takes_argument(value_or_callable)
        self._clock = clock

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline and answers for it where it fails."""
        left = ambient.remaining()
        try:
            if left is None:
                return proceed(call)
            with ambient.deadline(max(0.0, left - min(left * RESERVED, RESERVED_AT_MOST)), clock=self._clock):
                return proceed(call)
        except Exception as error:
            if not self._answers(error):
                raise
            self._mark(call, error)
            if not callable(self._answer):
                return self._answer
            try:
                return self._answer(error) if self._takes_error else self._answer()
            except Exception as second:
                if second is error or second.__cause__ is not None:
                    raise
                raise second from error

    def __repr__(self) -> str:
        return f"Fallback({self._answer!r})"


class LastGood(_Answering):
    """Keeps the last real answer of each function and arguments and serves it on failure, `ttl` seconds at most.

    Answers of a fallback inside it are never kept. Arguments that cannot be hashed share no memory: their failures are
    raised. At most `max_entries` answers are kept, the oldest goes first. Safe to share between threads.
    """

    def __init__(
        self,
        ttl: float,
        *,
        on: Any = None,
        max_entries: int = 1024,
        name: str = "",
        clock: Clock | None = None,
        events: EventStream | None = None,
    ) -> None:
        require_seconds("ttl", ttl, positive=True)
        require_count("max_entries", max_entries)
        _check_on(on)
        self.name = name
        self.events = events
        self._on = on
        self._ttl = ttl
        self._max_entries = max_entries
        self._clock = clock or SYSTEM
        self.fresh_locks()
        self._kept: dict[Any, tuple[float, Any]] = {}
        afresh_in_children(self)

    def fresh_locks(self) -> None:
        """Locks of its own: at the start, and in a forked child."""
        self._lock = threading.Lock()

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs the rest of a pipeline; keeps its answer, or serves the kept one."""
        key = _key_of(call)
        try:
            result = proceed(call)
        except Exception as error:
            if key is None or not self._answers(error):
                raise
            with self._lock:
                kept = self._kept.get(key)
            if kept is None or self._clock.monotonic() - kept[0] > self._ttl:
                raise
            self._mark(call, error)
            return kept[1]
        if key is not None and not call.fallback_used:
            with self._lock:
                self._kept.pop(key, None)
                self._kept[key] = (self._clock.monotonic(), result)
                if len(self._kept) > self._max_entries:
                    del self._kept[next(iter(self._kept))]
        return result

    def __repr__(self) -> str:
        return f"LastGood({self._ttl:g})"


def _key_of(call: Call) -> Any:
    try:
        key = (call.fn, call.args, tuple(sorted(call.kwargs.items())))
        hash(key)
    except TypeError:
        return None
    return key


def _check_on(on: Any) -> None:
    kinds = on if isinstance(on, tuple) else (on,)
    types = all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    require(on is None or types or (callable(on) and not isinstance(on, type)), "on", on,
            "expected exception types, a predicate or None")  # fmt: skip


def _takes_argument(answer: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(answer).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        parameter.kind is inspect.Parameter.VAR_POSITIONAL
        or (parameter.kind in positional and parameter.default is inspect.Parameter.empty)
        for parameter in parameters
    )
