"""Where settings come from: built-in defaults < file < environment < what Python passes in."""

from __future__ import annotations

import functools
import os

from ..core.errors import ConfigError
from .durations import parse_duration
from .model import BREAKER, OPERATION_BLOCKS, OPERATION_KEYS, RETRY, TIMEOUT_DEFAULTS
from .settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from .model import Reader

ROOT = "error_recovery"
LARGEST_FILE = 1 << 20
PREFIX = "RESILIENCE_"
__all__ = ["Settings", "check_sources", "default_settings", "load_settings"]


@functools.lru_cache(maxsize=1)
def default_settings() -> Settings:
    """The defaults of the specification; reads neither a file nor the environment."""
    return Settings()


def load_settings(
    path: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a YAML file and the environment (`env`, by default the process's own), then `overrides` by path.

    Raises the first `ConfigError`: unknown keys, wrong units, contradictions, each with origin, key, value and reason.
    """
    values, origins, errors = _gather(path, env)
    if errors:
        raise errors[0]
    for key, value in (overrides or {}).items():
        values[key], origins[key] = value, "argument"
    return Settings(values, origins)


def check_sources(
    path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None
) -> list[ConfigError]:
    """Everything that is wrong with a file and the environment, not only the first."""
    values, origins, errors = _gather(path, env)
    return errors or Settings.unchecked(values, origins).contradictions()


class _Found:
    """Values, origins and errors, as they are collected."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.errors: list[ConfigError] = []

    def refuse(self, reason: str, origin: str, key: str | None = None, value: object = None) -> None:
        """Keeps an error."""
        self.errors.append(ConfigError(reason, origin=origin, key=key, value=value))

    def put(self, path: str, text: str, read: Reader, origin: str) -> None:
        """Reads one value."""
        try:
            self.values[path] = read(text)
        except ValueError as error:
            self.refuse(str(error), origin, path, text)
        else:
            self.origins[path] = origin


def _gather(
    path: str | os.PathLike[str] | None, env: Mapping[str, str] | None
) -> tuple[dict[str, Any], dict[str, str], list[ConfigError]]:
    found = _Found()
    if path is not None:
        _read_file(os.fspath(path), found)
    _read_environment(os.environ if env is None else env, found)
    return found.values, found.origins, found.errors


# -- the file ----------------------------------------------------------------------------------------------------


def _read_file(path: str, found: _Found) -> None:
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            return found.refuse("the file is larger than 1 MiB", path)
        text = data.decode("utf-8-sig")
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except OSError as error:
        return found.refuse(f"cannot be read: {error.strerror or error}", path)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return found.refuse("is not UTF-8 text", f"{path}:{line}")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        return found.refuse(f"is not YAML: {problem}", f"{path}:{line}")
    except RecursionError:
        return found.refuse("is nested too deeply", path)
    if len(documents) > 1:
        return found.refuse("holds more than one document", f"{path}:{documents[1].start_mark.line + 1}")
    if not documents or documents[0] is None:
        return None
    root = _File(path, found)
    for key, node, where in root.entries(documents[0], ""):
        if key != ROOT:
            root.unknown(key, where, "", (ROOT,))
            continue
        root.read_root(node)
    return None


class _File:
    """Walks the nodes of a YAML file; every value keeps the line it stands on."""

    def __init__(self, path: str, found: _Found) -> None:
        self.path = path
        self.found = found

    def place(self, node: Any) -> str:
        """file:line of a node."""
        return f"{self.path}:{node.start_mark.line + 1}"

    def entries(self, node: Any, prefix: str) -> list[tuple[str, Any, str]]:
        """The (key, node, place) of a mapping; anything else, and a key twice, is refused."""
        import yaml

        if isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null"):
            return []
        if not isinstance(node, yaml.MappingNode):
            self.found.refuse("expected keys with values", self.place(node), prefix or ROOT, _text(node))
            return []
        seen: dict[str, str] = {}
        result = []
        for key_node, value_node in node.value:
            key = _text(key_node)
            place = self.place(key_node)
            if key in seen:
                self.found.refuse(f"stands here and at {seen[key]}", place, _join(prefix, key), key)
                continue
            seen[key] = place
            result.append((key, value_node, place))
        return result

    def unknown(self, key: str, place: str, prefix: str, known: Any) -> None:
        """Refuses a key that does not exist, with the nearest that does."""
        near = _nearest(key, list(known))
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        self.found.refuse(f"unknown key; {hint}", place, _join(prefix, key), key)

    def read_root(self, node: Any) -> None:
        """The blocks below `error_recovery`."""
        blocks = {"circuit_breaker": BREAKER, "retry": RETRY}
        for key, value, place in self.entries(node, ROOT):
            if key in blocks:
                self.read_block(value, key, blocks[key])
            elif key == "timeouts":
                self.read_timeouts(value)
            elif key == "operations":
                for name, body, _ in self.entries(value, "operations"):
                    self.read_operation(body, name)
            else:
                self.unknown(key, place, ROOT, (*blocks, "timeouts", "operations"))

    def read_timeouts(self, node: Any) -> None:
        """The timeouts by kind; new kinds are welcome, near misses of known ones are not."""
        for kind, seconds, place in self.entries(node, "timeouts"):
            if kind not in TIMEOUT_DEFAULTS and _nearest(kind, TIMEOUT_DEFAULTS, 0.85):
                self.unknown(kind, place, "timeouts", TIMEOUT_DEFAULTS)
            else:
                self.read_value(seconds, f"timeouts.{kind}", parse_duration)

    def read_operation(self, node: Any, name: str) -> None:
        """The block of one operation."""
        prefix = f"operations.{name}"
        if "." in name or not name:
            return self.found.refuse("the name of an operation has no dots", self.place(node), prefix, name)
        for key, value, place in self.entries(node, prefix):
            if key in OPERATION_BLOCKS:
                self.read_block(value, f"{prefix}.{key}", OPERATION_BLOCKS[key])
            elif key in OPERATION_KEYS:
                self.read_value(value, f"{prefix}.{key}", OPERATION_KEYS[key])
            else:
                self.unknown(key, place, prefix, (*OPERATION_BLOCKS, *OPERATION_KEYS))
        return None

    def read_block(self, node: Any, prefix: str, keys: Mapping[str, Reader]) -> None:
        """A block of simple values."""
        for key, value, place in self.entries(node, prefix):
            if key in keys:
                self.read_value(value, f"{prefix}.{key}", keys[key])
            else:
                self.unknown(key, place, prefix, keys)

    def read_value(self, node: Any, path: str, read: Reader) -> None:
        """One value, read from its text as it stands: YAML 1.1 makes other things of `1:30`, `on` and `010`."""
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            self.found.refuse("expected one value", self.place(node), path, _text(node))
            return
        self.found.put(path, node.value, read, self.place(node))


def _text(node: Any) -> str:
    value = getattr(node, "value", "")
    return value if isinstance(value, str) else f"a {node.id}"


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


# -- the environment -----------------------------------------------------------------------------------------------


def _read_environment(env: Mapping[str, str], found: _Found) -> None:
    known: dict[str, tuple[str, Reader]] = {}
    for block, keys, start in (("circuit_breaker", BREAKER, "CIRCUIT_BREAKER_"), ("retry", RETRY, "RETRY_")):
        known.update({start + key.upper(): (f"{block}.{key}", read) for key, read in keys.items()})
    known.update({f"{kind.upper()}_TIMEOUT": (f"timeouts.{kind}", parse_duration) for kind in TIMEOUT_DEFAULTS})
    for name, (path, read) in known.items():
        for variable in (name, PREFIX + name):  # the prefixed one comes last and wins
            text = env.get(variable, "")
            origin = f"environment {variable}"
            if text and _outranks_twin(path, origin, found):
                found.put(path, text, read, origin)
    for variable in sorted(env):
        if variable.startswith(PREFIX) and env[variable] and variable[len(PREFIX) :] not in known:
            _read_other(variable, env[variable], known, found)


def _read_other(variable: str, text: str, known: Mapping[str, object], found: _Found) -> None:
    """A prefixed variable without a default: the timeout of a kind of one's own, or a misspelt name."""
    name, origin = variable[len(PREFIX) :], f"environment {variable}"
    is_ours = name.startswith(("CIRCUIT_BREAKER_", "RETRY_"))
    kind = name.removesuffix("_TIMEOUT")
    if not is_ours and (kind == name or not kind):
        return
    near = _nearest(name, known, 0.6 if is_ours else 0.85)
    if is_ours or near:
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        found.refuse(f"unknown variable{hint}", origin, name, text)
    else:
        found.put(f"timeouts.{kind.lower()}", text, parse_duration, origin)


def _nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    from difflib import get_close_matches  # for whoever has made a mistake

    return get_close_matches(name, list(known), n=1, cutoff=likeness)


def _outranks_twin(path: str, origin: str, found: _Found) -> bool:
    """Attempts and retries name one value: the stronger source wins whichever it uses."""
    twin = {"retry.max_attempts": "retry.max_retries", "retry.max_retries": "retry.max_attempts"}.get(path)
    if twin is None or twin not in found.origins:
        return True
    ours, theirs = _rank(origin), _rank(found.origins[twin])
    if ours > theirs:
        del found.values[twin], found.origins[twin]
    return ours >= theirs


def _rank(origin: str) -> int:
    """0 for a file, 1 for a variable, 2 for a prefixed one."""
    return origin.startswith("environment ") + origin.startswith(f"environment {PREFIX}")
