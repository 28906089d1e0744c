"""Wrappers with the very parameters of the function they wrap.

A wrapper that takes `*args, **kwargs` packs the arguments of every call and takes them apart again, which costs more
than a healthy pipeline does. So the wrapper is written down once, as text with holes for the parameters, and compiled
for each shape of parameters it meets, as `dataclasses` does it. A function whose parameters cannot be named (`*args`, a
builtin, a bound method) fills the holes with `*args, **kwargs`: the same text, a little slower.
"""

from __future__ import annotations

import functools
from keyword import iskeyword
from types import CodeType, FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WRAPPERS = "<resilience: a wrapper of"  # how the names of their files begin
MOST_PARAMETERS = 12
_MOST_SHAPES = 1_000  # programs that make functions as they go fall back to `*args, **kwargs`
_VARIADIC = 0x04 | 0x08  # flags of a code with *args or **kwargs


class Template:
    """The source of a wrapper, indented like a function, with the holes `{parameters}`, `{arguments}` and `{packed}`.

    `packed` stands for a tuple and a dict of the arguments. The text may use `fn` and the other `names`, given to
    `wrap`, and what `scope` holds; it defines `wrapper`.
    """

    def __init__(self, source: str, names: tuple[str, ...], scope: dict[str, Any]) -> None:
        self._source = source
        self._names = names
        self._scope = scope
        self._makers: dict[tuple[str, str, str], Any] = {}
        self._codes: list[CodeType] = []
        self._told: list[Callable[[CodeType], object]] = []

    def wrap(self, fn: Callable[..., Any], *values: Any) -> Any:
        """The wrapper of `fn`, looking like it to `inspect`; `values` in the order of the template's names."""
        shape = _shape_of(fn, self._taken)
        make = self._makers.get(shape)
        if make is None:
            if len(self._makers) >= _MOST_SHAPES:
                shape = _ANY
            make = self._makers.get(shape) or self._makers.setdefault(shape, self._compiled(shape))
        wrapper = functools.wraps(fn)(make(fn, *values))
        if shape is not _ANY:
            wrapper.__defaults__ = fn.__defaults__  # type: ignore[attr-defined]  # it is a plain function
            wrapper.__kwdefaults__ = fn.__kwdefaults__  # type: ignore[attr-defined]
        return wrapper

    def each_code(self, told: Callable[[CodeType], object]) -> None:
        """Calls `told` with the code of each wrapper there is and will be."""
        self._told.append(told)
        for code in self._codes:
            told(code)

    @functools.cached_property
    def _taken(self) -> frozenset[str]:
        """The names that a parameter cannot have, for the text uses them itself."""
        used = self._compiled(_ANY).__code__
        wrapper = next(constant for constant in used.co_consts if isinstance(constant, CodeType))
        return frozenset((*wrapper.co_varnames, *wrapper.co_names, *wrapper.co_freevars)) - {"args", "kwargs"}

    def _compiled(self, shape: tuple[str, str, str]) -> Any:
        parameters, arguments, packed = shape
        body = self._source.format(parameters=parameters, arguments=arguments, packed=packed)
        file = f"{WRAPPERS} ({parameters})>"
        text = f"def make(fn, {', '.join(self._names)}):\n{body}\n    return wrapper\n"
        _show_in_tracebacks(file, text)
        made: dict[str, Any] = {}
        exec(compile(text, file, "exec"), self._scope, made)
        make = made["make"]
        code = next(constant for constant in make.__code__.co_consts if isinstance(constant, CodeType))
        self._codes.append(code)
        for told in self._told:
            told(code)
        return make


_ANY = ("*args, **kwargs", "*args, **kwargs", "args, kwargs")


def _shape_of(fn: Any, taken: frozenset[str]) -> tuple[str, str, str]:
    """What fills the holes for `fn`."""
    if type(fn) is not FunctionType or fn.__code__.co_flags & _VARIADIC:
        return _ANY
    code = fn.__code__
    count, only = code.co_argcount, code.co_kwonlyargcount
    names = code.co_varnames[: count + only]
    if len(names) > MOST_PARAMETERS or not taken.isdisjoint(names) or not all(map(_is_name, names)):
        return _ANY
    places, keywords = names[:count], names[count:]
    parameters = list(places)
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    if keywords:
        parameters += ["*", *keywords]
    arguments = [*places, *(f"{name}={name}" for name in keywords)]
    values = "".join(f"{name}, " for name in places)
    named = ", ".join(f"{name!r}: {name}" for name in keywords)
    return ", ".join(parameters), ", ".join(arguments), f"({values}), {{{named}}}"


def _is_name(text: str) -> bool:
    return text.isidentifier() and not iskeyword(text)


def _show_in_tracebacks(file: str, text: str) -> None:
    import linecache

    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
