"""eStargz and zstd:chunked tables as Tocs: what they say is what the tar says; lies are noticed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import DigestMismatch, FormatError, LimitExceeded, Unsupported
from indexer.foreign.embedded import TAIL_SIZE, Promise, find_toc
from indexer.foreign.facts import MAX_SPAN
from indexer.foreign.landmark import prioritised
from indexer.foreign.packed import MAX_SHARING
from indexer.foreign.place import Form
from indexer.foreign.zstd_chunked import place_from_annotation
from indexer.spans.scan import Limits
from indexer.toc import AddressSpace, Entry, Proof, SpanTable, Toc
from indexer.toc_codec import decode_head, encode_toc
from tests.support.foreign_layers import (
    DIALECTS,
    LIVING,
    MIXED,
    STARGZ,
    ForeignLayer,
    contents,
    expected_members,
    gzip_footer,
    write_layer,
)
from tests.support.foreign_reading import address_space, toc_of
from tests.support.spans import read_span
from tests.support.tars import (
    directory,
    file,
    tar,
)


def check_layer(layer: ForeignLayer, original: bytes, dialect: str) -> Toc:
    toc = toc_of(layer)
    assert decode_head(encode_toc(toc)).toc() == toc
    assert [m._replace(data_start=0) for m in toc.members] == list(expected_members(original, dialect))
    space = address_space(toc, layer.blob)
    assert len(space) == toc.header.device_size == toc.header.uncompressed_size
    found = {m.path: space[m.data_start : m.data_start + m.size] for m in toc.members if m.size}
    assert found == contents(original)
    assert all(m.data_start % 512 == 0 for m in toc.members)
    return toc


@pytest.mark.parametrize("min_chunk", [0, 3000, 10**6])
@pytest.mark.parametrize("chunk_size", [1 << 22, 4096, 1000])
@pytest.mark.parametrize("dialect", LIVING)
def test_a_table_says_what_the_tar_says_and_leads_to_its_contents(dialect, chunk_size, min_chunk):
    layer = write_layer(MIXED, dialect, chunk_size=chunk_size, min_chunk=min_chunk)
    toc = check_layer(layer, MIXED, dialect)
    assert toc.header.address_space is AddressSpace.PACKED
    assert toc.header.diff_id == ""
    assert {span.proof for span in toc.spans} == {Proof.CONTENT}


_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\ufffd"), min_size=1, max_size=8).filter(
    lambda name: name.strip(".")
)
_contents = st.one_of(
    st.binary(max_size=2000),
    st.integers(0, 9000).map(bytes),
    st.tuples(st.binary(max_size=600), st.integers(1000, 3000), st.binary(max_size=600)).map(
        lambda parts: parts[0] + bytes(parts[1]) + parts[2]
    ),
)


@settings(max_examples=120)
@given(
    files=st.dictionaries(_names, _contents, max_size=12),
    dialect=st.sampled_from(LIVING),
    chunk_size=st.sampled_from([100, 512, 4096, 1 << 20]),
    min_chunk=st.sampled_from([0, 500, 5000]),
)
def test_any_files_come_back_from_any_dialect(files, dialect, chunk_size, min_chunk):
    original = tar(*(file(name.encode(), data) for name, data in files.items()))
    layer = write_layer(original, dialect, chunk_size=chunk_size, min_chunk=min_chunk)
    check_layer(layer, original, dialect)


def test_files_in_one_gzip_member_share_its_entry_and_are_read_alone_too():
    original = tar(*(file(b"f%d" % n, b"%d" % n * 50) for n in range(40)))
    layer = write_layer(original, "estargz", min_chunk=10**6)
    spans = toc_of(layer).spans
    assert {span.compressed_start for span in spans} == {spans[0].compressed_start}
    assert spans.sharing_entry(17) == range(40)
    for span in spans:
        alone = read_span(span, layer.blob[span.compressed_start : span.compressed_end], b"")
        assert alone.rstrip(b"\0") == b"%d" % span.number * 50


@pytest.mark.parametrize("dialect", ["estargz", "stargz zstd"])
def test_an_entry_is_shared_by_so_many_chunks_only(dialect):
    """Who reads one of them brings all. The landmark is one, too."""

    def spans_of(count: int) -> SpanTable:
        original = tar(file(b"f", b"x" * 512 * (count - 1)))
        return toc_of(write_layer(original, dialect, chunk_size=512, min_chunk=10**8)).spans

    assert len(spans_of(MAX_SHARING).sharing_entry(0)) == MAX_SHARING - 1
    with pytest.raises(Unsupported, match=f"more than {MAX_SHARING} chunks in a"):
        spans_of(MAX_SHARING + 1)


@pytest.mark.parametrize("dialect", LIVING)
def test_a_file_in_chunks_of_a_few_bytes_is_refused(dialect):
    """A read of a page of it would be one of 4096 spans."""
    layer = write_layer(tar(file(b"f", b"x" * 2000)), dialect, chunk_size=1)
    with pytest.raises(Unsupported, match="a file of 2000 bytes in 2000 chunks"):
        toc_of(layer)


def first_spans(layer: ForeignLayer) -> list[int]:
    toc = toc_of(layer)
    return list(prioritised(decode_head(encode_toc(toc)), toc.spans))


def test_what_stands_before_a_landmark_is_wanted_first():
    """A file that has the same content is no landmark."""
    first = file(b"a", b"a" * 9000) + file(b"b", b"\x0f")
    later = tar(file(b"c", b"c" * 900), file(b"d", b"\x0f"), file(b"e", b"e" * 4000 + b"\x0f"))
    layer = write_layer(later, "estargz", chunk_size=4000, first=first)
    check_layer(layer, first + later, "estargz")
    assert first_spans(layer) == [0, 1, 2, 3]
    for dialect in LIVING:
        assert first_spans(write_layer(later, dialect, chunk_size=4000)) == []


def test_zeros_need_no_bytes_of_the_blob():
    content = b"x" + bytes(9 << 20) + b"y" + bytes(2000)
    spans = toc_of(write_layer(tar(file(b"z", content)), "zstd:chunked")).spans
    frame, raw = Entry.ZSTD_FRAME, Entry.RAW
    assert [span.entry for span in spans] == [frame, raw, raw, raw, frame]
    for span in spans[1:4]:
        assert span.compressed_start == span.compressed_end
        assert read_span(span, b"", b"") == bytes(span.size)
    assert spans[4].padding == 2000 + -len(content) % 512


# Places


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_footer_tells_the_place_that_the_annotation_tells(dialect):
    layer = write_layer(MIXED, dialect)
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    positions = [text for key, text in layer.annotations.items() if key.endswith("manifest-position")]
    assert [place_from_annotation(text, len(layer.blob)) for text in positions] == [place] * len(positions)
    assert place
    assert place.form is (Form.ZSTD_CHUNKED if "zstd" in dialect else Form.ESTARGZ)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"x" * 100,
        gzip_footer(b"SG\x11\0STARGZEXTERNALTOC"),
        gzip_footer(b"SG\x16\0%016xSTARGY" % 0),
        gzip_footer(b"XX\x16\0%016xSTARGZ" % 0),
        gzip_footer(b"SG\x16\0" + b"G" * 16 + b"STARGZ"),
        b"\0" * 40 + b"GnUlInUx",
        b"GNUlInUx",
        write_layer(MIXED, "zstd:chunked").blob[-60:],
    ],
)
def test_other_tails_tell_no_place(tail):
    assert find_toc(tail, 10_000) is None


@pytest.mark.parametrize(
    ("position", "error"),
    [
        ("", FormatError),
        ("1:2:3", FormatError),
        ("100:200:300:1:", FormatError),
        ("-1:2:3:1", FormatError),
        ("٣:2:3:1", FormatError),
        ("7:2:3:1", FormatError),
        ("100:901:300:1", FormatError),
        ("999999999999999999:1:3:1", FormatError),
        ("100:200:0:1", FormatError),
        ("100:0:20:1", FormatError),
        ("100:200:300:2", Unsupported),
        ("100:200:999999999:1", LimitExceeded),
    ],
)
def test_places_that_cannot_be_are_refused(position, error):
    with pytest.raises(error):
        place_from_annotation(position, 1000)


def test_an_estargz_place_behind_the_blob_is_refused():
    for start in (1000, 2**64 - 1):
        with pytest.raises(FormatError):
            find_toc(gzip_footer(b"SG\x16\0%016xSTARGZ" % start), 1000)


# Trust


@pytest.mark.parametrize("dialect", LIVING)
def test_a_table_that_is_not_the_promised_one_is_refused(dialect):
    layer = write_layer(MIXED, dialect)
    other = "sha256:" + "0" * 64
    right = layer.annotations.get(STARGZ, "")
    for promise in (Promise(json=other), Promise(stored=other), Promise(right, other)):
        with pytest.raises(DigestMismatch):
            toc_of(layer, promise)


@pytest.mark.parametrize("dialect", LIVING)
def test_content_that_is_not_what_the_table_promises_is_never_given(dialect):
    def lie(table):
        for entry in table["entries"]:
            for key in ("digest", "chunkDigest"):
                if entry["name"] == "big" and key in entry:
                    entry[key] = "sha256:" + "0" * 64
        return table

    layer = write_layer(MIXED, dialect, edit=lie, chunk_size=50_000)
    toc = toc_of(layer)
    (big,) = [m for m in toc.members if m.path == b"big"]
    lying = toc.spans.covering(big.data_start, big.data_start + big.size)
    for span in toc.spans:
        data = layer.blob[span.compressed_start : span.compressed_end]
        if span.number in lying:
            with pytest.raises(DigestMismatch):
                read_span(span, data, b"")
        else:
            read_span(span, data, b"")


# Tables that cannot be


def _first_file(**changes):
    """Change the entry of the only file; None removes a key."""

    def edit(table):
        (entry,) = [e for e in table["entries"] if e["name"] == "f"]
        entry |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del entry[key]
        return table

    return edit


def _also(**entry):
    def edit(table):
        table["entries"].append(entry)
        return table

    return edit


BAD = {
    "no object": (lambda table: [], FormatError),
    "no version": (lambda table: {"entries": []}, FormatError),
    "another version": (lambda table: table | {"version": 2}, Unsupported),
    "a version of another type": (lambda table: table | {"version": True}, FormatError),
    "no entries": (lambda table: {"version": 1}, FormatError),
    "entries that are none": (lambda table: table | {"entries": {}}, FormatError),
    "an entry that is none": (lambda table: table | {"entries": ["x"]}, FormatError),
    "nested deeply": (lambda table: table | {"more": json.loads("[" * 500 + "]" * 500)}, None),
    "unknown keys": (lambda table: {"x": {"y": [1.5, None]}} | table, None),
    "unknown type": (_also(name="s", type="socket"), FormatError),
    "parents": (_also(name="../../etc/passwd", type="dir"), FormatError),
    "a NUL": (_also(name="a\0b", type="dir"), FormatError),
    "a root that is a file": (_also(name="/", type="reg"), FormatError),
    "no UTF-8": (_also(name="caf\ufffd", type="dir"), Unsupported),
    "half a surrogate": (_also(name="\ud800", type="dir"), FormatError),
    "a link to nowhere": (_also(name="l", type="symlink"), FormatError),
    "a long link": (_also(name="l", type="symlink", linkName="x" * 5000), LimitExceeded),
    "a hard link to the root": (_also(name="l", type="hardlink", linkName="/"), FormatError),
    "a hard link to no UTF-8": (_also(name="l", type="hardlink", linkName="\ufffd"), Unsupported),
    "no such user": (_also(name="u", type="dir", uid=2**32 - 1), FormatError),
    "a negative user": (_also(name="u", type="dir", uid=-1), FormatError),
    "no such device": (_also(name="u", type="char", devMajor=4096), FormatError),
    "no time": (_also(name="t", type="dir", modtime="yesterday"), FormatError),
    "a number for a time": (_also(name="t", type="dir", modtime=0), FormatError),
    "a string for a number": (_also(name="t", type="dir", mode="0755"), FormatError),
    "a fraction": (_also(name="t", type="dir", mode=0.5), FormatError),
    "xattrs that are a list": (_also(name="x", type="dir", xattrs=["a"]), FormatError),
    "an xattr that is no base64": (_also(name="x", type="dir", xattrs={"user.a": "_"}), FormatError),
    "an xattr without name": (_also(name="x", type="dir", xattrs={"": "AA=="}), FormatError),
    "a huge xattr": (_also(name="x", type="dir", xattrs={"user.a": "A" * (1 << 18)}), LimitExceeded),
    "a chunk of a directory": (_also(name="f", type="chunk", chunkOffset=5), FormatError),
    "no digest": (_first_file(digest=None, chunkDigest=None), Unsupported),
    "a digest of another kind": (_first_file(chunkDigest="sha512:" + "0" * 128), FormatError),
    "an unknown kind of chunk": (_first_file(chunkType="holes"), Unsupported),
    "a chunk behind the end": (_first_file(chunkSize=10**6), FormatError),
    "a chunk too few": (_first_file(size=10**6, chunkSize=900), FormatError),
    "a chunk that begins late": (_first_file(chunkOffset=1), FormatError),
    "a file without end": (_first_file(size=1 << 62), FormatError),
    "an offset behind the blob": (_first_file(offset=10**9), FormatError),
    "an end before the start": (_first_file(endOffset=1), FormatError),
    "too large to be checked": (_first_file(size=MAX_SPAN + 1, chunkSize=None), Unsupported),
    "too deep in its member": (_first_file(innerOffset=MAX_SPAN), Unsupported),
}


@pytest.mark.parametrize("case", BAD)
def test_tables_that_cannot_be_are_refused(case):
    edit, error = BAD[case]
    original = tar(directory(b"d"), file(b"f", b"x" * 900))
    layer = write_layer(original, "estargz", edit=edit)
    if error is None:
        toc_of(layer)
        return
    with pytest.raises(error):
        toc_of(layer)


def _rewritten(change) -> ForeignLayer:
    """A layer whose table is text of any kind."""
    layer = write_layer(tar(file(b"f", b"x" * 900)), "estargz")
    text = change(layer.json)
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    finished = DIALECTS["estargz"].finish(layer.blob[: place.start], text)
    return ForeignLayer(finished.blob, text, finished.annotations)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text + b"{}",
        lambda text: text[:-1],
        lambda text: text.replace(b'"version"', b"version"),
        lambda text: text.replace(b'"version": 1', b'"version": 1, "version": 1'),
        lambda text: text.replace(b'"size"', b'"size": 900, "size"'),
        lambda text: text.replace(b'"size": 900', b'"size": ' + b"9" * 5000),
        lambda text: text.replace(b'"size": 900', b'"size": NaN'),
        lambda text: text.replace(b'"entries"', b'"x": ' + b"[" * 100_000 + b', "entries"'),
        lambda text: text.replace(b'"f"', b'"\xff"'),
        lambda text: text.replace(b'"entries": [', b'"entries": [,'),
        lambda text: b"{,}",
        lambda text: b'{1: 2, "version": 1, "entries": []}',
    ],
)
def test_text_that_is_no_table_is_refused(change):
    with pytest.raises(FormatError):
        toc_of(_rewritten(change))


def test_an_empty_table_is_one():
    for entries in (b"[]", b"null", b" [ ] "):
        text = b'{ "entries" :' + entries + b', "version":1 }\n'
        assert toc_of(_rewritten(lambda _, text=text: text)).members == []


def test_more_members_or_bytes_than_allowed_are_refused():
    layer = write_layer(tar(*(file(b"f%d" % n, bytes(5000)) for n in range(30))), "zstd:chunked")
    with pytest.raises(LimitExceeded, match="more than 29"):
        toc_of(layer, limits=Limits(max_members=29))
    with pytest.raises(LimitExceeded, match="bomb"):
        toc_of(layer, limits=Limits(ratio_floor=1000, max_ratio=2))


def test_zeros_without_end_are_a_bomb():
    size = 1 << 50

    def edit(table):
        (entry,) = table["entries"]
        entry |= {"size": size, "chunkSize": size, "chunkType": "zeros", "chunkDigest": entry["digest"]}
        return table

    with pytest.raises(LimitExceeded, match="bomb"):
        toc_of(write_layer(tar(file(b"f", b"x" * 900)), "zstd:chunked", edit=edit))


def test_chunks_that_overlap_are_refused():
    def same_offset(table):
        files = [entry for entry in table["entries"] if entry.get("size") == 900]
        for entry in files:
            entry["offset"] = files[0]["offset"]
        return table

    original = tar(file(b"a", b"a" * 900), file(b"b", b"b" * 900))
    for dialect in LIVING:
        with pytest.raises(FormatError, match="overlap"):
            toc_of(write_layer(original, dialect, edit=same_offset))


def test_the_order_of_entries_does_not_matter():
    """Contents are packed in the order of the blob; members keep that of the table."""
    original = tar(*(file(b"f%d" % n, b"%d" % n * 900) for n in range(9)))

    def shuffle(table):
        table["entries"].reverse()
        return table

    layer = write_layer(original, "zstd:chunked", edit=shuffle)
    toc = toc_of(layer)
    space = address_space(toc, layer.blob)
    assert [m.path for m in toc.members] == [b"f%d" % n for n in reversed(range(9))]
    assert {m.path: space[m.data_start : m.data_start + m.size] for m in toc.members} == contents(original)
