"""Imports go down only; time is in the clock; rules are pure."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "resilience"

# A room may import from its own floor's number and below; the two ground rooms do not know each other.
FLOOR = {
    "core": 0, "rules": 0, "_version": 0, "errors": 0,
    "stores": 1, "workers": 1, "agent": 1,
    "strategies": 2,
    "monitoring": 3,
    "config": 4,
    "timeouts": 5, "resources": 5, "parts": 5, "lane": 5,
    "operation": 6,
    "watch": 7, "registry": 7,
    "manager": 8, "metrics": 8,
    "outcomes": 7, "batch_unique": 8, "supervised_worker": 8,
    "batch_run": 9, "worker_group": 9,
    "batch": 10,
    "integrations": 11, "testing": 11,
}  # fmt: skip
SAME_FLOOR = {"stores", "workers", "agent"}
PURE_FORBIDS = {"time", "threading", "logging", "os", "io", "socket", "random", "pathlib", "subprocess"}


def modules():
    return sorted(SOURCE.rglob("*.py"))


def room_of(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(path, *, with_types=False):
    """(absolute module name, line) of every import that runs, lazily ones included."""
    package = ("resilience", *path.relative_to(SOURCE).parent.parts)
    found = []

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child) and not with_types:
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                stem = ".".join((*base, *([child.module] if child.module else [])))
                found.append((stem, child.lineno))
                if child.level and not child.module:
                    found.extend((f"{stem}.{alias.name}", child.lineno) for alias in child.names)
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert rooms <= set(FLOOR), f"rooms without a floor: {sorted(rooms - set(FLOOR))}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    room = room_of(path)
    if room == "__init__":
        return
    wrong = []
    for name, line in imports_of(path):
        parts = name.split(".")
        if parts[0] != "resilience" or len(parts) < 2 or parts[1] == room:
            continue
        other = parts[1]
        if other not in FLOOR:
            continue
        allowed = FLOOR[other] < FLOOR[room] or (FLOOR[other] == FLOOR[room] and {room, other} <= SAME_FLOOR)
        if {room, other} == {"core", "errors"}:
            allowed = room == "errors"
        if not allowed or other == "integrations":
            wrong.append(f"line {line}: {name}")
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_clock_asks_for_the_time(path):
    if path == SOURCE / "core" / "clock.py":
        return
    assert not [line for name, line in imports_of(path) if name == "time"]


@pytest.mark.parametrize("path", sorted((SOURCE / "rules").glob("*.py")), ids=lambda path: path.name)
def test_rules_have_no_clock_lock_or_io(path):
    wrong = [(name, line) for name, line in imports_of(path) if name.split(".")[0] in PURE_FORBIDS]
    assert not wrong


def test_the_command_line_asks_the_clock_too():
    wrong = []
    for path in sorted((ROOT / "cli").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(alias.name == "time" for alias in node.names):
                wrong.append(str(path))
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "cli":
                wrong.append(f"{path} imports cli absolutely")
    assert not wrong
