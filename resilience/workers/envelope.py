"""Envelopes: calls, values and errors as bytes between two processes; one that cannot travel fails its call alone.

An error is taken apart here and proved to load before it is sent: with its type where that can be found by name, with
its causes, notes and attributes, and with the traceback of the worker as a note. What cannot be pickled in it is left
out and said.
"""

from __future__ import annotations

import io
import pickle
import sys
import traceback
import types

from ..core.errors import ResilienceError
from ..core.history import add_note, error_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = pickle.HIGHEST_PROTOCOL
DEEPEST_CHAIN = 10  # causes and contexts of an error that travel with it


class _Wrapped:
    """Stands for a function whose name now belongs to its decorated form: found by name, unwrapped over there."""

    __slots__ = ("depth", "module", "name")

    def __init__(self, module: str, name: str, depth: int) -> None:
        self.module = module
        self.name = name
        self.depth = depth

    def __reduce__(self) -> tuple[Any, ...]:
        return _unwrapped, (self.module, self.name, self.depth)


def _unwrapped(module: str, name: str, depth: int) -> Any:
    found = _by_name(module, name)
    for _ in range(depth):
        found = found.__wrapped__
    return found


def _by_name(module: str, name: str) -> Any:
    __import__(module)
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _stand_in(fn: Any) -> _Wrapped | None:
    """What is sent for a function that its own name no longer leads to; None where nothing has to be."""
    try:
        found = _by_name(fn.__module__, fn.__qualname__)
    except (AttributeError, ImportError, KeyError, TypeError):
        return None
    depth = 0
    while found is not fn:
        found = getattr(found, "__wrapped__", None)
        depth += 1
        if found is None or depth > 100:
            return None
    return _Wrapped(fn.__module__, fn.__qualname__, depth) if depth else None


class _CallPickler(pickle.Pickler):
    """Pickles decorated functions wherever they are in a call."""

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, types.FunctionType):
            stand_in = _stand_in(item)
            if stand_in is not None:
                return stand_in.__reduce__()
        return NotImplemented


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], surroundings: Any) -> bytes:
    """The call as bytes. Raises `TypeError` that says what to do for one that cannot be sent to another process."""
    named = _stand_in(fn) if isinstance(fn, types.FunctionType) else None
    try:
        return pickle.dumps((named or fn, args, kwargs, surroundings), PROTOCOL)
    except Exception:
        try:
            buffer = io.BytesIO()
            _CallPickler(buffer, PROTOCOL).dump((fn, args, kwargs, surroundings))
            return buffer.getvalue()
        except Exception as error:
            raise cannot_send(fn, error) from error


def cannot_send(fn: Any, error: BaseException) -> TypeError:
    """The error of a call that does not reach the worker process."""
    name = getattr(fn, "__qualname__", None) or repr(fn)
    what = "an argument of " if _can_travel(fn) else ""
    return TypeError(
        f"{what}{name} cannot be sent to a worker process ({error_text(error)}): use a function defined at the top "
        'of a module and plain data, or start the workers with start_method="fork" (they take lambdas and closures), '
        'or use isolation="thread"'
    )


def _can_travel(fn: Any) -> bool:
    try:
        buffer = io.BytesIO()
        _CallPickler(buffer, PROTOCOL).dump(fn)
    except Exception:
        return False
    return True


def pack_value(fn: Any, value: Any) -> bytes:
    """The result as bytes. Raises `TypeError` for one that cannot be sent back."""
    try:
        return pickle.dumps(value, PROTOCOL)
    except MemoryError:
        raise
    except Exception as error:
        name = getattr(fn, "__qualname__", None) or repr(fn)
        raise TypeError(
            f"the result of {name} cannot be sent back from its worker process ({error_text(error)}): "
            f"return plain data instead of {type(value).__qualname__}"
        ) from error


def unpack_value(data: bytes) -> Any:
    """The result. Raises `TypeError` for one that does not load here."""
    try:
        return pickle.loads(data)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"the result of a worker process cannot be loaded here ({error_text(error)})") from error


def pack_error(error: BaseException, where: str) -> bytes:
    """The error with its causes, as bytes that are proved to load; `where` names the process in the note."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return pickle.dumps((_packed(error, set(), 0), f"in {where}:\n{trace.rstrip()}"), PROTOCOL)


def _packed(error: BaseException | None, seen: set[int], depth: int) -> Any:
    if error is None or id(error) in seen or depth > DEEPEST_CHAIN:
        return None
    seen.add(id(error))
    members = getattr(error, "exceptions", None)
    body, said = _body(error)
    if isinstance(members, tuple) and said:  # one of its members is the reason: each travels by itself
        packed = [_packed(member, seen, depth + 1) for member in members]
        body, said = pickle.dumps(("group", str(getattr(error, "message", error)), packed), PROTOCOL), ""
    chained = _packed(error.__cause__, seen, depth + 1), _packed(error.__context__, seen, depth + 1)
    return body, said, type(error).__module__, error_text(error), *chained, error.__suppress_context__


def _body(error: BaseException) -> tuple[bytes, str]:
    """The error alone as bytes, and what has changed on the way ("": nothing)."""
    try:
        data = pickle.dumps(error, PROTOCOL)
        back = pickle.loads(data)
        if type(back) is type(error):
            str(back)
            return data, ""
        reason = f"it loads as {type(back).__qualname__}"
    except Exception as failed:
        reason = error_text(failed)
    for cls in type(error).__mro__:
        try:
            data = pickle.dumps(_Rebuilt(cls, error), PROTOCOL)
            back = pickle.loads(data)
            str(back)
        except Exception:
            continue
        if type(back) is cls:
            as_what = "without what cannot be sent" if cls is type(error) else f"as its base {cls.__qualname__}"
            return data, f"{type(error).__qualname__} came from its worker process {as_what} ({reason})"
    raise AssertionError("BaseException itself can be rebuilt")


class _Rebuilt:
    """Pickles as an error of class `cls` with the arguments and attributes of `error` that can be pickled."""

    __slots__ = ("args", "attributes", "cls")

    def __init__(self, cls: type[BaseException], error: BaseException) -> None:
        self.cls = cls
        self.args = tuple(argument if _loads(argument) else _text(repr, argument) for argument in error.args)
        if cls is not type(error):
            self.args = (_text(str, error),)
        self.attributes = {name: value for name, value in vars(error).items() if _loads(value)}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.cls, self.args, self.attributes)


def _text(show: Callable[[object], str], item: object) -> str:
    try:
        return show(item)
    except Exception:
        return f"({type(item).__qualname__}: it cannot be shown)"


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def _loads(value: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(value, PROTOCOL))
    except Exception:
        return False
    return True


def unpack_error(data: bytes) -> BaseException:
    """The error as it was raised in the worker process, with its causes, and its traceback there as a note.

    What one of our own errors comes from is an `Exception` with its text where its library is not in use here: our
    errors speak for themselves, and importing a driver would keep the caller far beyond its deadline.
    """
    try:
        packed, told = pickle.loads(data)
        error = _unpacked(packed)
    except Exception as failed:
        error, told = RuntimeError(f"the error of a worker process cannot be loaded here ({error_text(failed)})"), ""
    if error is None:
        error = RuntimeError("the error of a worker process was lost")
    if told:
        add_note(error, told)
    return error


def _unpacked(packed: Any, is_behind_ours: bool = False) -> BaseException | None:
    if packed is None:
        return None
    body, said, module, text, cause, context, suppress = packed
    is_foreign = is_behind_ours and module not in sys.modules
    error = Exception(f"{module}.{text}") if is_foreign else pickle.loads(body)
    if isinstance(error, tuple):
        error = _group(error[1], [member for member in map(_unpacked, error[2]) if member is not None])
    if said:
        add_note(error, said)
    is_behind_ours |= isinstance(error, ResilienceError)
    put = object.__setattr__  # its own may refuse
    put(error, "__cause__", _unpacked(cause, is_behind_ours))
    put(error, "__context__", _unpacked(context, is_behind_ours))
    put(error, "__suppress_context__", suppress)
    return error


def _group(message: str, members: list[BaseException]) -> BaseException:
    import builtins

    group: Any = getattr(builtins, "BaseExceptionGroup", None)
    if group is None:
        from exceptiongroup import BaseExceptionGroup as group
    made: BaseException = group(message, members)
    return made
