"""Samples of the process over time: the thread that takes them, and what they come to."""

from __future__ import annotations

import threading
import weakref

from ..core.logs import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol

    class Sampled(Protocol):
        """What can be sampled."""

        def sample(self) -> None:
            """Takes one sample now."""

    class Reader(Protocol):
        """What reads the process: `SystemReader`, or a stand-in for it."""

        def read(self) -> dict[str, Any]:
            """The figures: cpu, rss, threads, os_threads, fds, children, limits."""

        def usage(self, reading: dict[str, Any] | None = None) -> dict[str, float | None]:
            """The share of each limit in use."""


FIGURES = ("cpu", "rss", "threads", "os_threads", "fds", "children")


class Sampler:
    """A daemon thread that samples until it is stopped, or its subject is gone."""

    def __init__(self, subject: Sampled, interval: float, *, name: str = "resilience-monitor") -> None:
        self._stop = threading.Event()
        self._interval = interval
        self._subject = weakref.ref(subject)
        self._name = name
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while self._sample():
            if self._stop.wait(self._interval):
                return

    def _sample(self) -> bool:
        subject = self._subject()
        if subject is None or self._stop.is_set():
            return False
        try:
            subject.sample()
        except Exception:
            logger("monitor").warning("a sample failed", exc_info=True)
        return True

    def again(self) -> Sampler | None:
        """A sampler like this one for a forked child, which has not its thread; None where no thread is to be had."""
        subject = self._subject()
        try:
            return None if subject is None else Sampler(subject, self._interval, name=self._name)
        except RuntimeError as error:
            logger("monitor").warning("no thread for %s in this process: %s", self._name, error)
            return None

    def stop(self) -> None:
        """Ends the thread soon; does not wait for it."""
        self._stop.set()


def trends(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """How each figure moved: first, last, least, most and per_hour (None below two moments in time)."""
    taken = list(samples)
    found: dict[str, dict[str, float | None]] = {}
    for figure in FIGURES:
        points = [(sample["at"], sample[figure]) for sample in taken if sample.get(figure) is not None]
        if points:
            values = [value for _, value in points]
            found[figure] = {
                "first": values[0],
                "last": values[-1],
                "least": min(values),
                "most": max(values),
                "per_hour": _slope_per_hour(points),
            }
    return found


def _slope_per_hour(points: list[tuple[float, float]]) -> float | None:
    """The slope of the least-squares line through (seconds, value)."""
    mean_at = sum(at for at, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    spread = sum((at - mean_at) ** 2 for at, _ in points)
    if spread == 0:
        return None
    return 3600.0 * sum((at - mean_at) * (value - mean) for at, value in points) / spread
