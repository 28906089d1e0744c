"""Documents that somebody has filled with garbage harm nobody: they are replaced, and the store is not given up."""

import json
import logging
import random
import threading
import uuid

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    RateLimiter,
    RateLimitExceeded,
    RetryBudget,
    open_store,
)
from resilience.stores.port import from_text

VALUES = [
    None, True, False, 0, -1, 2**63, 10**400, 1e308, -1e308, 1.5, "", "open", "half_open", "x" * 300, "2020", [], [1],
    [[[]]], {}, {"1": 1e308}, {"x": "y"}, {"1": []},
]  # fmt: skip
CONFIG = CircuitBreakerConfig(failure_threshold=3, timeout=600.0)


def refused():
    raise ConnectionError("refused")


def used(name, store):
    """A breaker, a limiter and a budget after some calls; whatever is in the store, they come to what they are for."""
    breaker = CircuitBreaker(name, CONFIG, store=store)
    limiter = RateLimiter(name, 1_000, store=store)
    budget = RetryBudget(name=name, store=store)
    for fn in (refused, lambda: 1, refused, refused, refused):
        try:
            limiter.call(breaker.call, fn)
        except (ConnectionError, CircuitOpenError, RateLimitExceeded):
            pass
        budget.first_attempt()
        budget.take_retry()
    return breaker


def spoilt(doc, draw):
    """A copy with some fields gone and some of another kind; or something else entirely."""
    doc = dict(doc)
    for _ in range(draw.randrange(1, 4)):
        field = draw.choice([*doc, "extra"])
        if draw.random() < 0.3:
            doc.pop(field, None)
        else:
            doc[field] = draw.choice(VALUES)
    return draw.choice(VALUES) if draw.random() < 0.1 else doc


@pytest.mark.parametrize("seed", range(4))
def test_no_document_makes_a_rule_fail_or_the_store_seem_away(seed, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resilience"), "disabled", True)
    died = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_value))
    draw = random.Random(seed)
    url = f"memory://{uuid.uuid4().hex}"
    with open_store(url) as store, open_store(url) as other:
        used("seed", store)
        assert store.link.flush(10.0)
        seeds = [store.read(key) for key in ("breaker/seed", "breaker-events/seed", "rate/seed", "budget/seed")]
        assert None not in seeds
        lost = []
        monkeypatch.setattr(store.link.clerk, "_lose", lambda error, quietly=False: lost.append(error))
        for number in range(75):
            doc = spoilt(draw.choice(seeds), draw)
            for prefix in ("breaker/", "breaker-events/", "rate/", "budget/"):
                other.transact(f"{prefix}{number}", lambda old, now: (doc, None))  # noqa: B023  # runs at once
            breaker = used(str(number), store)
            other.transact(f"breaker/{number}", lambda old, now: (doc, None))  # noqa: B023
            breaker.reset()
            assert breaker.call(lambda: 1) == 1
            assert json.dumps(breaker.snapshot())
            assert (store.link.state, lost, died) == ("ready", [], []), doc


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": NaN}', '{"a": -Infinity}', "1" * 10_000, "\ud800", '{"a"', "", "\0"]
)
def test_a_text_that_is_no_plain_data_is_nothing(text):
    assert from_text(text) is None
