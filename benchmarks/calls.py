"""Groups `call`, `threads` and `failure`: one protected call, healthy, shared, failing and refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import peers
from .measure import FLOOR, Row, floor_wrapper, interleaved, no_op

Function = Callable[[], Any]


def _pipeline(**config: Any) -> Any:
    from resilience import CircuitBreaker, CircuitBreakerConfig, Pipeline, RetryPolicy

    return Pipeline(RetryPolicy(), CircuitBreaker("bench", CircuitBreakerConfig(**config)), name="bench")


def _everything_on() -> Any:
    """A manager's named operation in the caller's thread with all parts."""
    from resilience import Bulkhead, CircuitBreakerConfig, CountWindow, ErrorRecoveryManager, RateLimiter

    manager = ErrorRecoveryManager()
    manager.register_circuit_breaker("everything", CircuitBreakerConfig(window=CountWindow(100)))
    manager.register_bulkhead("everything", Bulkhead("everything", 64))
    manager.register_rate_limiter("everything", RateLimiter("everything", 1e9, burst=1_000_000))
    manager.register_timeout("everything", 30.0)
    return manager, manager.protect("everything", isolation="caller")(no_op)


def call_group(smoke: bool) -> Iterator[Row]:
    """A healthy call, as a ratio to the floor wrapper."""
    from resilience import CountWindow

    pipeline = _pipeline()
    manager, everything = _everything_on()
    call = pipeline.call
    contenders: dict[str, Function] = {
        "floor": floor_wrapper(no_op),
        "decorator": pipeline(no_op),
        "call": lambda: call(no_op),
        "bare": no_op,
        "lambda": lambda: no_op(),
        "windowed": _pipeline(failure_threshold=None, window=CountWindow(100))(no_op),
        "everything": everything,
    }
    theirs = {name: build(no_op) for name, build in peers.installed(*peers.HEALTHY).items()}
    took = interleaved({**contenders, **theirs}, rounds=3 if smoke else 150)
    manager.close(grace=0)
    # p.call(fn) needs a caller that names fn: what that lambda costs over the bare call is taken off
    took["call"] -= took["lambda"] - took["bare"]
    floor = took["floor"]
    panel = "One healthy call (x the floor)"
    yield Row("call", FLOOR, floor * 1e9, "ns", who="floor")
    for name, label, goal in (
        ("decorator", "retry + breaker, decorator", 1.6),
        ("call", "retry + breaker, p.call(fn)", 1.7),
        ("windowed", "retry + breaker + window of 100", 1.7),
        ("everything", "named operation, everything on", 6.0),
    ):
        yield Row("call", label, took[name] / floor, goal=goal, panel=panel, label=label)
    yield Row("call", "stretch: known signature", took["decorator"] / floor, goal=0.75, stretch=True)
    if (full := "pyresilience retry+breaker") in took:
        yield Row("call", f"everything on / {full}", took["everything"] / took[full], goal=0.3)
    for name in sorted(theirs, key=lambda name: took[name]):
        yield Row("call", f"peer: {name}", took[name] / floor, panel=panel, label=name, who="peer")


def _throughput(fn: Function, threads: int, seconds: float) -> float:
    """Calls per second of `threads` threads that share one function."""
    stop, counts = threading.Event(), []

    def work() -> None:
        done = 0
        while not stop.is_set():
            for _ in range(200):
                fn()
            done += 200
        counts.append(done)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begun)


def threads_group(smoke: bool) -> Iterator[Row]:
    """Throughput of 8 threads on one pipeline, as a share of the floor wrapper's."""
    contenders: dict[str, Function] = {"floor": floor_wrapper(no_op), "ours": _pipeline()(no_op)}
    shared = (*peers.BREAKERS, peers.pyresilience_)
    contenders.update({name: build(no_op) for name, build in peers.installed(*shared).items()})
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(1 if smoke else 12):
        for name, fn in contenders.items():
            best[name] = max(best[name], _throughput(fn, 8, 0.01 if smoke else 0.12))
    panel, floor = "8 threads on one breaker (million calls/s)", best["floor"]
    yield Row("threads", "ours / floor wrapper", best["ours"] / floor, goal=0.8, at_least=True)
    if "circuitbreaker" in best:
        yield Row("threads", "ours / circuitbreaker", best["ours"] / best["circuitbreaker"], goal=5.0, at_least=True)
    yield Row("threads", FLOOR, floor / 1e6, "M/s", panel=panel, label="the floor", who="floor")
    yield Row("threads", "ours", best["ours"] / 1e6, "M/s", panel=panel, label="retry + breaker")
    for name in sorted(set(best) - {"floor", "ours"}, key=lambda name: -best[name]):
        yield Row("threads", f"peer: {name}", best[name] / 1e6, "M/s", panel=panel, label=name, who="peer")


def _broken() -> None:
    raise ConnectionError("down")


def _swallow(fn: Function) -> Function:
    def call() -> None:
        try:
            fn()
        except Exception:
            pass

    return call


def failure_group(smoke: bool) -> Iterator[Row]:
    """A failing call that a breaker records, and a call that an open breaker refuses."""
    from resilience import CircuitBreaker, CircuitBreakerConfig

    rounds = 3 if smoke else 150
    recording = CircuitBreaker("failing", CircuitBreakerConfig(failure_threshold=10**9))
    failing = {"floor": _swallow(floor_wrapper(_broken)), "ours": _swallow(recording(_broken))}
    failing.update({name: _swallow(build(_broken)) for name, build in peers.installed(*peers.BREAKERS).items()})
    refusing = {"ours": CircuitBreaker("open", CircuitBreakerConfig(failure_threshold=1))(_broken)}
    refusing.update({name: build(_broken) for name, build in peers.installed(*peers.OPEN).items()})
    refusing = {name: _swallow(fn) for name, fn in refusing.items()}
    for fn in refusing.values():  # opens them
        fn()
    both = {f"failing {name}": fn for name, fn in failing.items()}
    both.update({f"open {name}": fn for name, fn in refusing.items()})
    took = interleaved(both, rounds=rounds)
    floor, ours = took["failing floor"], took["open ours"]
    panel = "A failed call, recorded (x a raise through the floor)"
    label = "failed call recorded / a raise through the floor"
    yield Row("failure", label, took["failing ours"] / floor, goal=1.8, panel=panel, label="breaker")
    for name in sorted(set(failing) - {"floor", "ours"}, key=lambda name: took[f"failing {name}"]):
        value = took[f"failing {name}"] / floor
        yield Row("failure", f"peer: {name}", value, panel=panel, label=name, who="peer")
    panel = "Refused by an open breaker (million/s)"
    refusals = {name: took[f"open {name}"] for name in refusing if name != "ours"}
    if refusals:
        ratio = min(refusals.values()) / ours
        yield Row("failure", "rejections per second / best peer", ratio, goal=2.0, at_least=True)
    yield Row("failure", "rejections", 1e-6 / ours, "M/s", panel=panel, label="breaker")
    for name in sorted(refusals, key=lambda name: refusals[name]):
        yield Row("failure", f"peer: {name}", 1e-6 / refusals[name], "M/s", panel=panel, label=name, who="peer")
