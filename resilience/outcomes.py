"""What became of the items of a fan-out."""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .monitoring.error_report import ErrorReport
    from .workers.fan_out import Slot


class FanOutItem:
    """What became of one item: `value` or `error`, `attempts`, `mode` ("concurrent" or "sequential"), seconds."""

    __slots__ = ("attempts", "duration", "error", "index", "item", "mode", "value")

    def __init__(self, index: int, slot: Slot) -> None:
        self.index = index
        self.item, self.value, self.error, self.attempts, sequential, self.duration = slot
        self.mode = "sequential" if sequential else "concurrent"

    @property
    def ok(self) -> bool:
        """Whether the item succeeded."""
        return self.error is None

    def __repr__(self) -> str:
        result = f"value={self.value!r}" if self.error is None else f"error={self.error!r}"
        return f"FanOutItem({self.index}, {result}, attempts={self.attempts}, mode={self.mode!r})"


class _Items(Sequence["FanOutItem"]):
    """The outcomes in input order, made when they are looked at."""

    def __init__(self, slots: list[Slot]) -> None:
        self._slots = slots

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self._slots))[index]
        return FanOutItem(position, self._slots[position])

    def __repr__(self) -> str:
        return f"<{len(self)} items>"


class FanOutResult:
    """The outcome of a fan-out: one item per input, in input order, and the errors grouped.

    `degraded` says why it fell back to one at a time, None when it did not.
    """

    def __init__(self, slots: list[Slot], errors: ErrorReport, degraded: str | None) -> None:
        self._slots = slots
        self.errors = errors
        self.degraded = degraded

    @property
    def items(self) -> Sequence[FanOutItem]:
        """Every item with what became of it, in input order."""
        return _Items(self._slots)

    @property
    def values(self) -> list[Any]:
        """The values of the items that succeeded, in input order."""
        return [slot[1] for slot in self._slots if slot[2] is None]

    def raise_for_errors(self) -> None:
        """Raises an `ExceptionGroup` of all errors, or nothing when every item succeeded."""
        failed = [slot[2] for slot in self._slots if slot[2] is not None]
        if failed:
            raise _exception_group()(f"{len(failed)} of {len(self._slots)} items failed", failed)

    def __repr__(self) -> str:
        failed = sum(slot[2] is not None for slot in self._slots)
        how = f", degraded: {self.degraded}" if self.degraded else ""
        return f"<FanOutResult: {len(self._slots) - failed} ok, {failed} failed{how}>"


def _exception_group() -> Any:
    import builtins

    if hasattr(builtins, "ExceptionGroup"):
        return builtins.ExceptionGroup
    from exceptiongroup import ExceptionGroup

    return ExceptionGroup
