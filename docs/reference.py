"""Writes docs/reference.md from the docstrings of everything public: `python docs/reference.py`."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from pathlib import Path

import resilience

TARGET = Path(__file__).with_name("reference.md")
FURTHER = {
    "resilience.testing": "Testing",
    "resilience.integrations.requests": "requests",
    "resilience.integrations.redis": "redis",
    "resilience.integrations.psycopg2": "psycopg2",
    "resilience.integrations.subprocess": "subprocess",
    "resilience.integrations.prometheus": "Prometheus (extra `prometheus` for `register`)",
    "resilience.integrations.opentelemetry": "OpenTelemetry (extra `otel`)",
}
HEAD = """# Reference

Made from the docstrings by `python docs/reference.py`. Durations are seconds. `import resilience` loads a name when
it is first used.
"""


def signature_of(value: object) -> str:
    """The parameters as they are called, without annotations."""
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]  # what has none is shown without
    except (TypeError, ValueError):
        return ""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    text = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", text)


def entry(name: str, value: object) -> list[str]:
    """A name with its signature, its docstring and its public methods."""
    shown = "" if isinstance(value, type) and issubclass(value, enum.Enum) else signature_of(value)
    lines = [f"### `{name}{shown}`", "", inspect.getdoc(value) or "", ""]
    if isinstance(value, type) and not issubclass(value, BaseException):
        lines += [line for member in members_of(value) for line in member]
        lines.append("")
    return lines


def members_of(cls: type) -> list[list[str]]:
    """The public members that the class itself documents."""
    found = []
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, enum.Enum):
            found.append([f"- `{name}` = `{member.value!r}`"])
            continue
        plain = getattr(member, "__func__", member)
        text = inspect.getdoc(plain) if isinstance(plain, property) or inspect.isfunction(plain) else None
        if text:
            shown = "" if isinstance(plain, property) else signature_of(plain)
            found.append([f"- `{name}{shown}`: {' '.join(text.split())}"])
    return found


def written() -> str:
    """The whole reference."""
    parts = [HEAD, "## `resilience`", ""]
    for name in sorted(resilience.__all__, key=str.lower):
        parts += entry(name, getattr(resilience, name))
    for module, title in FURTHER.items():
        loaded = importlib.import_module(module)
        parts += [f"## {title}: `{module}`", "", inspect.getdoc(loaded) or "", ""]
        for name in loaded.__all__:
            parts += entry(name, getattr(loaded, name))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(written(), encoding="utf-8")
