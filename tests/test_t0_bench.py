"""The benchmark's own arithmetic: what it makes of samples, and how it tells."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import Case, MethodFailed, Row, Sample, measure
from bench.range_clients import RANGE_SIZE, ranges_of
from bench.report import as_json, footnote, is_disturbed, number, table
from bench.spread import Spread

values = st.floats(min_value=0, max_value=1e9, allow_nan=False)


@given(st.lists(values, min_size=1))
def test_a_median_lies_within_its_spread_whatever_the_order(samples):
    spread = Spread.of(samples)
    assert spread.low <= spread.median <= spread.high
    assert Spread.of(samples[::-1]) == spread
    assert sum(value <= spread.median for value in samples) * 2 >= len(samples)


@given(values, values)
def test_a_ratio_is_to_the_baseline(value, baseline):
    ratio = Spread.of([value]).ratio_to(Spread.of([baseline]))
    assert ratio == (value / baseline if baseline else None)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00512, "0.0051"), (0.0512, "0.0512"), (0.512, "0.512"), (5.126, "5.13"), (5126, "5126")],
)
def test_numbers_show_the_digits_that_count(value, shown):
    assert number(value) == shown


def _row(**changes):
    calls = []
    cases = [
        Case("base", lambda: calls.append("base") or 2.0, lambda: calls.append("prepare base")),
        Case("ours", lambda: calls.append("ours") or 1.0),
    ]
    return calls, Row(**{"name": "what", "unit": "s", "cases": cases, **changes})


def _measure(row, repeat=3):
    return measure(row, repeat, quiet_wait_s=0, progress=lambda _: None)


def test_methods_take_turns_and_are_prepared_each_time():
    calls, row = _row()
    measured = _measure(row)
    assert calls == ["prepare base", "base", "ours"] * 3
    assert [s.value for s in measured.samples["base"]] == [2.0] * 3


def test_exact_rows_are_measured_once():
    calls, row = _row(exact=True)
    assert len(_measure(row).samples["ours"]) == 1
    assert calls == ["prepare base", "base", "ours"]


def test_a_method_without_a_value_is_timed():
    row = Row("what", "s", [Case("sum", lambda: sum(range(1000)) and None)])
    for sample in _measure(row).samples["sum"]:
        assert sample.value == sample.wall_s > 0
        assert 0 <= sample.others_share <= 1


def test_a_method_that_fails_is_left_out_and_said_so():
    def fail():
        raise MethodFailed("not installed")

    calls, row = _row()
    measured = _measure(Row("what", "s", [*row.cases, Case("theirs", fail)]))
    assert measured.failures == {"theirs": "not installed"}
    assert calls.count("ours") == 3
    assert "theirs                 not measured: not installed" in table([measured])


def test_the_table_compares_with_the_first_method():
    _, row = _row()
    lines = table([_measure(row)]).splitlines()
    assert lines[0] == "what [s]"
    assert [line.split()[-2:] for line in lines[1:3]] == [["1.00", "x"], ["0.50", "x"]]


def _sample(others):
    return Sample(1.0, 1.0, 0.5, others)


def test_one_disturbed_sample_of_three_does_not_mark_a_median():
    assert not is_disturbed([_sample(0), _sample(0.9), _sample(0)])
    assert is_disturbed([_sample(0.9), _sample(0.9), _sample(0)])


def test_the_json_holds_every_sample_and_where_it_comes_from():
    _, row = _row(note="how")
    measured = _measure(row)
    document = json.loads(json.dumps(as_json([measured], ["bench", "micro"])))
    assert set(document) == {"version", "date", "command", "commit", "machine", "rows"}
    assert set(document["machine"]) == {"cpu", "cores", "memory_bytes", "kernel", "python"}
    (told,) = document["rows"]
    assert {name: told[name] for name in ("name", "unit", "note", "baseline", "failures")} == {
        "name": "what", "unit": "s", "note": "how", "baseline": "base", "failures": {},
    }  # fmt: skip
    for method, value in (("base", 2.0), ("ours", 1.0)):
        samples = told["methods"][method]
        assert samples["samples"] == [value] * 3
        assert {len(column) for column in samples.values()} == {3}
    assert "worst sample" in footnote([measured])


@given(st.integers(2 * RANGE_SIZE, 40 * RANGE_SIZE), st.integers(1, 100))
def test_ranges_stay_within_the_blob_and_come_to_the_total(size, count):
    ranges = list(ranges_of(size, count * RANGE_SIZE))
    assert len(ranges) == count
    assert all(0 <= start < end <= size and end - start == RANGE_SIZE for start, end in ranges)
