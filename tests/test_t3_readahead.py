"""When a run of reads is recognised, how far ahead of it to go, and what is brought beside what is read."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.member_table import FileRanges
from indexer.toc import Entry, Proof, Span, SpanTable
from lazyfs.cache.cache import Cache
from lazyfs.image.reading.beside import Beside, absent_spans
from lazyfs.image.reading.plan import beside
from lazyfs.image.reading.readahead import ReadAhead, ReadAheadSettings
from lazyfs.source.line import Line
from tests.support.layers import digest_of

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


def spans_of(count: int, size: int, compressed_size: int) -> SpanTable:
    return SpanTable.from_spans(
        [
            Span(
                n,
                n * size,
                (n + 1) * size,
                n * compressed_size,
                (n + 1) * compressed_size,
                Entry.RAW,
                0,
                0,
                0,
                0,
                0,
                bytes(32),
                Proof.CONTENT,
            )
            for n in range(count)
        ]
    )


SPANS = spans_of(2000, MIB, KIB)


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
    assert beside(SPANS, wanted, 5 * KIB, left_but(here)) == found


def left_but(here) -> Callable[[range], Iterator[int]]:
    return lambda numbers: (number for number in numbers if number not in here)


def one_by_one(wanted: list[int], room: int, here: set[int], file: range) -> list[int]:
    """What `beside` says of spans of one size, told by looking at all of them."""
    after, before = wanted[-1] + 1, wanted[0] - 1
    rest = [*range(after, file.stop)[:256], *range(before, file.start - 1, -1)[:256]] if file else []
    least = 3 * room if len(file or wanted) * MIB <= 8 * MIB else room
    found = [number for number in rest if number not in here]
    spent = min(len(found), least // KIB + 1)
    found = found[: least // KIB]
    up, down = max(after, file.stop), min(before, file.start - 1) if file else before
    around = []
    for turn in range(256):
        if turn % 3 == 2:
            around.append(down)
            down -= 1
        else:
            around.append(up)
            up += 1
    more = [number for number in around if number in range(2000) and number not in here]
    return sorted(found + more[: max(room // KIB - spent, 0)])


@given(
    st.integers(0, 1999),
    st.integers(1, 3),
    st.integers(0, 30),
    st.sets(st.integers(0, 1999), max_size=50),
    st.booleans(),
    st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_what_is_brought_is_what_a_look_at_each_span_would_say(first, count, room, few, nearly, reach):
    wanted = list(range(first, min(first + count, 2000)))
    file = (
        range(max(wanted[0] - reach[0], 0), min(wanted[-1] + 1 + reach[1], 2000)) if any(reach) else range(0)
    )
    here = (set(range(2000)) - few if nearly else few) | set(wanted)
    assert beside(SPANS, wanted, room * KIB, left_but(here), file) == one_by_one(
        wanted, room * KIB, here, file
    )


@pytest.mark.parametrize("step", [1, -1])
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_spans_that_are_not_here_are_found_by_their_marks(tmp_path, step, data):
    gone = data.draw(st.sets(st.integers(0, 39), max_size=9))
    first, end = sorted(data.draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
    spans = spans_of(20, 8 * KIB, 8 * KIB)
    with Cache(tmp_path).layer(digest_of(b"1"), digest_of(b"2"), 160 * KIB, spans.leaves) as entry:
        entry.put(0, 0, bytes(160 * KIB))
        entry.clear((leaf, leaf + 1) for leaf in gone)
        numbers = range(first, end)[::step]
        expected = [n for n in numbers if not entry.has(spans[n].first_leaf, spans[n].end_leaf)]
        assert list(absent_spans(spans, entry, numbers)) == expected


def test_of_a_layer_that_is_nearly_here_nothing_is_looked_at_span_by_span(tmp_path):
    """Only what is not here is, as far as it is brought."""
    few = spans_of(600, 4 * KIB, KIB)
    asked = []

    class Fetcher:
        bytes_under_way = KIB

        def carried(self, _within_s: float, _round_trip_s: float) -> int:
            return 2 * KIB

        def is_under_way(self, number: int) -> bool:
            return bool(asked.append(number))

    with Cache(tmp_path).layer(digest_of(b"1"), digest_of(b"2"), 2400 * KIB, few.leaves) as entry:
        line = Line()
        for _ in range(3):
            line.answered(0.04)
        chosen = Beside(few, Fetcher(), line, FileRanges)
        for number in range(600):
            if number not in (290, 300, 350, 360, 370):
                entry.put(number * 4 * KIB, number, bytes(4 * KIB))
        assert chosen.choose(300 * 4 * KIB, [300], entry, lambda _: False) == [290, 350]
    assert len(asked) <= 4
