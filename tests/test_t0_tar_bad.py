"""The tar parser on bytes of strangers: each fault has its error, and no bytes give another."""

import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.tar import stream as tar_stream
from indexer.tar.stream import TarParser
from indexer.toc import Kind, tail_start
from tests.support.tar_reading import content, parse, pieces_of
from tests.support.tars import (
    BLOCK,
    GNU,
    base256,
    char,
    directory,
    file,
    gnu_long,
    gnu_sparse,
    hardlink,
    member,
    number,
    padded,
    patched,
    pax,
    pax_raw,
    pax_record,
    pax_sparse,
    raw_header,
    symlink,
    tar,
)

PIECES = [(1024 * i, b"x" * 512) for i in range(8)]


def gnu_map(*numbers: int, size: int = 4096, stored: int = 1024) -> bytes:
    """An old GNU sparse header with these numbers in its cells."""
    head = raw_header(b"s", typeflag=b"S", magic=GNU, size=stored)
    return patched(head, 386, b"".join(number(n, 12) for n in numbers).ljust(97, b"\0") + number(size, 12))


def pax_map(text: bytes, **records: bytes) -> bytes:
    """A sparse file of 4096 bytes, 1024 of them stored, whose map of format 0.1 is `text`."""
    fields = {"map": text, "size": b"4096", "numblocks": b"%d" % ((text.count(b",") + 1) // 2)} | records
    named = {b"GNU.sparse." + key.encode(): value for key, value in fields.items()}
    return pax(named) + file(b"s", b"d" * 1024)


def body_map(text: bytes, data: bytes = b"d" * 1024) -> bytes:
    """A sparse file of 4096 bytes in format 1.0, whose map is `text`."""
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"4096"}
    return pax(records) + file(b"s", padded(text) + data)


def numbers(count: int, end: bytes) -> bytes:
    """A map of format 1.0 with `count` pieces, the last number of which is `end`."""
    return b"%d\n" % count + b"1\n" * (2 * count - 1) + end


FAULTS = {
    "checksum": (patched(file(b"a"), 0, b"b", sign=False), FormatError, "checksum"),
    "no checksum": (raw_header(b"a", sign=False), FormatError, "checksum"),
    "not a tar": (b"\x1f\x8b" * 256, FormatError, "checksum"),
    "one zero block": (bytes(512) + file(b"a"), FormatError, "single zero block"),
    "mode": (raw_header(b"a", mode=b"12x"), FormatError, "mode"),
    "mtime": (raw_header(b"a", mtime=base256(2**63, 12)), FormatError, "mtime does not fit"),
    "negative size": (raw_header(b"a", size=-1), FormatError, "body of -1 bytes"),
    "huge size": (raw_header(b"a", size=2**41), LimitExceeded, "body that ends"),
    "negative uid": (raw_header(b"a", uid=-1), FormatError, "no user"),
    "uid -1 of 32 bits": (file(b"a", uid=2**32 - 1), FormatError, "no user"),
    "gid": (file(b"a", gid=2**40), FormatError, "no user"),
    "type": (member(b"dir/name", b"?"), Unsupported, r"b'\?', b'dir/name'"),
    "multivolume": (member(b"a", b"M"), Unsupported, "b'M'"),
    "major": (char(b"c", 4096, 0), FormatError, "no device"),
    "minor": (char(b"c", 0, 1 << 20), FormatError, "no device"),
    "device": (patched(char(b"c", 1, 1), 329, b"x"), FormatError, "devmajor"),
    "dot dot": (file(b"a/../b"), FormatError, r'"\.\."'),
    "dot dot alone": (directory(b".."), FormatError, r'"\.\."'),
    "dot dot in a link": (hardlink(b"a", b"../b"), FormatError, r'"\.\."'),
    "root file": (file(b"."), FormatError, "root"),
    "no name": (file(b"", b"data"), FormatError, "root"),
    "root link": (hardlink(b"a", b"./"), FormatError, "hard link to the root"),
    "long component": (file(b"a/" + b"n" * 256), FormatError, "more than 255"),
    "long path": (file(b"n/" * 2100), LimitExceeded, "4199 bytes"),
    "long path, GNU": (gnu_long(b"n/" * 2100) + file(b"a"), LimitExceeded, "4199 bytes"),
    "NUL in path": (pax_raw(pax_record(b"path", b"a\0b")) + file(b"a"), FormatError, "no such record"),
    "NUL in link": (pax({b"linkpath": b"a\0b"}) + symlink(b"a", b"b"), FormatError, "no such record"),
    "NUL in sparse name": (pax_map(b"0,1024", name=b"a\0"), FormatError, "NUL"),
    "empty target": (symlink(b"a", b""), FormatError, "nowhere"),
    "long target": (symlink(b"a", b"t" * 4096), LimitExceeded, "4096 bytes"),
    "long hard link": (hardlink(b"a", b"t/" * 4096), LimitExceeded, "8191 bytes"),
    "PAX length": (pax_raw(b"99 path=a\n"), FormatError, "length"),
    "PAX length short": (pax_raw(b"3 path=a\n"), FormatError, "length"),
    "PAX length 0": (pax_raw(b"0 path=a\n"), FormatError, "length"),
    "PAX length sign": (pax_raw(b"+9 path=a\n"), FormatError, "length"),
    "PAX length none": (pax_raw(b" path=a\n"), FormatError, "length"),
    "PAX length digits": (pax_raw(b"9" * 5000), FormatError, "length"),
    "PAX newline": (pax_raw(b"9 path=ab"), FormatError, "length"),
    "PAX no equals": (pax_raw(b"7 path\n"), FormatError, "no such record"),
    "PAX no key": (pax_raw(b"5 =a\n"), FormatError, "no such record"),
    "PAX NUL in key": (pax({b"a\0": b"b"}), FormatError, "no such record"),
    "PAX in global": (pax_raw(b"99 path=a\n", b"g"), FormatError, "length"),
    "PAX too large": (raw_header(b"x", typeflag=b"x", size=(1 << 20) + 1), LimitExceeded, "extended header"),
    "GNU name too large": (raw_header(b"x", typeflag=b"L", size=2**33), LimitExceeded, "extended header"),
    "PAX negative": (raw_header(b"x", typeflag=b"x", size=-1), FormatError, "extended header of -1"),
    "PAX uid": (pax({b"uid": b"-1"}) + file(b"a"), FormatError, "uid is not a number"),
    "PAX gid": (pax({b"gid": b"0x1"}) + file(b"a"), FormatError, "gid is not a number"),
    "PAX size": (pax({b"size": b"9" * 5000}) + file(b"a"), FormatError, "size is not a number"),
    "PAX size of 64 bits": (pax({b"size": b"%d" % 2**63}) + file(b"a"), FormatError, "size is not a number"),
    "PAX time": (file(b"a", mtime="1e9"), FormatError, "mtime is not a time"),
    "PAX time none": (file(b"a", mtime="."), FormatError, "mtime is not a time"),
    "PAX time digits": (file(b"a", mtime="9" * 5000), FormatError, "mtime is not a time"),
    "PAX time of 64 bits": (file(b"a", mtime=str(2**63)), FormatError, "mtime does not fit"),
    "PAX time below": (file(b"a", mtime=f"-{2**63}.1"), FormatError, "mtime does not fit"),
    "xattr without name": (file(b"a", xattrs={b"": b"1"}), FormatError, "proper name"),
    "xattr NUL": (pax({b"LIBARCHIVE.xattr.a%00": b"AAAA"}) + file(b"a"), FormatError, "proper name"),
    "xattr base64": (pax({b"LIBARCHIVE.xattr.a": b"A!AA"}) + file(b"a"), FormatError, "base64"),
    "xattr name": (file(b"a", xattrs={b"n" * 256: b"1"}), LimitExceeded, "256 bytes of an xattr's name"),
    "xattr value": (file(b"a", xattrs={b"n": b"v" * 65537}), LimitExceeded, "65537 bytes of an xattr"),
    "xattr count": (file(b"a", xattrs={b"%d" % i: b"v" for i in range(1025)}), LimitExceeded, "1025 xattrs"),
    "xattr sum": (
        file(b"a", xattrs={b"%d" % i: b"v" * 65535 for i in range(3)}),
        LimitExceeded,
        "bytes of xattrs",
    ),
    "sparse v7": (raw_header(b"a", typeflag=b"S"), Unsupported, "not of GNU format"),
    "sparse order": (gnu_map(2048, 512, 0, 512), FormatError, "out of order"),
    "sparse overlap": (gnu_map(0, 512, 511, 512), FormatError, "out of order"),
    "sparse end": (gnu_map(0, 512, 4000, 512), FormatError, "of 4512 bytes for a file of 4096"),
    "sparse sum": (gnu_map(0, 512, 1024, 500), FormatError, "1012 stored bytes, where 1024"),
    "sparse negative length": (gnu_map(1024, -512, 1024, 1536), FormatError, "out of order"),
    "sparse negative size": (gnu_map(0, 0, size=-1, stored=0), FormatError, "file of -1"),
    "sparse number": (patched(gnu_map(0, 512), 386, b"12x\0"), FormatError, "sparse offset"),
    "sparse size": (patched(gnu_map(0, 512), 483, b"12x\0"), FormatError, "real size"),
    "sparse tail": (gnu_sparse(b"a", 2**41 - 512, []) * 2, LimitExceeded, "sparse files of"),
    "sparse tail behind the stream": (
        gnu_sparse(b"a", 2**41 - 512, []),
        LimitExceeded,
        "with its sparse files",
    ),
    "sparse version": (pax_map(b"0,1024", major=b"2", minor=b"0"), Unsupported, "GNU sparse format"),
    "sparse count": (pax_map(b"0,1024", numblocks=b"2"), FormatError, "2 numbers for 2 pieces"),
    "sparse no count": (pax_map(b"0,1024", numblocks=b""), FormatError, "2 numbers for -1 pieces"),
    "sparse map": (pax_map(b"0,1024,"), FormatError, "sparse map is not a number"),
    "sparse minus": (pax_map(b"-1,1024"), FormatError, "sparse map is not a number"),
    "sparse realsize": (pax_map(b"0,1024", size=b"x"), FormatError, "GNU.sparse.size is not a number"),
    "sparse 0.0 order": (pax([(b"GNU.sparse.numbytes", b"0")]), FormatError, "out of order"),
    "sparse 0.0 comma": (pax([(b"GNU.sparse.offset", b"0,1")]), FormatError, "out of order"),
    "map too long": (body_map(b"3\n0\n1024\n", b""), FormatError, "passes the end"),
    "map without count": (body_map(b"1" * 600), FormatError, "without a count"),
    "map with a wrong count": (body_map(b"-1\n0\n1024\n"), FormatError, "number of sparse pieces"),
    "map with a huge count": (body_map(b"9999999\n"), LimitExceeded, "sparse map above"),
    "map with long lines": (body_map(b"2\n" + b"0" * (1 << 20)), LimitExceeded, "sparse map above"),
    "map with a wrong number": (body_map(b"1\n0\n1x\n"), FormatError, "sparse map is not a number"),
    "map with a wrong order": (body_map(numbers(200, b"0\n")), FormatError, "out of order"),
    "nothing after PAX": (tar(pax({b"path": b"a"})), FormatError, "no member after"),
    "nothing after a long name": (gnu_long(b"a"), FormatError, "no member after"),
}


@pytest.mark.parametrize(("data", "error", "match"), FAULTS.values(), ids=FAULTS)
def test_each_fault_has_its_error(data: bytes, error: type[IndexerError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        parse(tar(data))
    assert type(caught.value) is error


GROUPS = (
    (pax({b"uid": b"1"}) + file(b"a", b"data" * 300), 1200),
    (gnu_sparse(b"old", 40_000, PIECES), 0),
    (pax_sparse(b"new", 40_000, [*PIECES, (39_000, b"tail")]), 4),
    (gnu_long(b"n/" * 300) + directory(b"d"), 0),
    (file(b"b", b"1"), 1),
)
WHOLE = tar(*(entry for entry, _ in GROUPS))


def possible_ends() -> set[int]:
    """Where WHOLE may end: after a body, with or without its padding, and after a zero block."""
    ends = {0, len(WHOLE) - BLOCK, len(WHOLE)}
    start = 0
    for entry, body in GROUPS:
        start += len(entry)
        ends.update(range(start - -body % BLOCK, start + 1))
    return ends


def test_a_stream_cut_short_is_refused_wherever_a_group_is_not_whole() -> None:
    ends = possible_ends()
    for end in range(len(WHOLE) + 1):
        parser = TarParser()
        parser.feed(WHOLE[:end])
        if end in ends:
            parser.close()
        else:
            with pytest.raises(FormatError, match=r"cut short|no member after"):
                parser.close()


def test_the_number_of_members_is_bounded() -> None:
    parser = TarParser(max_members=2)
    parser.feed(file(b"a") + file(b"b"))
    with pytest.raises(LimitExceeded, match="more than 2 members"):
        parser.feed(file(b"c"))


def test_what_members_say_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small enough; together, and well compressed, they are many GiB of memory."""
    monkeypatch.setattr(tar_stream, "MAX_TEXT", 1 << 20)
    records = {b"SCHILY.xattr.user.a": bytes(60_000), b"path": b"a" * 200 + b"/b", b"linkpath": b"c" * 4000}
    one = pax(records) + symlink(b"b", b"c")
    parser = TarParser()
    parser.feed(one * ((1 << 20) // 64_300))
    with pytest.raises(LimitExceeded, match="paths, links and xattrs"):
        parser.feed(one)


def test_the_number_of_sparse_pieces_is_bounded() -> None:
    cells = b"".join(number(i, 12) + number(0, 12) for i in range(21))
    more = padded(cells.ljust(504, b"\0") + b"\1")
    head = patched(raw_header(b"s", typeflag=b"S", magic=GNU), 482, b"\1")
    with pytest.raises(LimitExceeded, match="pieces of sparse files"):
        parse(head + more * 50_000)


def read_all(data: bytes) -> None:
    """Parse; whatever comes out must be such as a reader can rely on."""
    parser = parse(data)
    assert parser.device_size % BLOCK == 0
    tail = tail_start(len(data))
    end = tail
    for extent in parser.extents:
        assert extent.start >= end
        assert extent.length > 0
        assert extent.tar_start + extent.length <= len(data)
        end = extent.start + extent.length
    assert end <= parser.device_size < 2**41
    for m in parser.members:
        components = m.path.split(b"/") if m.path else []
        assert not {b"", b".", b".."}.intersection(components)
        assert b"\0" not in m.path + m.link
        assert 0 <= m.mode <= 0o7777
        assert max(m.uid, m.gid) <= 2**32 - 2
        assert min(m.uid, m.gid, m.size, m.data_start) >= 0
        assert m.kind is Kind.REGULAR or not m.size
        if m.size <= 1 << 20:
            assert len(content(data, parser, m)) == m.size


def survives(data: bytes) -> None:
    """Bytes give members or one of our errors; any other exception fails the test."""
    with suppress(IndexerError):
        read_all(data)


@given(st.binary(max_size=3000))
@settings(max_examples=50)
def test_random_bytes_give_members_or_our_errors(data: bytes) -> None:
    survives(data)
    survives(patched(data.ljust(BLOCK, b"\0"), 0, b"name"))


@given(
    flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
)
@settings(max_examples=300)
def test_flipped_bytes_give_members_or_our_errors(flips: list[tuple[int, int]], end: int) -> None:
    data = bytearray(WHOLE)
    for at, value in flips:
        data[at] = value
        header = at - at % BLOCK
        data[header : header + BLOCK] = patched(bytes(data[header : header + BLOCK]), 0, b"")
    survives(bytes(data[:end]))


@given(
    blocks=st.lists(st.integers(0, len(WHOLE) // BLOCK - 1), max_size=30),
    fields=st.lists(
        st.tuples(
            st.integers(0, 29),
            st.sampled_from([0, 100, 108, 116, 124, 124, 136, 156, 156, 157, 257, 345, 386, 482, 483]),
            st.binary(max_size=12) | st.sampled_from([b"x", b"S", b"L", b"1", b"2", b"00000001000", b"\x80"]),
        ),
        max_size=4,
    ),
)
@settings(max_examples=300)
def test_spliced_blocks_give_members_or_our_errors(
    blocks: list[int], fields: list[tuple[int, int, bytes]]
) -> None:
    spliced = [WHOLE[at * BLOCK : (at + 1) * BLOCK] for at in blocks]
    for at, offset, value in fields:
        if at < len(spliced):
            spliced[at] = patched(spliced[at], offset, value)
    survives(b"".join(spliced))


@given(
    st.randoms(use_true_random=False),
    st.sampled_from(["size", "map", "numblocks", "path", "mtime", "realsize"]),
)
@settings(max_examples=200)
def test_mangled_records_give_members_or_our_errors(rng: random.Random, key: str) -> None:
    text = bytes(rng.choice(b"0123456789,-.\n\0/ae") for _ in range(rng.randrange(12)))
    records = {b"GNU.sparse.major": b"%d" % rng.randrange(2), b"GNU.sparse.minor": b"%d" % rng.randrange(2)}
    records |= {b"GNU.sparse." + key.encode(): text, key.encode(): text}
    survives(tar(pax(records) + file(b"a", padded(text) + b"data")))


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8), st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=100)
def test_the_same_error_comes_in_any_cuts(cuts: list[int], at: int, flip: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= flip
    outcomes = []
    for pieces in ([bytes(data)], pieces_of(bytes(data), cuts)):
        parser = TarParser()
        try:
            for piece in pieces:
                parser.feed(piece)
            parser.close()
        except IndexerError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(repr(parser.members))
    assert outcomes[0] == outcomes[1]
