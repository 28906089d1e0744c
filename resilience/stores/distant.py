"""What stores behind a network have in common: one connection for changes, one for news, and the server's time."""

from __future__ import annotations

from ..core.clock import SYSTEM
from .swap import SwapStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DRIFT = 0.25  # seconds the guess of the server's time may be off


class DistantStore(SwapStore):
    """A store whose time is its server's: known from its last answer, and from our monotonic clock since."""

    def __init__(self, url: str) -> None:
        self._connection: Any = None
        self._offset: float | None = None  # the server's time less our monotonic clock
        super().__init__(url)

    # -- time --------------------------------------------------------------------------------------------------------

    def _note_time(self, told: float, asked_at: float) -> None:
        self._offset = told - (asked_at + SYSTEM.monotonic()) / 2

    def _now_held(self, end: float) -> float:
        if self._offset is None:
            self._fetch_held("", end)
        assert self._offset is not None
        return SYSTEM.monotonic() + self._offset

    def guess_now(self) -> float | None:
        return None if self._offset is None else SYSTEM.monotonic() + self._offset

    # -- life --------------------------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._connection is not None or self._thread is not None

    def _leave(self, connection: Any) -> None:
        """Lets go of a connection of the parent of this process, without a word to the server."""
        raise NotImplementedError

    def after_fork(self, in_child: bool) -> None:
        """The child opens connections of its own."""
        if in_child:
            connection, ear = self._connection, self._ear
            self._fresh()
            self._thread = self._connection = self._ear = None
            if connection is not None:
                self._leave(connection)
            if ear is not None:
                self._leave(ear.connection)
