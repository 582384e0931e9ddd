"""When a run of reads is recognised, how far ahead of it to go, and what is brought beside what is read."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.toc import Entry, Proof, Span, SpanTable
from lazyfs.image.plan import beside
from lazyfs.image.readahead import ReadAhead, ReadAheadSettings

KIB, MIB = 1 << 10, 1 << 20
SETTINGS = ReadAheadSettings()


def _run(ahead, start, end, step=128 * KIB):
    return [found for at in range(start, end, step) if (found := ahead.note(at, at + step))]


def test_a_run_shows_itself_before_anything_is_brought():
    ahead = ReadAhead(SETTINGS)
    after = SETTINGS.after_bytes
    assert _run(ahead, 0, after - 128 * KIB) == []
    assert ahead.note(after - 128 * KIB, after) == (after, 2 * after)


def test_a_short_run_is_run_ahead_of_by_no_more_than_it_has_read():
    brought = _run(ReadAhead(SETTINGS), 0, SETTINGS.far_bytes - 128 * KIB)
    assert brought
    assert all(end <= 2 * start for start, end in brought)


def test_a_long_run_is_run_ahead_of_as_far_as_allowed_and_in_large_steps():
    brought = _run(ReadAhead(SETTINGS), 0, 400 * MIB)
    assert all(a[1] == b[0] for a, b in pairwise(brought))
    sizes = [end - start for start, end in brought]
    assert brought[-1][1] >= 400 * MIB
    assert sizes[-1] == pytest.approx(SETTINGS.most_step, rel=0.05)


@pytest.mark.parametrize("worth", [0, 100 * KIB, 3 * MIB])
def test_no_run_is_run_ahead_of_further_than_is_worth_it(worth):
    ahead = ReadAhead(SETTINGS)
    for at in range(0, 100 * MIB, 128 * KIB):
        found = ahead.note(at, at + 128 * KIB, worth)
        assert found is None or found[1] <= at + 128 * KIB + worth


def test_reads_that_leave_half_of_what_they_pass_are_no_run():
    ahead = ReadAhead(SETTINGS)
    assert all(ahead.note(at, at + 64 * KIB) is None for at in range(0, 50 * MIB, 128 * KIB))


def test_single_reads_here_and_there_bring_nothing():
    ahead = ReadAhead(SETTINGS)
    assert all(ahead.note(start, start + 4096) is None for start in range(0, 100 * MIB, MIB))


def test_runs_that_alternate_are_told_apart():
    ahead = ReadAhead(SETTINGS)
    found = [
        ahead.note(base + step * 128 * KIB, base + (step + 1) * 128 * KIB)
        for step in range(2)
        for base in (0, 50 * MIB, 90 * MIB)
    ]
    assert [bool(one) for one in found] == [False] * 3 + [True] * 3


def test_reads_of_a_run_may_be_a_little_out_of_order():
    ahead = ReadAhead(SETTINGS)
    found = []
    for at in range(0, 2 * MIB, 256 * KIB):
        found.append(ahead.note(at + 128 * KIB, at + 256 * KIB))
        found.append(ahead.note(at, at + 128 * KIB))
    assert any(found)


def test_it_can_be_turned_off():
    ahead = ReadAhead(ReadAheadSettings(most_reach=0))
    assert all(ahead.note(n * KIB, (n + 1) * KIB) is None for n in range(1000))


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, MIB)), max_size=200))
def test_what_is_brought_lies_ahead_and_within_reach(reads):
    ahead = ReadAhead(SETTINGS)
    for start, size in reads:
        found = ahead.note(start, start + size)
        if found:
            assert start < found[0] < found[1] <= start + size + SETTINGS.slack + SETTINGS.most_reach


SPANS = SpanTable.from_spans(
    [
        Span(
            n,
            n * MIB,
            (n + 1) * MIB,
            n * KIB,
            (n + 1) * KIB,
            Entry.RAW,
            0,
            0,
            0,
            0,
            0,
            bytes(32),
            Proof.CONTENT,
        )
        for n in range(2000)
    ]
)


@pytest.mark.parametrize(
    ("wanted", "here", "found"),
    [
        ([50], (), [49, 51, 52, 53, 54]),
        ([50, 51], (49, 52), [48, 53, 54, 55, 56]),
        ([0], (), [1, 2, 3, 4, 5]),
        ([1999], (), [1994, 1995, 1996, 1997, 1998]),
    ],
)
def test_two_spans_that_follow_are_brought_for_one_before(wanted, here, found):
    assert beside(SPANS, wanted, 5 * KIB, lambda number: number in here) == found


def test_of_a_layer_that_is_nearly_here_few_spans_are_looked_at():
    looked = []
    assert beside(SPANS, [1000], MIB, lambda number: not looked.append(number)) == []
    assert len(looked) < 500
