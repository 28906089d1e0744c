"""For the tests of those who use the toolkit, and for its own: a manual clock, stand-ins, servers real and faulty."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .clock import ManualClock
    from .dead_ports import BlackHole, DeadPort
    from .doubles import EventLog, Flaky, Gate, eventually
    from .fault_connection import Connection, Request
    from .fault_proxy import FaultProxy
    from .fault_server import FaultServer
    from .servers import Postgres, Valkey
    from .store_contract import StoreContract

_HOME = {
    "clock": ("ManualClock",),
    "dead_ports": ("BlackHole", "DeadPort"),
    "doubles": ("EventLog", "Flaky", "Gate", "eventually"),
    "fault_connection": ("Connection", "Request"),
    "fault_proxy": ("FaultProxy",),
    "fault_server": ("FaultServer",),
    "servers": ("Postgres", "Valkey"),
    "store_contract": ("StoreContract",),
}
__all__ = [
    "BlackHole", "Connection", "DeadPort", "EventLog", "FaultProxy", "FaultServer", "Flaky", "Gate", "ManualClock",
    "Postgres", "Request", "StoreContract", "Valkey", "eventually",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
