"""Durations as people write them, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.config.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("5s", 5.0), ("1m30s", 90.0), ("2h", 7200.0), ("1d", 86400.0), ("250us", 0.00025), ("0", 0.0),
     ("7", 7.0), ("0.5", 0.5), ("1.5s", 1.5), ("10ns", 1e-8)],
)  # fmt: skip
def test_good_ones_are_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " 5s", "5 s", "5S", "-5s", "+5", "5sec", "1:30", "1e3", "inf", "nan", "5s3", "ms", "s5", "٣s", "9" * 100,
     "99999999999999999d", "1..5s", "0x10", "5m 3s", "five"],
)  # fmt: skip
def test_bad_ones_are_refused_with_an_example(text):
    with pytest.raises(ValueError, match="100ms, 5s, 1m30s"):
        parse_duration(text)


@given(st.text(max_size=20))
def test_any_text_is_a_number_of_seconds_or_refused(text):
    try:
        assert 0 <= parse_duration(text) <= 1e12
    except ValueError:
        pass


@given(st.integers(0, 10**6) | st.sampled_from([0.1, 0.025, 2.5, 1e-6]))
def test_what_is_shown_can_be_read_again(seconds):
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)
