"""The settings: every value with its origin, and the configurations made from them."""

from __future__ import annotations

from functools import cached_property, partial

from ..core.errors import ConfigError
from .durations import format_duration
from .model import BREAKER_DEFAULTS, DURATIONS, RETRY_DEFAULTS, RETRY_PRESETS, TIMEOUT_ALIASES, TIMEOUT_DEFAULTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    from ..strategies.bulkhead import Bulkhead
    from ..strategies.circuit_breaker import CircuitBreakerConfig
    from ..strategies.rate_limiter import RateLimiter
    from ..strategies.retry import RetryPolicy
    from ..strategies.retry_budget import RetryBudget

    T = TypeVar("T")

DEFAULT = "default"


class Settings:
    """Values by path ("retry.base_delay", "operations.api_call.timeout"), each with its origin. Immutable.

    Making one checks everything: raises `ConfigError` with origin, key, value and reason of the first contradiction.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, origins: Mapping[str, str] | None = None) -> None:
        self._take(values or {}, origins or {})
        errors = self.contradictions()
        if errors:
            raise errors[0]

    def _take(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        self._values: dict[str, Any] = dict(values)
        self._origins: dict[str, str] = dict(origins)
        self._blocks: dict[str, dict[str, Any]] = {}  # the values by block ("operations.api_call.retry") and key
        for path, value in self._values.items():
            block, _, key = path.rpartition(".")
            if path.startswith("timeouts."):
                block, key = "timeouts", path.removeprefix("timeouts.")  # a kind may have dots
            self._blocks.setdefault(block, {})[key] = value
        names = (path.split(".", 2)[1] for path in self._values if path.startswith("operations."))
        self.operation_names = sorted(set(names))
        self._policies: dict[str, RetryPolicy] = {}  # of the names without values of their own, by preset

    @classmethod
    def unchecked(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
        """Settings that may contradict each other: to be asked for their `contradictions()` only."""
        settings = object.__new__(cls)
        settings._take(values, origins)
        return settings

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def circuit_breaker(self) -> dict[str, Any]:
        """The values of the `circuit_breaker` block."""
        return {**BREAKER_DEFAULTS, **self._block("circuit_breaker")}

    @property
    def retry(self) -> dict[str, Any]:
        """The values of the `retry` block; `max_retries` counts repeats."""
        return _as_retries({**RETRY_DEFAULTS, **self._block("retry")}, self._block("retry"))

    @cached_property
    def timeouts(self) -> dict[str, float]:
        """The timeouts by kind that differ from the specification's, in seconds."""
        found = self._block("timeouts")
        for name in self.operation_names:
            seconds = self._values.get(f"operations.{name}.timeout")
            if seconds is not None:
                found[name] = seconds
        return found

    def _block(self, prefix: str) -> dict[str, Any]:
        return dict(self._blocks.get(prefix, ()))

    def origin(self, path: str) -> str:
        """Where the value of `path` comes from: "file:line", "environment NAME", "preset" or "default"."""
        return self._origins.get(path, DEFAULT)

    def rows(self) -> list[tuple[str, str, str]]:
        """Every value as (path, text, origin)."""
        rows = []
        for key, value in self.circuit_breaker.items():
            rows.append((f"circuit_breaker.{key}", value))
        retry = self.retry
        for key, value in {**retry, "max_attempts": _attempts(retry["max_retries"])}.items():
            rows.append((f"retry.{key}", value))
        for kind, value in {**TIMEOUT_DEFAULTS, **self._block("timeouts")}.items():
            rows.append((f"timeouts.{kind}", value))
        for path in sorted(self._values):
            if path.startswith("operations."):
                rows.append((path, self._values[path]))
        return [(path, self._shown(path, value), self._origin_of(path)) for path, value in rows]

    def _origin_of(self, path: str) -> str:
        twin = {"retry.max_attempts": "retry.max_retries", "retry.max_retries": "retry.max_attempts"}.get(path, path)
        return self._origins.get(path) or self._origins.get(twin) or DEFAULT

    @staticmethod
    def _shown(path: str, value: Any) -> str:
        key = path.rsplit(".", 1)[-1]
        if (key in DURATIONS or path.startswith("timeouts.")) and (value is None or isinstance(value, (int, float))):
            return format_duration(value)
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    # -- what an operation gets ------------------------------------------------------------------------------------

    def breaker_config(self, name: str | None = None) -> CircuitBreakerConfig:
        """The breaker configuration of the operation `name`, or of the block."""
        from ..strategies.circuit_breaker import CircuitBreakerConfig, CountWindow, TimeWindow

        own = self._block(f"operations.{name}.circuit_breaker") if name else {}
        values = {**self.circuit_breaker, **own}
        size, seconds = values.pop("window_size", None), values.pop("window_seconds", None)
        prefix = f"operations.{name}.circuit_breaker" if own else "circuit_breaker"

        def make() -> CircuitBreakerConfig:
            return CircuitBreakerConfig(**values, window=_window(size, seconds, CountWindow, TimeWindow))

        return self._made(prefix, own, make)

    def retry_policy(self, name: str | None = None, budget: RetryBudget | None = None) -> RetryPolicy:
        """The retry policy of the operation `name`: its own values, else its preset's, else the block's."""
        from ..strategies.retry_policy import RetryPolicy

        own = self._block(f"operations.{name}.retry") if name else {}
        preset = name if name in RETRY_PRESETS else ""
        if not own and preset in self._policies:
            return self._policies[preset]
        base = {**RETRY_DEFAULTS, **RETRY_PRESETS[name]} if name in RETRY_PRESETS else self.retry
        values = _as_retries({**base, **own}, own)
        prefix = f"operations.{name}.retry" if own else "retry"
        policy = self._made(prefix, own, lambda: RetryPolicy(**values, budget=budget))
        if not own and budget is None:
            self._policies[preset] = policy
        return policy

    def total_timeout(self, name: str) -> float | None:
        """The seconds a whole call of the operation may take, retries included; None without a limit."""
        return self._values.get(f"operations.{name}.total_timeout")

    def is_untimed(self, name: str) -> bool:
        """Whether the attempts of the operation are said to have no timeout."""
        return self._values.get(f"operations.{name}.timeout", 0.0) is None

    def isolation(self, name: str) -> str:
        """Where the attempts of the operation run."""
        return str(self._values.get(f"operations.{name}.isolation", "thread"))

    def memory_limit(self, name: str) -> int | None:
        """The bytes of address space that each worker process of the operation may have; None without a limit."""
        value = self._values.get(f"operations.{name}.memory_limit")
        return None if value is None else int(value)

    def is_critical(self, name: str) -> bool:
        """Whether the error-rate alert watches the operation."""
        return bool(self._values.get(f"operations.{name}.critical", False))

    def has_breaker(self, name: str) -> bool:
        """Whether a breaker is configured for the operation itself."""
        return bool(self._block(f"operations.{name}.circuit_breaker"))

    def bulkhead(self, name: str, **surroundings: Any) -> Bulkhead | None:
        """A bulkhead as configured for the operation, or None; `surroundings`: its clock, events and store."""
        from ..strategies.bulkhead import Bulkhead

        path = f"operations.{name}.bulkhead"
        own = self._block(path)
        return self._made(path, own, lambda: Bulkhead(name, **own, **surroundings)) if own else None

    def retry_budget(self, name: str, *, store: Any = None, clock: Any = None) -> RetryBudget | None:
        """A retry budget as configured for the operation, or None; shared by the name with all who use the `store`."""
        from ..strategies.retry_budget import RetryBudget

        path = f"operations.{name}.retry_budget"
        own = self._block(path)
        more = {"name": None if store is None else name, "store": store, "clock": clock}
        return self._made(path, own, lambda: RetryBudget(**own, **more)) if own else None

    def rate_limit(self, name: str, **surroundings: Any) -> RateLimiter | None:
        """A rate limiter as configured for the operation, or None; `surroundings`: its clock, events and store."""
        from ..strategies.rate_limiter import RateLimiter

        path = f"operations.{name}.rate_limit"
        own = self._block(path)
        return self._made(path, own, lambda: RateLimiter(name, **own, **surroundings)) if own else None

    def _made(self, prefix: str, own: Mapping[str, Any], make: Callable[[], T]) -> T:
        """What `make()` gives; its refusal names the origin and the path of the value."""
        try:
            return make()
        except TypeError as error:
            missing = "max_concurrent" if prefix.endswith("bulkhead") else "rate"
            place = self._any_origin(prefix)
            raise ConfigError(f"{missing} is missing", origin=place, key=f"{prefix}.{missing}") from error
        except ConfigError as error:
            key = error.key or ""
            block = prefix if key in own or prefix in ("retry", "circuit_breaker") else prefix.rsplit(".", 1)[-1]
            place = self._origins.get(f"{prefix}.{key}") or self._origins.get(f"{block}.{key}")
            if place is None:
                place = self._any_origin(prefix) or self._any_origin(block)
            raise ConfigError(error.message, origin=place, key=f"{prefix}.{key}", value=error.value) from None

    def _any_origin(self, prefix: str) -> str | None:
        return next((origin for path, origin in self._origins.items() if path.startswith(prefix + ".")), None)

    # -- checking --------------------------------------------------------------------------------------------------

    def contradictions(self) -> list[ConfigError]:
        """Everything that cannot be used as it stands."""
        found: list[ConfigError] = []

        def attempt(make: Callable[[], object]) -> None:
            try:
                make()
            except ConfigError as error:
                if str(error) not in [str(other) for other in found]:
                    found.append(error)

        attempt(self.breaker_config)
        attempt(self.retry_policy)
        for prefix in ("retry", *(f"operations.{name}.retry" for name in self.operation_names)):
            attempt(partial(self._check_attempts, prefix))
        checks: tuple[Callable[[str], object], ...] = (
            self.breaker_config, self.retry_policy, self.retry_budget, self.bulkhead, self.rate_limit,
            self._check_times,
        )  # fmt: skip
        for name in self.operation_names:
            for check in checks:
                attempt(partial(check, name))
        for kind, seconds in self.timeouts.items():
            if seconds <= 0:
                path = f"timeouts.{kind}" if f"timeouts.{kind}" in self._values else f"operations.{kind}.timeout"
                reason = "expected a duration above 0"
                found.append(ConfigError(reason, origin=self._origins.get(path), key=path, value=seconds))
        return found

    def _check_attempts(self, prefix: str) -> None:
        block = self._block(prefix)
        attempts, retries = block.get("max_attempts", 1), block.get("max_retries")
        path = f"{prefix}.max_attempts"
        if "max_attempts" in block and attempts is not None and attempts < 1:
            reason = "expected 1 or more: it counts calls"
            raise ConfigError(reason, origin=self._origins.get(path), key=path, value=attempts)
        same_place = _file_of(self._origins.get(path)) == _file_of(self._origins.get(f"{prefix}.max_retries"))
        if {"max_attempts", "max_retries"} <= set(block) and same_place and _attempts(retries) != attempts:
            meant = "no limit" if attempts is None else f"{attempts} attempts are {attempts - 1} retries"
            reason = f"{meant}, but max_retries says {retries}"
            raise ConfigError(reason, origin=self._origins.get(path), key=path, value=attempts)

    def _check_times(self, name: str) -> None:
        total, path = self.total_timeout(name), f"operations.{name}.total_timeout"
        kinds = (name, TIMEOUT_ALIASES.get(name, ""))  # what somebody chose; a default is only cut short
        one = next((self.timeouts[kind] for kind in kinds if kind in self.timeouts and not self.is_untimed(name)), None)
        if self.is_untimed(name) and self.isolation(name) == "process":
            own = f"operations.{name}.timeout"
            reason = "worker processes take calls with a timeout only, which is what ends them"
            raise ConfigError(reason, origin=self._origins.get(own), key=own)
        if total is not None and total <= 0:
            raise ConfigError("expected a duration above 0", origin=self._origins.get(path), key=path, value=total)
        if total is not None and one is not None and total < one:
            reason = f"a total of {format_duration(total)} is shorter than one attempt ({format_duration(one)})"
            raise ConfigError(reason, origin=self._origins.get(path), key=path, value=total)


def _window(size: int | None, seconds: float | None, count: Any, time: Any) -> Any:
    if size is not None and seconds is not None:
        raise ConfigError("a window counts calls or seconds, not both", key="window_seconds", value=seconds)
    return count(size) if size is not None else time(seconds) if seconds is not None else None


def _file_of(origin: str | None) -> str | None:
    if origin is not None and origin.startswith("environment "):
        return "environment"
    return origin and origin.rsplit(":", 1)[0]


def _attempts(retries: int | None) -> int | None:
    return None if retries is None else retries + 1


def _as_retries(values: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `max_attempts` said as `max_retries`; the later source of the two has won already."""
    if "max_attempts" in values:
        attempts = values.pop("max_attempts")
        if "max_attempts" in own:
            values["max_retries"] = None if attempts is None else attempts - 1
    return values
