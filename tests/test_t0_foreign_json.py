"""JSON tables of contents are read through a window: wherever it ends, and whatever does not fit into it."""

import json

import pytest

from indexer.errors import FormatError, LimitExceeded
from indexer.foreign.json_entries import MAX_VALUE, read_entries


@pytest.mark.parametrize(("indent", "ascii_only"), [(None, True), ("\t", False)])
def test_what_the_window_cuts_is_read_whole(indent, ascii_only):
    names = [f"é{number}" * (number % 20_000) for number in range(0, 400_000, 9973)]
    entries = [{"name": name, "xattrs": {"a": "\U0001f600"}, "size": -0.5} for name in names]
    table = {"x": "é" * 100_000, "version": 1, "entries": entries}
    text = json.dumps(table, indent=indent, ensure_ascii=ascii_only).encode()
    assert len(text) > 2 * MAX_VALUE
    assert list(read_entries(text)) == entries


def test_the_window_may_end_anywhere():
    table = ' {"é" :-12.5e+3,"version": 1 ,"entries" : null}'.encode()
    for shown in range(len(table) + 1):
        space = b" " * (MAX_VALUE - shown)
        assert list(read_entries(space + table)) == []
        for damaged in (table[:-1], table.replace(b"+3", b"+"), table.replace(b"\xc3", b"\xc0")):
            with pytest.raises(FormatError):
                list(read_entries(space + damaged))


@pytest.mark.parametrize("unit", [b"[],", b'"x",'])
@pytest.mark.parametrize(
    "table", [b'{"x":[%s],"version":1,"entries":[]}', b'{"version":1,"entries":[{"x":[%s]}]}']
)
def test_a_value_that_would_take_much_memory_is_refused(table, unit):
    value = unit * (MAX_VALUE // len(unit)) + b"0"
    with pytest.raises(FormatError, match=f"has {MAX_VALUE} bytes"):
        list(read_entries(table % value))


def test_so_many_keys_are_refused():
    keys = b"".join(b'"%d":0,' % number for number in range(200))
    with pytest.raises(LimitExceeded, match="keys"):
        list(read_entries(b'{%s"version":1,"entries":[]}' % keys))
