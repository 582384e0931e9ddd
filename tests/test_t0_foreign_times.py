"""Times of foreign indexes: RFC 3339, as Go writes and reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import FormatError
from indexer.foreign.times import time_ns
from tests.support.foreign_layers import rfc3339


@given(st.integers(-62_135_596_799, 253_402_300_799), st.integers(0, 999_999_999))
def test_times_come_back(seconds, nanoseconds):
    assert time_ns(rfc3339(seconds, nanoseconds)) == seconds * 10**9 + nanoseconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:30:00-00:30", 0),
    ],
)
def test_times_of_all_forms(text, expected):
    assert time_ns(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01",
        "1970-13-01T00:00:00Z",
        "1970-02-30T00:00:00Z",
        "1970-01-01T24:00:00Z",
        "1970-01-01T00:60:00Z",
        "1970-01-01T00:00:60Z",
        "1970-01-01T00:00:00",
        "1970-01-01T00:00:00.Z",
        "1970-01-01T00:00:00.0123456789Z",
        "٢٠٢٤-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z\n",
    ],
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(FormatError):
        time_ns(text)
