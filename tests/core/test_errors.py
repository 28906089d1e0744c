"""The tree of errors: attributes, messages that say what happened, and pickling."""

import pickle

import pytest

from resilience import errors
from resilience.core.errors import require_count, require_seconds

SAMPLES = [
    errors.CircuitOpenError(name="db", state="open", retry_after=12.5, last_error="OSError: gone"),
    errors.BulkheadFullError(name="db", limit=2, abandoned=1),
    errors.RateLimitExceeded(name="api", retry_after=0.5),
    errors.WorkersExhausted(name="api", abandoned=8),
    errors.ShutdownInProgress(),
    errors.DeadlineExceeded(name="api", timeout=1.0, elapsed=1.01, phase="running", reclaimed=False, stack="File x"),
    errors.OperationCancelled(name="api", reason="user"),
    errors.OutcomeUnknown(name="incr", phase="sent"),
    errors.RetryAfterTooLong(retry_after=3600.0),
    errors.WorkerCrashed(name="job", exitcode=-9, signal=9, reason="killed"),
    errors.StoreUnavailable("redis is away"),
    errors.ConfigError("no", origin="file:3", key="timeout", value="x"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_with_its_attributes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_message_is_a_sentence_about_what_happened(error):
    assert len(str(error)) > 10 or error.message
    assert isinstance(error, errors.ResilienceError)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_the_form_of_an_error_in_a_log_shows_its_type_and_what_happened(error):
    shown = repr(error)
    assert shown.startswith(type(error).__name__)
    assert str(error) in shown or error.last_error in shown


def test_a_deadline_is_no_builtin_timeout_that_drivers_would_swallow():
    assert not issubclass(errors.DeadlineExceeded, (TimeoutError, OSError))


@pytest.mark.parametrize(
    "kind", [errors.CircuitOpenError, errors.BulkheadFullError, errors.RateLimitExceeded, errors.WorkersExhausted,
             errors.ShutdownInProgress]
)  # fmt: skip
def test_rejections_are_one_family(kind):
    assert issubclass(kind, errors.CallRejected)


def test_an_abandoned_call_is_reported_as_lost_with_the_line_where_it_hung():
    text = str(errors.DeadlineExceeded(name="api", reclaimed=False, stack='File "a.py", line 3, in f\n    recv()'))
    assert "abandoned" in text
    assert 'File "a.py", line 3' in text


def test_categories_read_as_their_names():
    assert str(errors.ErrorCategory.TRANSIENT) == "transient"
    assert {str(category) for category in errors.ErrorCategory} == {"transient", "permanent", "resource", "logic"}


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), float("-inf"), "5", None, True])
def test_seconds_that_are_none_are_refused(bad):
    with pytest.raises(errors.ConfigError) as caught:
        require_seconds("timeout", bad)
    assert caught.value.key == "timeout"


@pytest.mark.parametrize("bad", [0, -1, 1.5, "5", None, True])
def test_counts_that_are_none_are_refused(bad):
    with pytest.raises(errors.ConfigError):
        require_count("workers", bad)
