"""When a run of reads is recognised, and how far ahead of it to go."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.image.readahead import ReadAhead, ReadAheadSettings

KIB, MIB = 1 << 10, 1 << 20
SETTINGS = ReadAheadSettings()


def test_a_run_shows_itself_before_anything_is_brought():
    ahead = ReadAhead(SETTINGS)
    assert ahead.note(0, 128 * KIB) is None
    assert ahead.note(128 * KIB, 256 * KIB) is None
    assert ahead.note(256 * KIB, 384 * KIB) == (384 * KIB, 384 * KIB + MIB)


def test_the_reach_doubles_as_it_is_used_up():
    ahead = ReadAhead(SETTINGS)
    brought = [
        found for start in range(0, 200 * MIB, 128 * KIB) if (found := ahead.note(start, start + 128 * KIB))
    ]
    assert all(a[1] == b[0] for a, b in pairwise(brought))
    sizes = [end - start for start, end in brought]
    assert max(sizes) <= SETTINGS.most_reach
    assert brought[-1][1] >= 200 * MIB
    assert sizes[4] > sizes[0]


def test_single_reads_here_and_there_bring_nothing():
    ahead = ReadAhead(SETTINGS)
    assert all(ahead.note(start, start + 4096) is None for start in range(0, 100 * MIB, MIB))


def test_runs_that_alternate_are_told_apart():
    ahead = ReadAhead(SETTINGS)
    found = [
        ahead.note(base + step * 128 * KIB, base + (step + 1) * 128 * KIB)
        for step in range(3)
        for base in (0, 50 * MIB, 90 * MIB)
    ]
    assert [bool(one) for one in found] == [False] * 6 + [True] * 3


def test_reads_of_a_run_may_be_a_little_out_of_order():
    ahead = ReadAhead(SETTINGS)
    ahead.note(128 * KIB, 256 * KIB)
    ahead.note(0, 128 * KIB)
    assert ahead.note(256 * KIB, 384 * KIB) is not None


def test_it_can_be_turned_off():
    ahead = ReadAhead(ReadAheadSettings(most_reach=0))
    assert all(ahead.note(n * KIB, (n + 1) * KIB) is None for n in range(1000))


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, MIB)), max_size=200))
def test_what_is_brought_lies_ahead_and_within_reach(reads):
    ahead = ReadAhead(SETTINGS)
    for start, size in reads:
        found = ahead.note(start, start + size)
        if found:
            assert start < found[0] < found[1] <= start + size + SETTINGS.slack + MIB + SETTINGS.most_reach
