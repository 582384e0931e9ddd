"""The tar parser: what it makes of good archives in any dialect, in any cuts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import FormatError
from indexer.tar.header import clean_path, read_number
from indexer.tar.stream import TarParser
from indexer.toc import Extent, Kind, Member
from tests.support import tars
from tests.support.tar_reading import content, parse, pieces_of
from tests.support.tars import (
    END,
    GNU,
    V7,
    base256,
    char,
    directory,
    fifo,
    file,
    gnu_long,
    gnu_sparse,
    hardlink,
    member,
    opaque,
    padded,
    patched,
    pax,
    pax_raw,
    pax_record,
    pax_sparse,
    raw_header,
    symlink,
    tar,
    whiteout,
)

PIECES = [(1024 * i, bytes([65 + i]) * 512) for i in range(30)]
RICH = tar(
    directory(b"./", mode=0o700),
    directory(b"d", uid=10**7, gid=2**32 - 2, mtime="-1.5"),
    file(
        b"./d//a",
        b"x" * 700,
        mode=0o104755,
        mtime=1_700_000_000,
        xattrs={b"user.b": b"\0=\n", b"user.a": b"1"},
    ),
    file(b"/d/empty"),
    gnu_long(b"d/" + b"n" * 200) + file(b"short", b"1"),
    file(b"p" * 99 + b"/" + b"q" * 99, b"2"),
    symlink(b"d/s", b"t" * 200),
    hardlink(b"h", b"/d/./a"),
    gnu_sparse(b"old", 40_000, PIECES),
    *(pax_sparse(version.encode(), 40_000, PIECES, version) for version in ("0.0", "0.1", "1.0")),
    fifo(b"f"),
    char(b"c", 1, 3),
    tars.block(b"b", 259, 70_000),
    whiteout(b"d/gone"),
    opaque(b""),
)


def first(data: bytes) -> Member:
    return parse(data).members[0]


def paths(data: bytes) -> list[bytes]:
    return [member.path for member in parse(data).members]


def test_members_carry_all_that_their_headers_say() -> None:
    members = parse(RICH).members
    assert members[0] == Member(b"", Kind.DIRECTORY, 0o700)
    assert members[1] == Member(b"d", Kind.DIRECTORY, 0o755, 10**7, 2**32 - 2, -1_500_000_000)
    xattrs = ((b"user.a", b"1"), (b"user.b", b"\0=\n"))
    start = RICH.index(b"x" * 700)
    mtime_ns = 1_700_000_000 * 10**9
    assert members[2] == Member(b"d/a", Kind.REGULAR, 0o4755, 0, 0, mtime_ns, 700, start, xattrs=xattrs)
    assert members[3] == Member(b"d/empty", Kind.REGULAR)
    assert members[4].path == b"d/" + b"n" * 200
    assert members[5].path == b"p" * 99 + b"/" + b"q" * 99
    assert members[6] == Member(b"d/s", Kind.SYMLINK, 0o777, link=b"t" * 200)
    assert members[7] == Member(b"h", Kind.HARDLINK, link=b"d/a")
    assert members[12] == Member(b"f", Kind.FIFO)
    assert members[13] == Member(b"c", Kind.CHARACTER, device=(1, 3))
    assert members[14] == Member(b"b", Kind.BLOCK, device=(259, 70_000))
    assert [m.path for m in members[15:]] == [b"d/.wh.gone", b".wh..wh..opq"]


def test_sparse_members_lie_in_the_tail_block_after_block() -> None:
    parser = parse(RICH)
    expected = bytearray(40_000)
    for start, piece in PIECES:
        expected[start : start + len(piece)] = piece
    sparse = [m for m in parser.members if m.size == 40_000]
    assert [m.path for m in sparse] == [b"old", b"0.0", b"0.1", b"1.0"]
    assert [m.data_start for m in sparse] == [len(RICH) + 40_448 * i for i in range(4)]
    assert parser.device_size == len(RICH) + 4 * 40_448
    assert all(content(RICH, parser, m) == expected for m in sparse)
    assert len(parser.extents) == 120


def test_the_tail_begins_at_the_block_after_a_stream_that_ends_anywhere() -> None:
    data = tar(pax_sparse(b"s", 5000, [(4096, b"abc"), (5000, b"")])) + b"trailing"
    parser = parse(data)
    assert parser.members[0].data_start == len(data) + 504
    assert parser.extents == [Extent(len(data) + 504 + 4096, data.index(b"abc"), 3)]
    assert parser.device_size == len(data) + 504 + 5120


def test_a_sparse_file_of_nothing_but_a_hole_has_no_extents() -> None:
    parser = parse(tar(gnu_sparse(b"hole", 1 << 40, [(1 << 40, b"")]), gnu_sparse(b"empty", 0, [])))
    assert [(m.size, m.data_start) for m in parser.members] == [(1 << 40, 2048), (0, 0)]
    assert parser.extents == []


@given(cuts=st.lists(st.integers(0, len(RICH)), max_size=12))
@settings(max_examples=60)
def test_any_cut_gives_the_same(cuts: list[int]) -> None:
    whole, cut = parse(RICH), parse(RICH, cuts)
    assert (cut.members, cut.extents, cut.device_size) == (whole.members, whole.extents, whole.device_size)


def test_byte_by_byte_gives_the_same() -> None:
    whole, cut = parse(RICH), parse(RICH, range(len(RICH)))
    assert (cut.members, cut.extents, cut.device_size) == (whole.members, whole.extents, whole.device_size)


def test_a_memoryview_is_as_good_as_bytes_and_is_not_kept() -> None:
    parser = TarParser()
    buffer = bytearray(1000)
    for piece in pieces_of(RICH, range(0, len(RICH), 1000)):
        buffer[: len(piece)] = piece
        parser.feed(memoryview(buffer)[: len(piece)])
    parser.close()
    assert parser.members == parse(RICH).members


@pytest.mark.parametrize("data", [b"", bytes(512), END, END + b"\0" * 9000, END + b"anything"])
def test_an_empty_layer_has_no_members(data: bytes) -> None:
    assert parse(data).members == []


def test_nothing_after_the_end_marker_counts_but_the_bytes() -> None:
    parser = parse(tar(file(b"a")) + file(b"b"))
    assert [m.path for m in parser.members] == [b"a"]
    assert parser.device_size == 2048


@pytest.mark.parametrize("end", [b"", bytes(512), END])
def test_the_end_marker_may_be_missing_or_half(end: bytes) -> None:
    assert paths(file(b"a", b"data") + end) == [b"a"]


def test_the_padding_of_the_last_body_may_be_missing() -> None:
    parser = parse(file(b"a", b"data")[:516])
    assert parser.members[0].size == 4
    assert parser.device_size == 1024


def test_a_parser_says_where_it_stands() -> None:
    parser = TarParser()
    parser.feed(file(b"a", b"data")[:700])
    assert repr(parser) == "<TarParser at byte 700, passing 324, 1 members>"
    parser.feed(RICH[700:1100])
    assert repr(parser) == "<TarParser at byte 1100, holding 76, 1 members>"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a", b"a"),
        (b"././/a", b"a"),
        (b"/a", b"a"),
        (b"//a//b/.//c", b"a/b/c"),
        (b"a/.", b"a"),
        (b"a/b//", b"a/b"),
        (b"", b""),
        (b".", b""),
        (b"./", b""),
        (b"/", b""),
        (b".a/..b/...", b".a/..b/..."),
        (b"\xff\n\\", b"\xff\n\\"),
        (b"n" * 255, b"n" * 255),
        (b"./" + b"n" * 255 + b"/a/", b"n" * 255 + b"/a"),
        (b"a/" * 2047 + b"b", b"a/" * 2047 + b"b"),
    ],
)
def test_paths_are_cleaned(raw: bytes, path: bytes) -> None:
    assert clean_path(raw) == path


@given(st.binary(max_size=40) | st.text("./a", max_size=12).map(str.encode))
@settings(max_examples=500)
def test_a_clean_path_says_the_same_as_the_raw_one(raw: bytes) -> None:
    components = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b"\0" not in raw and b".." not in components:
        assert clean_path(raw) == b"/".join(components)
        assert clean_path(clean_path(raw)) == clean_path(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0 0644\0 ", 0o644),
        (b"644\0junk", 0o644),
        (b"77777777", 0o77777777),
        (b"\0" * 8, 0),
        (b" " * 8, 0),
        (b"\0 junk\0 ", None),
        (b"0000648\0", None),
        (b"0_6 0  ", None),
        (b"+644\0\0\0\0", None),
        (b"-644\0\0\0\0", None),
        (b"0o644\0\0\0", None),
        (base256(5, 8), 5),
        (base256(-5, 8), -5),
        (base256(2**55, 8), 2**55),
        (base256(2**63 - 1, 12), 2**63 - 1),
        (base256(-(2**63), 12), -(2**63)),
        (base256(2**63, 12), None),
        (base256(-(2**63) - 1, 12), None),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, value: int | None) -> None:
    if value is None:
        with pytest.raises(FormatError, match="mode"):
            read_number(field, "mode", 0)
    else:
        assert read_number(field, "mode", 0) == value


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_64_bit_number_survives_base_256(value: int) -> None:
    assert read_number(base256(value, 12), "mtime", 0) == value


def test_checksums_may_count_bytes_as_signed() -> None:
    header = raw_header(b"\xff\xfe")
    signed = sum(b - 256 if b > 127 else b for b in header[:148] + header[156:]) + 256
    assert paths(header[:148] + b"%06o\0 " % signed + header[156:]) == [b"\xff\xfe"]


@pytest.mark.parametrize("magic", [V7, GNU, tars.USTAR])
def test_only_posix_headers_have_a_prefix(magic: bytes) -> None:
    data = raw_header(b"name", magic=magic, prefix=b"01234567")
    assert paths(data) == [b"01234567/name" if magic == tars.USTAR else b"name"]


def test_star_headers_have_a_shorter_prefix() -> None:
    header = raw_header(b"name", prefix=b"p" * 131 + b"00000000000\0" * 2)
    assert paths(patched(header, 508, b"tar\0")) == [b"p" * 131 + b"/name"]


def test_gnu_headers_of_old_go_have_a_prefix_where_the_times_should_be() -> None:
    assert paths(raw_header(b"name", magic=GNU, prefix=b"usr/share")) == [b"usr/share/name"]
    assert paths(raw_header(b"name", magic=GNU, prefix=b"\x7e\xff")) == [b"name"]


def test_v7_devices_have_no_numbers() -> None:
    assert first(raw_header(b"c", typeflag=b"3", magic=V7, major=5, minor=6)).device == (0, 0)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (raw_header(b"a", typeflag=b"\0"), Kind.REGULAR),
        (raw_header(b"a", typeflag=b"7"), Kind.REGULAR),
        (raw_header(b"a/", typeflag=b"\0"), Kind.DIRECTORY),
        (raw_header(b"a/", typeflag=b"0"), Kind.DIRECTORY),
        (file(b"a/", b"data"), Kind.REGULAR),
        (raw_header(b"a", typeflag=b"5"), Kind.DIRECTORY),
        (member(b"a", b"D", b"Ynames\0\0"), Kind.DIRECTORY),
    ],
)
def test_typeflags_mean_kinds(header: bytes, kind: Kind) -> None:
    members = parse(tar(header, file(b"next"))).members
    assert (members[0].path, members[0].kind, members[1].path) == (b"a", kind, b"next")


def test_a_volume_label_is_passed_by() -> None:
    assert paths(tar(member(b"label", b"V", b"body"), file(b"next"))) == [b"next"]


@pytest.mark.parametrize("typeflag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_header_only_types_have_no_body_whatever_their_size(typeflag: bytes) -> None:
    header = raw_header(b"a", typeflag=typeflag, size=5000, link=b"t")
    members = parse(tar(header, file(b"next"))).members
    assert (members[0].size, members[0].data_start, members[1].path) == (0, 0, b"next")


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        ("0", 0),
        ("1.5", 1_500_000_000),
        ("1.", 1_000_000_000),
        ("-1.5", -1_500_000_000),
        ("-0.000000001", -1),
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("1700000000.1234567899999", 1_700_000_000_123_456_789),
        ("9007199254740993.000000001", 9_007_199_254_740_993_000_000_001),
    ],
)
def test_times_are_exact(text: str, mtime_ns: int) -> None:
    assert first(file(b"a", mtime=text)).mtime_ns == mtime_ns


def test_headers_without_pax_may_have_times_before_1970() -> None:
    assert first(raw_header(b"a", mtime=-7)).mtime_ns == -7_000_000_000


def test_pax_records_go_before_the_header_and_empty_ones_delete() -> None:
    header = raw_header(b"a", uid=1, gid=2, mtime=3, size=4, link=b"l") + padded(b"data")
    keys = (b"path", b"uid", b"gid", b"mtime", b"size", b"linkpath", b"SCHILY.xattr.user.a")
    plain = parse(tar(header)).members[0]
    numbers = first(tar(pax(dict.fromkeys(keys, b"4")), header))
    assert numbers == plain._replace(
        path=b"4", uid=4, gid=4, mtime_ns=4 * 10**9, data_start=1536, xattrs=((b"user.a", b"4"),)
    )
    deleted = [*((key, b"4") for key in keys), *((key, b"") for key in keys)]
    assert first(tar(pax(deleted), header)) == plain._replace(data_start=1536)


def test_the_last_record_the_last_header_and_the_gnu_name_win() -> None:
    assert paths(tar(pax([(b"path", b"1"), (b"path", b"2")]), file(b"a"))) == [b"2"]
    assert paths(tar(pax({b"path": b"1"}), pax({b"path": b"2"}, b"X"), file(b"a"))) == [b"2"]
    link = tar(
        gnu_long(b"1"), gnu_long(b"3", b"K"), pax({b"path": b"2", b"linkpath": b"4"}), symlink(b"a", b"b")
    )
    assert first(link) == Member(b"1", Kind.SYMLINK, 0o777, link=b"3")


def test_extended_headers_speak_of_one_member_only() -> None:
    data = tar(pax({b"uid": b"7"}), gnu_long(b"long"), file(b"a"), file(b"b"))
    assert [(m.path, m.uid) for m in parse(data).members] == [(b"long", 7), (b"b", 0)]


def test_global_headers_change_nothing() -> None:
    data = tar(
        pax({b"uid": b"7", b"path": b"z"}, b"g"), pax({b"gid": b"8"}), pax({b"gid": b"9"}, b"g"), file(b"a")
    )
    assert parse(data).members == [Member(b"a", Kind.REGULAR, gid=8)]


def test_an_extended_header_may_be_empty() -> None:
    assert paths(tar(pax_raw(b""), pax_raw(b"", b"g"), gnu_long(b""), file(b"a"))) == [b"a"]


def test_xattrs_of_libarchive_stand_in_for_those_of_schily() -> None:
    records = {
        b"LIBARCHIVE.xattr.user.a%3d%FF": b"AP8",
        b"LIBARCHIVE.xattr.user.both": b"AAAA",
        b"SCHILY.xattr.user.both": b"schily",
        b"SCHILY.xattr.empty": b"",
        b"SCHILY.acl.access": b"user::rwx",
    }
    assert first(tar(pax(records), file(b"a"))).xattrs == (
        (b"user.a=\xff", b"\0\xff"),
        (b"user.both", b"schily"),
    )


def test_a_path_of_any_bytes_passes_through_pax() -> None:
    name = bytes(range(1, 256)).replace(b"/", b"").replace(b"\n", b"\n")
    assert paths(tar(pax_raw(pax_record(b"path", name)), file(b"a"))) == [name]


@pytest.mark.parametrize("stated", ["pax", "base-256"])
def test_offsets_stay_right_behind_bodies_above_8_gib(stated: str) -> None:
    size = 9 * 2**30 + 5
    if stated == "pax":
        head = pax({b"size": b"%d" % size}) + raw_header(b"large")
    else:
        head = raw_header(b"large", size=base256(size, 12))
    parser = TarParser()
    parser.feed(head)
    zeros = memoryview(bytes(1 << 20))
    for _ in range(9 * 1024):
        parser.feed(zeros)
    parser.feed(zeros[:512])
    parser.feed(tar(file(b"next", b"data")))
    parser.close()
    assert [(m.size, m.data_start) for m in parser.members] == [
        (size, len(head)),
        (4, len(head) + size + 507 + 512),
    ]
