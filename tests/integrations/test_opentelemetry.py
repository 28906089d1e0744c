"""OpenTelemetry sees the manager's own figures, and each protected call as a span."""

import gc

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from resilience import DeadlineExceeded, ErrorRecoveryManager, RetryPolicy
from resilience.integrations import opentelemetry
from resilience.metrics import METRICS
from resilience.testing import Flaky, ManualClock


@pytest.fixture
def manager():
    with ErrorRecoveryManager(clock=ManualClock()) as made:
        made.register_retry_policy("api", RetryPolicy(max_retries=2, base_delay=0.0, jitter=False))
        yield made


@pytest.fixture
def spans():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = provider.get_tracer("test")
    yield exporter
    provider.shutdown()


@pytest.fixture
def meters():
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    yield reader, provider.get_meter("test")
    provider.shutdown()


def collected(reader):
    """Value by (name, sorted attributes)."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        (metric.name, *sorted(point.attributes.items())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_the_counters_are_those_of_the_manager_at_each_collection(manager, meters):
    reader, meter = meters
    opentelemetry.instrument(manager, meter)
    for rounds in (1, 2):
        for number in range(5):
            manager.monitor.record_operation("fetch", 0.25, success=number > 0)
        seen = collected(reader)
        key = ("resilience.name", "fetch")
        assert seen[("resilience.calls", key, ("resilience.outcome", "ok"))] == 4 * rounds
        assert seen[("resilience.failures", key)] == rounds
        duration = seen[("resilience.call.duration", key, ("resilience.quantile", 0.5))]
        assert duration == pytest.approx(0.25, rel=0.02)
    assert seen[("resilience.health_score",)] <= 100


def test_a_meter_does_not_keep_a_manager_alive(meters):
    reader, meter = meters
    manager = ErrorRecoveryManager()
    opentelemetry.instrument(manager, meter)
    assert collected(reader)
    manager.close()
    del manager
    gc.collect()
    assert collected(reader) == {}


def test_names_have_neither_units_nor_total():
    names = {name: opentelemetry.otel_name(name) for name in METRICS}
    assert len(set(names.values())) == len(names)
    assert names["resilience_breaker_state"] == "resilience.breaker.state"
    assert names["resilience_calls_total"] == "resilience.calls"
    assert names["resilience_retry_calls_total"] == "resilience.retry.calls"
    assert names["resilience_process_resident_memory_bytes"] == "resilience.process.resident_memory"
    assert not any("total" in name or name.endswith(("seconds", "bytes")) for name in names.values())


def test_a_call_is_a_span_and_a_retried_one_no_error(manager, spans):
    assert opentelemetry.protect(manager, "api", tracer=spans.tracer)(Flaky(1, value="done"))() == "done"
    (span,) = spans.get_finished_spans()
    assert span.name == "api"
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "resilience.name": "api", "resilience.attempts": 2, "resilience.outcome": "recovered",
    }  # fmt: skip
    (event,) = span.events
    assert (event.name, event.attributes["resilience.attempt"]) == ("attempt_failed", 1)


def test_a_call_that_fails_has_its_error(manager, spans):
    def fails():
        raise PermissionError("no")

    with pytest.raises(PermissionError, match="no"):
        opentelemetry.protect(manager, "api", tracer=spans.tracer)(fails)()
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "PermissionError"
    assert span.attributes["resilience.outcome"] == "error"
    assert [event.name for event in span.events] == ["attempt_failed", "exception"]
    assert manager.monitor.operations()["api"]["failures"] == 1


def test_outcomes_are_told_apart(manager, spans):
    def late():
        raise DeadlineExceeded(name="api", timeout=1.0, reclaimed=False)

    call = opentelemetry.protect(manager, "api", tracer=spans.tracer)
    with pytest.raises(DeadlineExceeded):
        call(late)()
    manager.register_fallback("api", "stale")
    assert call(Flaky(9))() == "stale"
    outcomes = [span.attributes["resilience.outcome"] for span in spans.get_finished_spans()]
    assert outcomes == ["timeout", "fallback"]


def test_spans_of_the_function_are_children_also_on_a_worker_thread(manager, spans):
    def work():
        with spans.tracer.start_as_current_span("inner"):
            return trace.get_current_span().get_span_context().span_id

    opentelemetry.protect(manager, "api", tracer=spans.tracer)(work)()
    inner, outer = spans.get_finished_spans()
    assert inner.parent.span_id == outer.context.span_id


def test_without_an_sdk_it_is_only_the_call(manager):
    assert opentelemetry.protect(manager, "api")(lambda number: number + 1)(1) == 2
    opentelemetry.instrument(manager)


def test_a_coroutine_function_is_refused(manager):
    async def fetch():
        pass

    with pytest.raises(TypeError):
        opentelemetry.protect(manager, "api")(fetch)
