"""Fan-out: one function over many items, at full width, one by one when half of it fails, and back again."""

from __future__ import annotations

from .batch_run import Run
from .outcomes import FanOutItem, FanOutResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from .core.events import EventStream
    from .manager import ErrorRecoveryManager

__all__ = ["FanOutItem", "FanOutResult", "fan_out", "fan_out_iter"]


def fan_out(
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    max_workers: int | None = None,
    operation: str | None = None,
    failure_threshold: float = 0.5,
    window: int = 20,
    min_calls: int = 10,
    executor: Any = None,
    isolation: str = "thread",
    deadline: float | None = None,
    key: Callable[[Any], Any] | None = None,
    on_progress: Callable[[FanOutItem], object] | None = None,
    restore_after: int = 10,
    manager: ErrorRecoveryManager | None = None,
    events: EventStream | None = None,
) -> FanOutResult:
    """Calls `fn(item)` for every item, on up to `max_workers` threads; every item gets exactly one outcome.

    When at least `failure_threshold` of the last `window` attempts failed (and `min_calls` have finished), or threads
    or files run out, it falls back to one attempt at a time: failed and unstarted items run one by one, and after
    `restore_after` successes in a row the width doubles again. Permanent and logic errors are the item's own: they
    neither trigger nor repeat. From 80 % of a limit of this process (memory, files, threads) on the width is halved
    each second, at 95 % nothing starts, below 70 % it comes back.

    With `operation` each item runs under that named operation of `manager` (by default the process-wide one); without
    it an item is one attempt per pass. Items with an equal `key(item)` run once and share the outcome. `executor` is a
    `concurrent.futures.Executor`, or a factory of one, to run the items on.

    `deadline` (seconds) bounds the whole, and is the ambient deadline of each item; afterwards items without an outcome
    have `DeadlineExceeded`. Input that is no collection is then read on for a moment only: what is endless ends.
    `on_progress(item)` hears of each item once, when its outcome is final, in the thread that ran it. An exception that
    is no `Exception` stops everything and is raised; one of the input iterator is raised once the items read so far
    have their outcomes. The tracebacks of errors after the first 1,000 are dropped.
    """
    run = Run(
        fn, items, max_workers=max_workers, operation=operation, failure_threshold=failure_threshold, window=window,
        min_calls=min_calls, executor=executor, isolation=isolation, deadline=deadline, key=key,
        on_progress=on_progress, restore_after=restore_after, manager=manager, events=events,
    )  # fmt: skip
    end = run.watch()
    try:
        run.gather()
    finally:  # after a KeyboardInterrupt here the workers stop after their item
        run.close(end)
    return run.result()


def fan_out_iter(
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    max_workers: int | None = None,
    operation: str | None = None,
    failure_threshold: float = 0.5,
    window: int = 20,
    min_calls: int = 10,
    executor: Any = None,
    isolation: str = "thread",
    deadline: float | None = None,
    key: Callable[[Any], Any] | None = None,
    on_progress: Callable[[FanOutItem], object] | None = None,
    restore_after: int = 10,
    look_ahead: int | None = None,
    manager: ErrorRecoveryManager | None = None,
    events: EventStream | None = None,
) -> Iterator[FanOutItem]:
    """Like `fan_out`, but gives each item's outcome in input order as soon as it is there.

    At most `look_ahead` items (2 x workers by default; more buys speed for tiny tasks) are read ahead of the consumer.
    An outcome once given is final: only items not yet given are repeated after a fall. With `key` the outcome of every
    key is kept until the end.
    """
    run = Run(
        fn, items, max_workers=max_workers, operation=operation, failure_threshold=failure_threshold, window=window,
        min_calls=min_calls, executor=executor, isolation=isolation, deadline=deadline, key=key,
        on_progress=on_progress, restore_after=restore_after, manager=manager, events=events, streams=True,
        look_ahead=look_ahead,
    )  # fmt: skip
    return _streamed(run)


def _streamed(run: Run) -> Iterator[FanOutItem]:
    end = run.watch()
    try:
        yield from run.stream() if run.unique is None else run.unique.follow(run.stream())
    finally:
        run.close(end)
