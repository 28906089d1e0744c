"""How protections are put around a function: strategies, each with one method, composed once.

A strategy is anything with `run(proceed, call)`: it may refuse, wait, repeat `proceed(call)` or answer in its place.
The composed pipeline is the whole truth. In front of it stands an *express lane*: while every strategy is quiet (it
wants nothing before a call and nothing after a success), a call is the function itself between two looks at one token.
The first failure, or a token that is 0, hands the call over to the composed pipeline.
"""

from __future__ import annotations

import functools
import inspect
from types import AsyncGeneratorType, CoroutineType

from .errors import ConfigError
from .signature import Template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

    from .context import OperationContext
    from .history import AttemptHistory

    P = ParamSpec("P")
    R = TypeVar("R")

    class Strategy(Protocol):
        """One protection. `run` is called once per call, from any thread."""

        def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
            """Runs the rest of the pipeline, `proceed(call)`, as often as this protection sees fit."""

    class Lead(Protocol):
        """What the express lane looks at: a breaker, or the stand-in of a pipeline without one."""

        token: int
        successes: int


class Call:
    """One call on its way through a pipeline: the function, its arguments and what the strategies know about it.

    `replay` is the error of a first attempt that the express lane has already made under the breaker's `token`;
    the innermost step raises it instead of running the function again.
    """

    __slots__ = (
        "args",
        "attempt",
        "context",
        "failing_result",
        "fallback_used",
        "fn",
        "history",
        "kwargs",
        "name",
        "on_body_end",
        "replay",
        "saved_from",
        "started",
        "token",
    )

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs: dict[str, Any] = {} if kwargs is None else kwargs
        self.name = name
        self.attempt = 1
        self.history: AttemptHistory | None = None
        self.context: OperationContext | None = None
        self.fallback_used = False
        self.failing_result: Callable[[Any], bool] | None = None
        self.on_body_end: list[Callable[[], object]] | None = None
        self.replay: BaseException | None = None
        self.saved_from: BaseException | None = None  # the error that a fallback has answered
        self.started: float | None = None
        self.token = 0


def invoke(call: Call) -> Any:
    """The innermost step: runs the function, or raises what the express lane has already seen it raise."""
    if call.replay is not None:
        error, call.replay = call.replay, None
        try:
            raise_again(error)
        finally:
            del error
    return refuse_awaitable(call.fn, call.fn(*call.args, **call.kwargs))


def raise_again(error: BaseException) -> NoReturn:
    """Raises `error` with the context it was first raised in, whatever is being handled here."""
    context = error.__context__
    try:
        raise error
    finally:
        object.__setattr__(error, "__context__", context)  # also where its own refuses, as a frozen dataclass's does
        del error


class _Healthy:
    """The lead of a pipeline without a breaker: always healthy."""

    __slots__ = ("successes", "token")

    def __init__(self) -> None:
        self.token = 1
        self.successes = 0


class _Attentive:
    """The lead of a pipeline that has no express lane."""

    __slots__ = ("successes", "token")

    def __init__(self) -> None:
        self.token = 0
        self.successes = 0


class Pipeline:
    """Strategies around a function, the first one outermost; itself a strategy, and a decorator.

    Policies may stand for strategies: anything with `as_strategy(name=..., clock=..., events=...)`. Immutable, and
    safe to share between threads. Raises `ConfigError` for a part that is neither a strategy nor a policy.
    """

    __slots__ = ("_lead", "composed", "name", "strategies")

    def __init__(self, *strategies: Any, name: str = "", clock: Any = None, events: Any = None) -> None:
        self.name = name
        self.strategies: tuple[Strategy, ...] = tuple(
            _as_strategy(part, name=name, clock=clock, events=events) for part in strategies
        )
        self.composed = compose(self.strategies, invoke)
        self._lead: Any = express_lead(self.strategies)

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        """Runs `proceed(call)` inside all strategies: a pipeline within a pipeline."""
        return compose(self.strategies, proceed)(call)

    def call(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> R:
        """Calls `fn(*args, **kwargs)` under the protection of all strategies."""
        lead: Lead = self._lead
        if token := lead.token:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                failed = error
            else:
                if lead.token == token and type(result) is not CoroutineType:
                    lead.successes += 1
                    return result
                return self._unusual(fn, token, result)
            try:
                return self._resume(fn, args, kwargs, token, failed)
            finally:
                del failed
        return self.composed(Call(fn, args, kwargs, self.name))  # type: ignore[no-any-return]  # R by composition

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorates `fn`, keeping its signature. Raises `TypeError` for coroutine and generator functions."""
        refuse_async(fn)
        return GUARDED.wrap(fn, self, self._lead)  # type: ignore[no-any-return]  # it has the signature of `fn`

    def _unusual(self, fn: Callable[..., R], token: int, result: R) -> R:
        """Ends a call in the express lane whose breaker has changed meanwhile, or whose result is no result."""
        refuse_awaitable(fn, result)
        lead = self._lead
        if lead.token == token:
            lead.successes += 1
        else:
            lead.on_success(lead.adopt(token), result, None)
        return result

    def _resume(
        self, fn: Callable[..., R], args: Any, kwargs: dict[str, Any], token: int, failed: BaseException
    ) -> R:
        """Hands a call whose first attempt failed in the express lane over to the composed pipeline."""
        call = Call(fn, args, kwargs, self.name)
        call.replay = failed
        call.token = token
        del failed
        return self.composed(call)  # type: ignore[no-any-return]  # whatever the function gives

    def __repr__(self) -> str:
        inner = "fn"
        for strategy in reversed(self.strategies):
            inner = f"{_label(strategy)}({inner})"
        return f"<Pipeline {self.name!r}: {inner}>" if self.name else f"<Pipeline {inner}>"


# What a decorated function does; `Pipeline.call` is the same for a function that is named in the call.
GUARDED = Template(
    """
    def wrapper({parameters}):
        if token := lead.token:
            try:
                result = fn({arguments})
            except Exception as error:
                failed = error
            else:
                if lead.token == token:
                    lead.successes += 1
                    return result
                return pipeline._unusual(fn, token, result)
            try:
                return pipeline._resume(fn, {packed}, token, failed)
            finally:
                del failed
        return pipeline.composed(Call(fn, {packed}, pipeline.name))
""",
    names=("pipeline", "lead"),
    scope=globals(),
)


def _label(strategy: Any) -> str:
    name = getattr(strategy, "name", None)
    return f"{type(strategy).__name__}[{name}]" if name else type(strategy).__name__


def _as_strategy(part: Any, **surroundings: Any) -> Strategy:
    if callable(getattr(part, "run", None)):
        return part  # type: ignore[no-any-return]  # checked by duck typing
    if callable(getattr(part, "as_strategy", None)):
        return part.as_strategy(**surroundings)  # type: ignore[no-any-return]  # checked by duck typing
    raise ConfigError(
        f"a pipeline takes strategies and policies (something with run(proceed, call)), not {part!r}",
        key="strategies", value=part,
    )  # fmt: skip


def compose(strategies: tuple[Strategy, ...], proceed: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """Nests the strategies around `proceed`, the first one outermost."""
    for strategy in reversed(strategies):
        proceed = functools.partial(strategy.run, proceed)
    return proceed


def express_lead(strategies: tuple[Strategy, ...]) -> Any:
    """The token holder of the express lane: the one breaker, a healthy stand-in, or an attentive one (no lane).

    A strategy opens the lane by `quiet = True` (it does nothing around a call that succeeds) or by being the only one
    with a `token`.
    """
    leads = [strategy for strategy in strategies if hasattr(strategy, "token")]
    others_quiet = all(getattr(strategy, "quiet", False) for strategy in strategies if strategy not in leads)
    if not others_quiet or len(leads) > 1:
        return _Attentive()
    return leads[0] if leads else _Healthy()


AWAITABLES = frozenset((CoroutineType, AsyncGeneratorType))


def refuse_async(fn: Callable[..., Any]) -> None:
    """Raises `TypeError` for functions whose work happens after they return: coroutines and generators."""
    target = inspect.unwrap(fn) if hasattr(fn, "__wrapped__") else fn
    target = getattr(target, "__func__", target)
    while isinstance(target, functools.partial):
        target = target.func
    if not (inspect.isroutine(target) or isinstance(target, type)):
        target = type(target).__call__
    name = getattr(fn, "__qualname__", repr(fn))
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise TypeError(
            f"{name} is asynchronous and this toolkit is for blocking code: protect the blocking function it calls, "
            "or wrap it as `lambda: asyncio.run(fn())`"
        )
    if inspect.isgeneratorfunction(target):
        raise TypeError(
            f"{name} is a generator function, whose body runs after the protected call has returned: protect a "
            "function that returns the whole result (for example a list), or the function that fetches one item"
        )


def refuse_awaitable(fn: Callable[..., Any], result: R) -> R:
    """Gives `result` back, unless it is a coroutine or an async generator: closes that and raises `TypeError`."""
    if type(result) in AWAITABLES:
        if hasattr(result, "close"):
            result.close()
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(
            f"{name} returned {type(result).__name__}, which this toolkit cannot run: it is for blocking code; "
            "call a blocking function instead, or `asyncio.run(...)` inside it"
        )
    return result
