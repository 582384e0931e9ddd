"""diff: what differs between two images, found with as few reads as can be."""

import random
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.toc_codec import decode_head, encode_toc
from lazyfs.errors import NotFound
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.inside.browse import below, entry_at
from lazyfs.image.inside.difference import CompareOptions, Kind, difference
from lazyfs.image.inside.same_bytes import Place, SameBytes
from tests.support.layers import build
from tests.support.memory_images import bytes_read, memory_image
from tests.support.published import with_spans
from tests.support.tars import char, directory, fifo, file, hardlink, symlink, tar, whiteout

BIG = random.Random(1).randbytes(1_000_000)
QUICK = CompareOptions(quick=True)
TIMES = CompareOptions(times=True)


async def told(old: Image, new: Image, path: bytes = b"", options: CompareOptions | None = None):
    """{path: what is said of it}, where that is "A", "D" or the aspects of a change."""
    before = bytes_read(old, new)
    found = await difference(old, new, path, options)
    assert found.read_bytes == bytes_read(old, new) - before
    return {c.path: sorted(c.aspects) if c.kind is Kind.CHANGED else c.kind.value for c in found.changes}


CHANGES = {
    "content": (file(b"f", b"one"), file(b"f", b"two"), ["content"]),
    "size": (file(b"f", b"one"), file(b"f", b"three"), ["size"]),
    "mode": (file(b"f", mode=0o644), file(b"f", mode=0o4755), ["mode"]),
    "user": (directory(b"f", uid=1), directory(b"f", uid=2), ["owner"]),
    "group": (directory(b"f", gid=1), directory(b"f", gid=2), ["owner"]),
    "target": (symlink(b"f", b"a"), symlink(b"f", b"b"), ["target"]),
    "device": (char(b"f", 1, 3), char(b"f", 1, 5), ["device"]),
    "xattrs": (file(b"f", xattrs={b"user.a": b"1"}), file(b"f", xattrs={b"user.a": b"2"}), ["xattrs"]),
    "no xattrs": (file(b"f", xattrs={b"user.a": b"1"}), file(b"f"), ["xattrs"]),
    "type": (fifo(b"f", mode=0o644), file(b"f", b"x"), ["type"]),
    "several": (file(b"f", b"1", mode=0o600, uid=1), file(b"f", b"2"), ["content", "mode", "owner"]),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_told_by_what_differs(name):
    old, new, aspects = CHANGES[name]
    assert await told(memory_image(tar(old)), memory_image(tar(new))) == {b"f": aspects}


async def test_values_are_told_old_and_new():
    found = await difference(
        memory_image(tar(file(b"f", b"1"))), memory_image(tar(file(b"f", b"22", mode=0o600)))
    )
    assert found.changes[0].aspects == {"mode": ("0644", "0600"), "size": (1, 2)}


async def test_times_count_only_when_asked_for():
    old, new = memory_image(tar(file(b"f", mtime=1))), memory_image(tar(file(b"f", mtime=2)))
    assert await told(old, new) == {}
    assert await told(old, new, options=TIMES) == {b"f": ["mtime"]}


async def test_a_directory_comes_and_goes_with_all_that_is_in_it():
    empty, full = memory_image(tar()), memory_image(tar(file(b"d/e/f"), directory(b"d/z")))
    assert await told(empty, full) == {b"d": "A", b"d/e": "A", b"d/e/f": "A", b"d/z": "A"}
    assert await told(full, empty) == {b"d": "D", b"d/e": "D", b"d/e/f": "D", b"d/z": "D"}


async def test_a_directory_that_becomes_a_file_loses_what_was_in_it():
    old = memory_image(tar(directory(b"d", mode=0o644), file(b"d/f")))
    assert await told(old, memory_image(tar(file(b"d")))) == {b"d": ["type"], b"d/f": "D"}


async def test_only_what_is_at_a_path_is_compared():
    old = memory_image(tar(file(b"a/x", b"1"), file(b"b/x", b"1")))
    new = memory_image(tar(file(b"a/x", b"2"), file(b"b/x", b"2"), file(b"c/x")))
    assert await told(old, new, b"/b") == {b"b/x": ["content"]}
    assert await told(old, new, b"c") == {b"c": "A", b"c/x": "A"}
    with pytest.raises(NotFound, match="neither image has /nowhere"):
        await told(old, new, b"/nowhere")


async def test_what_both_take_from_the_same_layer_is_not_read():
    base = tar(file(b"big", BIG), file(b"gone", b"x"))
    old = memory_image(base, tar(file(b"own", b"1" * 100)))
    new = memory_image(base, tar(file(b"own", b"2" * 100), whiteout(b"gone")))
    assert await told(old, new) == {b"gone": "D", b"own": ["content"]}
    assert bytes_read(old, new) == 200


@pytest.mark.parametrize(("audited", "read"), [(True, 0), (False, 2 * len(BIG))])
async def test_the_same_tar_compressed_otherwise_is_not_read_once_it_was_seen_whole(audited, read):
    data = tar(file(b"big", BIG))
    old = memory_image(data, compression="gzip", audited=audited)
    new = memory_image(data, compression="zstd", audited=audited)
    assert await told(old, new) == {}
    assert bytes_read(old, new) == read


async def test_of_layers_built_again_only_spans_that_differ_are_read():
    """Up to their first difference both tars have the same spans; of the file with it the rest is read."""
    small = [file(b"small%d" % n, BIG[n : n + 1000]) for n in range(20)]
    changed = BIG[:900_000] + b"!" + BIG[900_001:]
    old = memory_image(tar(*small, file(b"big", BIG)), span_size=64 << 10)
    new = memory_image(tar(*small, file(b"big", changed)), span_size=64 << 10)
    assert await told(old, new) == {b"big": ["content"]}
    assert bytes_read(old, new) <= 2 * (len(BIG) - 900_000 + (64 << 10))


@pytest.mark.parametrize("borrowed", ["root", "blake3"])
def test_a_span_is_another_ones_only_if_both_digests_are(borrowed):
    """Readers get what either is of; the index of the second tar took one of them from the first."""
    first = tar(file(b"big", BIG))
    second = first[:500_000] + b"!" + first[500_001:]
    taken = [getattr(span, borrowed) for span in build(first).toc.spans]
    lie = with_spans(lambda spans: [s._replace(**{borrowed: taken[s.number]}) for s in spans])
    places = []
    for built in (build(first), lie(build(second))):
        head = decode_head(encode_toc(built.toc))
        places.append(Place(IndexedLayer(head, memoryview(b"")), head.members()[0].data_start, len(BIG)))
    ranges = SameBytes().unproven(*places)
    assert any(start <= 500_000 - 512 < end for start, end in ranges)
    assert sum(end - start for start, end in ranges) < 4 * (64 << 10)


async def test_reading_ends_at_the_piece_that_differs():
    old = memory_image(tar(file(b"big", BIG * 8)))
    new = memory_image(tar(file(b"big", b"!" + (BIG * 8)[1:], mtime=1)))
    assert await told(old, new) == {b"big": ["content"]}
    assert bytes_read(old, new) <= 4 << 20


async def test_hard_links_are_read_once():
    old = memory_image(tar(file(b"a", b"1" * 1000), hardlink(b"b", b"a")))
    new = memory_image(tar(file(b"a", b"2" * 1000, mtime=5), hardlink(b"b", b"a")))
    assert await told(old, new) == {b"a": ["content"], b"b": ["content"]}
    assert bytes_read(old, new) == 2000


async def test_quick_takes_size_and_time_for_an_answer_and_reads_nothing():
    old = memory_image(tar(file(b"same", b"1", mtime=1), file(b"time", b"1", mtime=1), file(b"size", b"1")))
    new = memory_image(tar(file(b"same", b"2", mtime=1), file(b"time", b"1", mtime=2), file(b"size", b"22")))
    assert await told(old, new, options=QUICK) == {b"time": ["mtime"], b"size": ["size"]}
    assert bytes_read(old, new) == 0


_PATHS = st.sampled_from([b"a", b"b", b"d/a", b"d/b", b"d/e/a"])
_MEMBERS = st.one_of(
    st.builds(
        file,
        _PATHS,
        st.sampled_from([b"", b"1", b"2", b"11", BIG[:70_000], BIG[1:70_001]]),
        mode=st.sampled_from([0o600, 0o755]),
        mtime=st.integers(0, 2),
        xattrs=st.sampled_from([{}, {b"user.x": b"1"}]),
    ),
    st.builds(symlink, _PATHS, st.sampled_from([b"a", b"/b"])),
    st.builds(directory, st.sampled_from([b"d", b"d/e"]), uid=st.integers(0, 1)),
)
_TARS = st.lists(_MEMBERS, max_size=6).map(lambda members: tar(*members))
_STACKS = st.lists(_TARS, min_size=1, max_size=2)


def seen(image: Image) -> dict[bytes, tuple]:
    """All that counts of each path, content and all."""
    found = {}
    for _, entry in below(image.metadata, entry_at(image.metadata, b"")):
        inode = entry.inode
        extent = image.metadata.extent(inode.nid)
        content = b""
        if extent is not None:
            content = image.layers[extent[0]].data[extent[1] : extent[1] + inode.size]
        size = inode.size if stat.S_ISREG(inode.mode) else 0
        xattrs = tuple(sorted(image.metadata.xattrs(inode.nid).items()))
        found[entry.path] = (inode.mode, inode.uid, inode.gid, size, entry.target, xattrs, content)
    return found


@settings(max_examples=80)
@given(_STACKS, _STACKS)
async def test_a_difference_is_what_two_full_views_differ_in(one, other):
    old, new = memory_image(*one), memory_image(*other)
    before, after = seen(old), seen(new)
    expected = dict.fromkeys(after.keys() - before.keys(), "A")
    expected |= dict.fromkeys(before.keys() - after.keys(), "D")
    expected |= {path: "C" for path in after.keys() & before.keys() if before[path] != after[path]}
    found = await difference(old, new)
    assert {change.path: change.kind.value for change in found.changes} == expected
    assert (await difference(old, old)).changes == ()
    assert (await difference(old, old)).read_pairs == 0
