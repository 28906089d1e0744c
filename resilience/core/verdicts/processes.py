"""Child processes: exit codes (sysexits.h, GNU timeout, the shell's 126, 127 and 128 + n) and signals."""

from __future__ import annotations

from .rows import BUG, NO_ROOM_UNKNOWN, UNKNOWN, UNSENDABLE, L, P, T, table, verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

_FINAL: Row = (P, False, "unknown")
_BAD_DATA: Row = (L, False, "unknown")
BY_CODE: dict[int, Row] = {
    126: UNSENDABLE, 127: UNSENDABLE, 125: UNSENDABLE,  # cannot be executed, not found, the wrapper itself failed
    64: UNSENDABLE, 65: _BAD_DATA, 66: _FINAL, 67: _FINAL, 70: _BAD_DATA, 71: NO_ROOM_UNKNOWN, 72: _FINAL, 73: _FINAL,
    77: _FINAL, 78: UNSENDABLE,
}  # fmt: skip

# A kill is most often the kernel's, for want of memory. An interrupt is somebody's wish; a crash is a bug.
BY_SIGNAL: dict[str, Row] = {
    "SIGKILL": NO_ROOM_UNKNOWN, "SIGXCPU": NO_ROOM_UNKNOWN, "SIGXFSZ": NO_ROOM_UNKNOWN,
    "SIGINT": (T, False, "unknown"), "SIGQUIT": (T, False, "unknown"),
    "SIGSEGV": BUG, "SIGABRT": BUG, "SIGBUS": BUG, "SIGILL": BUG, "SIGFPE": BUG, "SIGSYS": BUG, "SIGTRAP": BUG,
}  # fmt: skip


def _exit_code(error: Any) -> Classification | None:
    """Any other code may pass, as an unknown exception may: the specification retries those."""
    code = error.returncode
    if not isinstance(code, int):
        return None
    name = _signal_name(-code if code < 0 else code - 128)
    if name is not None:
        return verdict(BY_SIGNAL.get(name, UNKNOWN), f"signal:{name}")
    return verdict(BY_CODE.get(code, UNKNOWN), f"exit:{code}")


def _signal_name(number: int) -> str | None:
    import signal

    try:
        return signal.Signals(number).name if 0 < number < 65 else None
    except ValueError:
        return None


TABLE: Table = {
    **table("subprocess", "subprocess", {"CalledProcessError": UNKNOWN}, _exit_code),
    **table("subprocess", "subprocess", {"TimeoutExpired": UNKNOWN, "SubprocessError": UNKNOWN}),
}
