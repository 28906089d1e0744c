"""The tables behind `classify`, one file per family of libraries: what each kind of error says. No library is imported.

A table maps "module.Class" to its entry, which holds for subclasses too, as far as they have none of their own. It is
loaded when the first error of its family turns up: a program pays for the libraries it uses.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rows import Entry, Table

# by the first part of the module's name
FAMILIES = {
    "resilience": "own",
    "builtins": "python", "json": "python", "_pickle": "python", "pickle": "python", "queue": "python",
    "_queue": "python", "concurrent": "python", "asyncio": "python", "threading": "python", "multiprocessing": "python",
    "socket": "os_errors", "ssl": "os_errors", "shutil": "os_errors",
    "subprocess": "processes",
    "http": "http", "urllib": "http", "urllib3": "http", "requests": "http",
    "redis": "redis", "valkey": "redis",
    "psycopg2": "postgres", "psycopg": "postgres", "psycopg_pool": "postgres",
    "sqlite3": "sqlite",
}  # fmt: skip
NOTHING: Entry = (None, None)

_tables: dict[str, Table] = {}


def entry_of(kind: type) -> Entry:
    """What the tables say about the class itself."""
    module = str(kind.__module__)
    family = FAMILIES.get(module.split(".", 1)[0])
    if family is None:
        return NOTHING
    if family not in _tables:
        from importlib import import_module

        _tables[family] = import_module(f"{__name__}.{family}").TABLE
    return _tables[family].get(f"{module}.{kind.__qualname__}", NOTHING)
