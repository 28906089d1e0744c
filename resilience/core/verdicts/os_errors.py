"""The operating system: errno, name resolution, TLS."""

from __future__ import annotations

import errno

from .rows import BUG, NO_ROOM, NO_ROOM_UNKNOWN, NOT_SENT, UNKNOWN, UNSENDABLE, table, verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

# "Not sent" is promised only where no established connection reports the code; a host that became unreachable is
# told to a connection in use as well (ICMP), after what it had sent.
_BY_ROW: tuple[tuple[Row, str], ...] = (
    (NOT_SENT, "ECONNREFUSED ENETUNREACH"),
    (UNKNOWN, """ECONNRESET ECONNABORTED EPIPE ESHUTDOWN ENETDOWN ETIMEDOUT EHOSTUNREACH EHOSTDOWN ENETRESET ENOTCONN
     EIO EINTR EBUSY ETXTBSY ESTALE EDEADLK EINPROGRESS EALREADY ECANCELED EPROTO ETIME ECOMM ENOLINK EREMOTEIO"""),
    (NO_ROOM, "EMFILE ENFILE EAGAIN ENOBUFS EADDRINUSE EADDRNOTAVAIL EUSERS ENOLCK EMLINK"),
    (NO_ROOM_UNKNOWN, "ENOMEM ENOSPC EDQUOT EFBIG"),
    (UNSENDABLE, """EACCES EPERM ENOENT EEXIST ENOTDIR EISDIR EROFS ENAMETOOLONG ELOOP ENOTEMPTY EXDEV ENODEV ENXIO
     ENOEXEC E2BIG ESRCH EAFNOSUPPORT EPROTONOSUPPORT EPROTOTYPE ESOCKTNOSUPPORT EPFNOSUPPORT EOPNOTSUPP ENOPROTOOPT
     ENOSYS EMSGSIZE ENOTBLK ENOMEDIUM"""),
    (BUG, "EBADF EINVAL EFAULT ENOTSOCK EISCONN EDESTADDRREQ ENOTTY ESPIPE EDOM ERANGE ECHILD EOVERFLOW EILSEQ"),
)  # fmt: skip
BY_ERRNO: dict[int, Classification] = {
    getattr(errno, name): verdict(row, f"errno:{name}")
    for row, names in _BY_ROW
    for name in names.split()
    if hasattr(errno, name)
}

# The subclasses of OSError that stand for one code are judged without a look at the instance.
_CLASSES = {
    "ConnectionRefusedError": errno.ECONNREFUSED,
    "ConnectionResetError": errno.ECONNRESET,
    "ConnectionAbortedError": errno.ECONNABORTED,
    "BrokenPipeError": errno.EPIPE,
    "InterruptedError": errno.EINTR,
    "BlockingIOError": errno.EAGAIN,
    "FileNotFoundError": errno.ENOENT,
    "FileExistsError": errno.EEXIST,
    "IsADirectoryError": errno.EISDIR,
    "NotADirectoryError": errno.ENOTDIR,
    "PermissionError": errno.EACCES,
    "ChildProcessError": errno.ECHILD,
    "ProcessLookupError": errno.ESRCH,
}


def _os_error(error: Any) -> Classification | None:
    return BY_ERRNO.get(error.errno)


# A name that does not exist is judged transient, as "try again" is: resolvers say so while a network, a search domain
# or a record is being changed, nothing was sent, and a repeated typing error costs a look-up or two.
_BY_EAI: dict[str, Row] = {
    "EAI_AGAIN": NOT_SENT, "EAI_NONAME": NOT_SENT, "EAI_NODATA": NOT_SENT, "EAI_FAIL": NOT_SENT, "EAI_SYSTEM": NOT_SENT,
    "EAI_MEMORY": NO_ROOM, "EAI_ADDRFAMILY": UNSENDABLE, "EAI_FAMILY": UNSENDABLE, "EAI_SERVICE": UNSENDABLE,
    "EAI_SOCKTYPE": UNSENDABLE, "EAI_BADFLAGS": BUG,
}  # fmt: skip


def _resolution(error: Any) -> Classification | None:
    import socket  # whoever made a gaierror has it

    for name, row in _BY_EAI.items():
        if getattr(socket, name, None) == error.errno:
            return verdict(row, f"dns:{name}")
    return None


def _tls(error: Any) -> Classification | None:
    """A certificate or a protocol that does not fit today does not fit in a second; a broken connection may."""
    why = error.reason if isinstance(error.reason, str) else str(error)
    if "timed out" in why or "BAD_RECORD_MAC" in why or "EOF" in why:
        return verdict(UNKNOWN, "ssl:interrupted")
    return verdict(UNSENDABLE, f"ssl:{why}") if why.isidentifier() else None


BUILTINS: Table = {
    **{f"builtins.{name}": (None, BY_ERRNO[number]) for name, number in _CLASSES.items()},
    **table("builtins", "python", {"ConnectionError": UNKNOWN, "TimeoutError": UNKNOWN}),
    "builtins.OSError": (_os_error, None),
}
TLS: dict[str, Row] = {
    "SSLEOFError": UNKNOWN,
    "SSLZeroReturnError": UNKNOWN,
    "SSLSyscallError": UNKNOWN,
    "SSLWantReadError": UNKNOWN,
    "SSLWantWriteError": UNKNOWN,
}
TABLE: Table = {
    **table("socket", "dns", {"gaierror": NOT_SENT}, _resolution),
    **table("socket", "dns", {"herror": NOT_SENT}),
    **table("shutil", "shutil", {"SameFileError": BUG, "SpecialFileError": UNSENDABLE, "ReadError": UNSENDABLE}),
    **table("ssl", "ssl", {"SSLError": UNSENDABLE, "SSLCertVerificationError": UNSENDABLE}, _tls),
    **table("ssl", "ssl", TLS),
}
