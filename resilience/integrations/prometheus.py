"""Metrics for Prometheus: as text for any HTTP server, as a collector of prometheus_client, or as a textfile.

`render` and `Textfile` need no library; `register` needs prometheus_client (extra `prometheus`). The names are in
`docs/metrics.md`, the alert rules over them in `resilience report rules --prometheus`.
"""

from __future__ import annotations

import os
import weakref

from ..core.clock import SYSTEM
from ..metrics import METRICS, families, number, sample_key, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..manager import ErrorRecoveryManager

__all__ = ["METRICS", "Textfile", "register", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(manager: ErrorRecoveryManager) -> str:
    """The metrics of a manager in Prometheus's text format; serve it as `CONTENT_TYPE`."""
    return text(families(manager))


def register(manager: ErrorRecoveryManager, registry: Any = None) -> Callable[[], None]:
    """Adds the manager's metrics to a registry of prometheus_client (None: its default one); returns what removes them.

    They are read from the manager at each scrape, so nothing is counted twice; the registry does not keep it alive.
    """
    if registry is None:
        from prometheus_client import REGISTRY

        registry = REGISTRY
    collector = _Collector(manager)
    registry.register(collector)

    def remove() -> None:
        try:
            registry.unregister(collector)
        except KeyError:  # removed already
            pass

    return remove


class _Collector:
    """What prometheus_client asks at each scrape."""

    def __init__(self, manager: ErrorRecoveryManager) -> None:
        self._manager = weakref.ref(manager)

    def describe(self) -> Iterator[Any]:
        """The names alone, so that a clash is found when it is registered."""
        from prometheus_client.core import Metric

        for name, (kind, _, what) in METRICS.items():
            yield Metric(name.removesuffix("_total"), what, kind)

    def collect(self) -> Iterator[Any]:
        """The metrics as they are now."""
        from prometheus_client.core import Metric

        manager = self._manager()
        if manager is None:
            return
        for family in families(manager):
            metric = Metric(family.name.removesuffix("_total"), family.help, family.type)
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + suffix, labels, value)
            yield metric


class Textfile:
    """The metrics of a short process, in a file that node_exporter's textfile collector reads.

    Counters go on from what the file held when this was made, so that they outlive the process and `increase()` is
    right; use one file a job. Each write replaces the file in one step. Leaving the `with` block writes it, with
    `resilience_job_last_success_timestamp_seconds{job}` moved on when nothing was raised.
    """

    def __init__(self, manager: ErrorRecoveryManager, path: str | os.PathLike[str], *, job: str | None = None) -> None:
        self._manager = manager
        self.path = os.fspath(path)
        self.job = job or os.path.splitext(os.path.basename(self.path))[0]
        self._before = _samples_of(self.path)

    def write(self, *, success: bool = False) -> None:
        """Writes the file now; `success` says that the job has just done its work."""
        body = "".join(self._lines()) + self._last_success(success)
        temporary = f"{self.path}.{os.getpid()}.tmp"  # no .prom at its end: it is not read
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            try:
                os.unlink(temporary)
            except OSError:
                pass
            raise

    def _lines(self) -> Iterator[str]:
        """Every metric in one piece: the samples of now on top of those before, and those of names not used now."""
        found = {family.name: family for family in families(self._manager)}
        for name, (kind, _, what) in METRICS.items():
            suffixes = _CUMULATIVE.get(kind, ())
            samples = {}
            if name in found:
                for suffix, labels, value in found[name].samples:
                    samples[sample_key(name + suffix, labels)] = value
            for key, value in self._before.items():
                if key.split("{", 1)[0] in {name + suffix for suffix in suffixes}:
                    samples[key] = samples.get(key, 0.0) + value
            if samples:
                yield f"# HELP {name} {what}\n# TYPE {name} {kind}\n"
                yield from (f"{key} {number(value)}\n" for key, value in samples.items())

    def _last_success(self, success: bool) -> str:
        key = sample_key(_LAST_SUCCESS, {"job": self.job})
        at = SYSTEM.time() if success else self._before.get(key)
        if at is None:
            return ""
        self._before[key] = at
        return f"# HELP {_LAST_SUCCESS} When the job last did its work.\n# TYPE {_LAST_SUCCESS} gauge\n{key} {at!r}\n"

    def __enter__(self) -> Textfile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.write(success=kind is None)


_CUMULATIVE = {"counter": ("",), "histogram": ("_bucket", "_count", "_sum")}
_LAST_SUCCESS = "resilience_job_last_success_timestamp_seconds"


def _samples_of(path: str) -> dict[str, float]:
    """The samples of a file that was written here; what cannot be read counts from nothing."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = file.read().split("\n")  # no other end of a line is one in this format
    except (OSError, UnicodeDecodeError):
        return {}
    samples = {}
    for line in lines:
        key, _, value = line.rpartition(" ")
        if key and not line.startswith("#"):
            try:
                samples[key] = float(value)
            except ValueError:
                continue
    return samples
