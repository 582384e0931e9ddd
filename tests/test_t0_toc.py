"""The encoded table of contents: round trips, and what strangers may do to it."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer import member_table, toc_codec
from indexer.__main__ import main
from indexer.digest import digest_hex, leaf_count, leaf_digests, merkle_root
from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.leaf_proofs import SpanProof, SpanTree
from indexer.member_table import check_path, decode_members, decode_owners, decode_ranges, encode_members
from indexer.tar.header import MAX_PATH
from indexer.toc import (
    AddressSpace,
    Compression,
    Entry,
    Extent,
    Kind,
    Member,
    Proof,
    Span,
    SpanTable,
    Toc,
    TocHeader,
    round_to_block,
)
from indexer.toc_codec import WindowCompressor, decode_head, decompress_window, encode_toc

_DIGEST = "sha256:" + "ab" * 32
names = st.binary(min_size=1, max_size=12).filter(lambda b: not set(b) & set(b"/\0") and b.strip(b"."))
paths = st.lists(names, max_size=4).map(b"/".join)


@st.composite
def member_lists(draw):
    members = []
    end = 0
    for path in draw(st.lists(paths, max_size=30)):
        kind = draw(st.sampled_from(Kind))
        size = draw(st.integers(0, 1 << 40)) if kind is Kind.REGULAR else 0
        start = end + 512 * draw(st.integers(1, 4)) if size else 0
        end = round_to_block(start + size) if size else end
        link = draw(st.binary(max_size=20)) if kind in (Kind.SYMLINK, Kind.HARDLINK) else b""
        number = st.integers(0, 2**32 - 1)
        members.append(
            Member(
                path=path,
                kind=kind,
                mode=draw(st.integers(0, 0o7777)),
                uid=draw(st.integers(0, 2**32 - 2)),
                gid=draw(st.integers(0, 2**32 - 2)),
                mtime_ns=draw(st.integers(-(10**20), 10**20).filter(lambda n: abs(n // 10**9) < 2**63)),
                size=size,
                data_start=start,
                link=link,
                device=draw(st.tuples(number, number)),
                xattrs=tuple(
                    sorted(draw(st.dictionaries(names, st.binary(max_size=20), max_size=2)).items())
                ),
            )
        )
    return members


@given(member_lists())
def test_members_come_back(members):
    assert decode_members(encode_members(members), len(members)) == members


@given(member_lists())
def test_who_owns_members_is_known_without_the_rest(members):
    owners = decode_owners(encode_members(members), len(members))
    assert owners.users == {member.uid for member in members}
    assert owners.groups == {member.gid for member in members}


@given(member_lists(), st.randoms(use_true_random=False))
def test_where_files_lie_is_known_without_the_rest(members, random):
    random.shuffle(members)  # as tables of others have them
    ranges = decode_ranges(encode_members(members), len(members))
    files = [member for member in members if member.size]
    assert len(ranges) == len(files)
    for member in files:
        start, end = member.data_start, member.data_start + member.size
        assert ranges.around(start) == ranges.around(end - 1) == (start, end)
        assert ranges.around(start - 1) is None
    assert ranges.around(0) is None


@st.composite
def tocs(draw):
    spans = []
    position = compressed = window_at = 0
    for number in range(draw(st.integers(0, 8))):
        proof = draw(st.sampled_from(Proof))
        size = draw(st.integers(1, 100_000))
        window = draw(st.integers(0, 3000))
        length = draw(st.integers(1, 50_000))
        spans.append(
            Span(
                number=number,
                uncompressed_start=position,
                uncompressed_end=position + size,
                compressed_start=compressed,
                compressed_end=compressed + length,
                entry=draw(st.sampled_from(Entry)),
                bits=draw(st.integers(0, 7)),
                skip=draw(st.integers(0, 9)),
                window_start=window_at,
                window_end=window_at + window,
                first_leaf=0,
                root=draw(st.binary(min_size=32, max_size=32)),
                proof=proof,
                padding=draw(st.integers(0, size)),
                blake3=draw(st.binary(min_size=32, max_size=32)) if proof is Proof.MERKLE else b"",
            )
        )
        position += size
        compressed += draw(st.integers(0, length))
        window_at += window
    members = [m for m in draw(member_lists()) if not m.size]
    end = round_to_block(position)
    extents = (Extent(end + 512, 0, position),) if position else ()
    header = TocHeader(
        layer_digest=_DIGEST,
        layer_size=1 << 20,
        diff_id=draw(st.sampled_from([_DIGEST, ""])),
        uncompressed_size=position,
        device_size=round_to_block(end + 512 + position),
        compression=draw(st.sampled_from(Compression)),
        address_space=draw(st.sampled_from(AddressSpace)),
        span_size=1000,
        windows_digest=_DIGEST,
    )
    return Toc(header, SpanTable.from_spans(spans), extents, members)


@given(tocs())
def test_a_toc_comes_back_and_its_bytes_are_the_same_each_time(toc):
    data = encode_toc(toc)
    head = decode_head(data)
    assert head.toc() == toc
    assert encode_toc(toc) == data
    assert decode_head(data, head.digest).header == toc.header


def _toc() -> Toc:
    span = Span(0, 0, 1000, 0, 500, Entry.GZIP_MEMBER, 0, 0, 0, 0, 0, bytes(32), blake3=bytes(32))
    header = TocHeader(_DIGEST, 500, _DIGEST, 1000, 1024, Compression.GZIP, AddressSpace.TAR, 1000, _DIGEST)
    return Toc(
        header, SpanTable.from_spans([span]), (), [Member(b"a", Kind.REGULAR, size=10, data_start=512)]
    )


GOOD = encode_toc(_toc())


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.integers(0, len(GOOD)))
def test_any_damage_is_noticed(position, flip, cut):
    mutated = bytearray(GOOD)
    mutated[position] ^= flip
    for bad in (bytes(mutated), GOOD[:cut]):
        if bad == GOOD:
            continue
        with pytest.raises(IndexerError):
            decode_head(bad)


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 20))
def test_a_member_table_of_garbage_gives_our_errors_only(data, count):
    try:
        decode_members(data, count)
    except IndexerError:
        pass
    else:
        assert count == 0 or data
    for decode in (decode_ranges, decode_owners):
        with suppress(IndexerError):
            decode(data, count)


@settings(max_examples=300)
@given(member_lists(), st.data())
def test_a_mutated_member_table_gives_members_or_our_error(members, data):
    encoded = bytearray(encode_members(members))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode_ranges(bytes(encoded), len(members))
        decode_owners(bytes(encoded), len(members))
        decoded = decode_members(bytes(encoded), len(members))
    except IndexerError:
        return
    for member in decoded:
        check_path(member.path)


def _lying(**changes: object) -> bytes:
    toc = _toc()
    return encode_toc(replace(toc, header=replace(toc.header, **changes)))


@pytest.mark.parametrize(
    "data",
    [
        _lying(uncompressed_size=999),
        _lying(layer_size=499),
        _lying(device_size=512),
        _lying(device_size=1023),
    ],
)
def test_a_toc_whose_tables_contradict_its_header_is_refused(data):
    with pytest.raises(FormatError):
        decode_head(data).toc()


def test_only_spans_with_merkle_roots_have_a_second_digest():
    digest = bytes(range(32))
    sizes = {}
    for proof in Proof:
        span = _toc().spans[0]._replace(proof=proof, blake3=digest)
        head = decode_head(encode_toc(replace(_toc(), spans=SpanTable.from_spans([span]))))
        sizes[proof] = head.decoded_size
        assert [s.blake3 for s in head.spans()] == [digest if proof is Proof.MERKLE else b""]
    assert sizes[Proof.MERKLE] - 32 == sizes[Proof.CONTENT] == sizes[Proof.COMPRESSED]


@settings(max_examples=200)
@given(tocs(), st.data())
def test_a_mutated_span_table_gives_spans_or_our_error(toc, data):
    encoded = bytearray(toc_codec._encode_spans(toc.spans))
    for _ in range(data.draw(st.integers(0, 3)) if encoded else 0):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([0, 0, 1, 32]))
    try:
        spans = toc_codec._decode_spans(bytes(encoded[: len(encoded) - cut]), len(toc.spans), toc.header)
    except IndexerError:
        return
    assert not cut or not encoded
    for span in spans:
        assert len(span.blake3) == (32 if span.proof is Proof.MERKLE else 0)


def test_a_member_whose_content_leaves_the_layer_is_refused():
    toc = replace(_toc(), members=[Member(b"a", Kind.REGULAR, size=600, data_start=512)])
    with pytest.raises(FormatError, match="passes the end"):
        decode_head(encode_toc(toc)).members()


def test_what_an_index_holds_is_shown_without_what_a_terminal_obeys(tmp_path, capsys):
    members = [Member(b"\x1b[2J\xff", Kind.SYMLINK, link=b"a\nb \xc3\xa9")]
    (tmp_path / "a.toc").write_bytes(encode_toc(replace(_toc(), members=members)))
    assert main(["show", str(tmp_path / "a.toc")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(r" \x1b[2J\xff -> a\nb é")


def test_another_version_or_digest_is_told_apart():
    with pytest.raises(Unsupported, match="version 9"):
        decode_head(GOOD[:7] + b"\x09" + GOOD[8:])
    with pytest.raises(DigestMismatch):
        decode_head(GOOD, _DIGEST)
    with pytest.raises(FormatError, match="not a lazyfs"):
        decode_head(b"x" * 400)


def test_a_member_table_without_the_sets_its_members_name_is_refused():
    table = encode_members([Member(b"a", Kind.DIRECTORY)])
    only_set = member_table._encode_xattr_sets([()])
    none = member_table._encode_xattr_sets([])
    with pytest.raises(FormatError, match="unknown set"):
        decode_members(table.removesuffix(only_set) + none, 1)


def test_paths_may_not_be_more_than_tars_give_by_sharing():
    """A byte each, and all the rest of the path before: from 2 MB a table of 60 GB."""
    longest = b"a" * (MAX_PATH - 1)
    assert len(decode_members(encode_members([Member(longest + b"b", Kind.FIFO)] * 2), 2)) == 2
    with pytest.raises(FormatError, match="too long"):
        decode_members(encode_members([Member(longest + b"bc", Kind.FIFO)]), 1)
    count = (1 << 30) // MAX_PATH + 1
    many = encode_members([Member(longest + b"b", Kind.FIFO)] * count)
    with pytest.raises(LimitExceeded, match="together"):
        decode_members(many, count)


def test_a_span_of_compressed_bytes_that_hold_nothing_is_refused():
    toc = _toc()
    blob_size = 1 << 30
    span = toc.spans[0]._replace(compressed_start=0, compressed_end=blob_size)
    toc = replace(toc, header=replace(toc.header, layer_size=blob_size), spans=SpanTable.from_spans([span]))
    with pytest.raises(LimitExceeded, match="compressed bytes"):
        decode_head(encode_toc(toc)).spans()


_FEW = bytes(b"./a\0"[number % 4] for number in range(256))  # what paths are refused for, and a letter


@pytest.mark.parametrize("path", [b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"./a", b"a/.", b"a\0b"])
@pytest.mark.parametrize("before", [0, 1, 1023, 1024, 3000])
def test_paths_no_tar_could_give_are_refused(path, before):
    """By itself, and in a table: there they are looked at many at once."""
    with pytest.raises(FormatError):
        check_path(path)
    members = [Member(b"%d" % number, Kind.FIFO) for number in range(before)]
    members += [Member(b"", Kind.DIRECTORY), Member(b"z", Kind.FIFO)]
    assert decode_members(encode_members(members), len(members)) == members
    with pytest.raises(FormatError, match="not a clean path"):
        decode_members(encode_members([*members, Member(path, Kind.FIFO)]), len(members) + 1)


@given(st.lists(st.binary(max_size=4).map(lambda text: text.translate(_FEW)), max_size=8))
def test_many_paths_are_refused_where_one_would_be(paths):
    refused = False
    for path in paths:
        try:
            check_path(path)
        except FormatError:
            refused = True
    try:
        member_table._check_paths(paths)
    except FormatError:
        assert refused
    else:
        assert not refused


@given(st.binary(max_size=32768))
def test_windows_come_back(window):
    assert decompress_window(WindowCompressor()(window)) == window


@given(st.binary(max_size=200))
def test_a_damaged_window_gives_our_error(data):
    with suppress(FormatError):
        assert len(decompress_window(data)) <= 32768


def test_a_window_larger_than_a_window_is_refused():
    with pytest.raises(FormatError):
        decompress_window(WindowCompressor()(bytes(32769)))


@given(st.binary(max_size=40_000), st.data())
def test_a_leaf_is_proved_by_its_siblings_alone(data, draw):
    leaves = leaf_digests(data)
    assert len(leaves) == leaf_count(len(data))
    root = merkle_root(leaves)
    if not leaves:
        return
    index = draw.draw(st.integers(0, len(leaves) - 1))
    tree = SpanTree(data)
    for leaf in (bytes(32), leaves[index]):
        proof = SpanProof(len(leaves), root)
        told = {node: tree[node] for node in proof.needed([index])}
        assert proof.check({index: leaf}, told) == (leaf == leaves[index])


@given(tocs())
def test_the_span_table_finds_what_a_walk_would(toc):
    spans = list(toc.spans)
    for span in spans:
        for offset in (span.uncompressed_start, span.uncompressed_end - 1):
            assert toc.spans.find(offset) == span.number
    if spans:
        end = spans[-1].uncompressed_end
        assert list(toc.spans.covering(0, end)) == list(range(len(spans)))
        assert toc.spans.leaf_range(0, end) == (0, toc.spans.leaves)
        assert toc.spans.leaves == sum(leaf_count(s.size) for s in spans)
        with pytest.raises(FormatError):
            toc.spans.find(end)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha512:" + "a" * 64, "../" + "a" * 64]
)
def test_only_sha256_digests_become_file_names(text):
    with pytest.raises(FormatError):
        digest_hex(text)
