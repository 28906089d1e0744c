"""The breaker agrees with a naive model of its rules, over random overlapping calls.

The model keeps every result as it came and counts anew each time; it shares no code with the breaker.
"""

import random

import pytest

from resilience.core.errors import CircuitOpenError
from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig, CountWindow, TimeWindow

BUCKET = 0.125  # seconds; exact in binary, so that model and breaker see the same moments


class HandClock:
    """The lightest clock that a test can set."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class ModelCall:
    def __init__(self, generation, start, counted=True, probe=False):
        self.generation, self.start, self.counted, self.probe = generation, start, counted, probe


class Model:
    def __init__(self, config):
        self.config = config
        self.generation = 0
        self.state, self.until, self.results, self.probes, self.won = "closed", None, [], [], 0
        self.counts = dict.fromkeys(
            ("permitted", "rejected", "successes", "failures", "ignored", "slow", "late_results", "state_changes",
             "suppressed"), 0,
        )  # fmt: skip

    def become(self, state, until=None):
        self.counts["state_changes"] += state != self.state
        self.generation += 1
        self.state, self.until, self.results, self.probes, self.won = state, until, [], [], 0

    def order(self, state, until=None):
        if state == "closed" or state != self.state:
            self.become(state)
        self.until = until

    def begin(self, now):
        c = self.config
        if self.state == "disabled":
            return ModelCall(None, now, counted=False)
        if self.state in ("open", "forced_open"):
            if self.until is None or now < self.until:
                self.counts["rejected"] += 1
                return None
            self.become("half_open")
        probe = self.state == "half_open"
        if probe:
            lease = c.timeout if c.probe_lease is None else c.probe_lease
            alive = sum(1 for other in self.probes if now < other.start + lease)
            if alive >= c.max_requests or alive + self.won >= max(c.max_requests, c.success_threshold):
                self.counts["rejected"] += 1
                return None
        call = ModelCall(self.generation, now, probe=probe)
        if probe:
            self.probes.append(call)
        self.counts["permitted"] += 1
        return call

    def end(self, call, kind, duration, now):
        c = self.config
        if not call.counted:
            return
        if call.generation != self.generation:
            self.counts["late_results"] += 1
            return
        if call.probe:
            self.probes.remove(call)
            if now >= call.start + (c.timeout if c.probe_lease is None else c.probe_lease):
                self.counts["late_results"] += 1
                return
        if kind == "ignored":
            self.counts["ignored"] += 1
            return
        failed = kind == "failure"
        slow = c.slow_call_duration is not None and duration >= c.slow_call_duration
        self.counts["failures" if failed else "successes"] += 1
        self.counts["slow"] += slow
        if call.probe:
            self.won += not (failed or slow)
            if failed or slow:
                self.become("open", now + c.timeout)
            elif self.won >= c.success_threshold:
                self.become("closed")
            return
        self.results.append((now, failed, slow))
        if (failed or slow) and self.trips(now):
            if self.state == "metrics_only":
                self.counts["suppressed"] += 1
                self.results = []
            else:
                self.become("open", now + c.timeout)

    def trips(self, now):
        c = self.config
        if c.window is None:
            row, last = 0, None
            for at, failed, _ in self.results:
                if not failed:
                    row = 0
                    continue
                if last is not None and c.reset_timeout is not None and at - last >= c.reset_timeout:
                    row = 0
                row, last = row + 1, at
            return self.results[-1][1] and row >= c.failure_threshold
        if isinstance(c.window, CountWindow):
            seen = self.results[-c.window.size :]
        else:
            seen = [result for result in self.results if result[0] // BUCKET > now // BUCKET - 100]
        if len(seen) < c.minimum_calls:
            return False
        failing = sum(failed for _, failed, _ in seen) / len(seen)
        slow = sum(slow for _, _, slow in seen) / len(seen)
        return (c.failure_rate is not None and failing >= c.failure_rate) or (
            c.slow_call_duration is not None and slow >= c.slow_call_rate
        )


def random_config(rng):
    size = rng.randint(2, 6)
    kind = rng.choice([None, None, CountWindow(size), TimeWindow(BUCKET * 100)])
    return CircuitBreakerConfig(
        failure_threshold=rng.randint(1, 4),
        success_threshold=rng.randint(1, 4),
        timeout=rng.choice([1.0, 4.0]),
        max_requests=rng.randint(1, 3),
        reset_timeout=rng.choice([None, 2.0, 8.0]),
        window=kind,
        failure_rate=rng.choice([0.25, 0.5, 1.0]),
        minimum_calls=rng.randint(1, size),
        slow_call_duration=rng.choice([None, None, 2.0]),
        slow_call_rate=rng.choice([0.5, 1.0]),
        probe_lease=rng.choice([None, 0.5, 3.0]),
    )


def answer(breaker, grant, kind, duration, told):
    """Ends a call the way a pipeline's express lane would, or as a permit is told."""
    if kind == "ignored":
        breaker.on_ignored(grant)
    elif kind == "failure" and told:
        breaker.count_failure(grant, None, duration)
    elif kind == "failure":
        breaker.on_failure(grant, OSError("down"), duration)
    elif breaker.token == grant:
        breaker.successes += 1
    else:
        breaker.on_success(grant, "result", duration)


def play(seed, steps=30):
    rng = random.Random(seed)
    config, clock = random_config(rng), HandClock()
    breaker, model, running = CircuitBreaker("x", config, clock=clock), Model(config), []
    orders = {"closed": breaker.reset, "disabled": breaker.disable, "metrics_only": breaker.metrics_only}
    for step in range(steps):
        action = rng.random()
        if action < 0.35:
            call = model.begin(clock.now)
            try:
                grant = breaker.token if breaker.token and rng.random() < 0.7 else breaker.admit()
            except CircuitOpenError:
                assert call is None, (seed, step)
            else:
                assert call is not None, (seed, step)
                running.append((call, grant))
        elif action < 0.75 and running:
            call, grant = running.pop(rng.randrange(len(running)))
            kind = rng.choice(["success", "failure", "failure", "ignored"])
            # a call seen only by its token cannot be slow: there, slow calls are not counted at all
            duration = clock.now - call.start if config.is_timed else None
            model.end(call, kind, duration, clock.now)
            answer(breaker, grant, kind, duration if rng.random() < 0.5 else None, rng.random() < 0.3)
        elif action < 0.97:
            clock.now += rng.choice([0.0625, 0.5, 1.0, 2.0, 4.0])
        elif rng.random() < 0.3:
            until = rng.choice([None, clock.now + 2.0])
            model.order("forced_open", until)
            breaker.force_open(until=until)
        else:
            state = rng.choice(list(orders))
            model.order(state)
            orders[state]()
        assert breaker.state.value == model.state, (seed, step)
    for call, grant in running:
        model.end(call, "success", clock.now - call.start, clock.now)
        answer(breaker, grant, "success", None, False)
    stats = breaker.stats
    assert {name: stats[name] for name in model.counts} == model.counts, seed


def test_3_000_random_histories_agree_with_the_model():
    for seed in range(3_000):
        play(seed)


@pytest.mark.slow
def test_100_000_random_histories_agree_with_the_model():
    for seed in range(3_000, 103_000):
        play(seed, steps=40)
