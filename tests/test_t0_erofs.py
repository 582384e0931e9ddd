"""Metadata images: what is written reads back, entry by entry and path by path, and limits are kept."""

import io
import mmap
from stat import S_ISDIR, S_ISLNK

import pytest
from hypothesis import given, settings

from indexer.erofs import format as erofs
from indexer.erofs.format import Device
from indexer.erofs.layout import storable_xattrs
from indexer.erofs.read import MetadataImage
from indexer.erofs.write import write_image
from indexer.errors import FormatError, LimitExceeded
from indexer.merge import merge
from indexer.toc import Kind, Member
from indexer.tree import MAX_DEPTH, Node, count_links, new_directory
from tests.support.erofs_images import (
    DEVICE_SIZE,
    DEVICES,
    LAYERS,
    LINKS,
    compiled,
    expected,
    file,
    shown,
    stacks,
    written,
)
from tests.support.trees import tree_paths

# Round trips.


@settings(max_examples=150)
@given(stacks())
def test_a_tree_reads_back_as_it_was_written(layers):
    root = merge(layers)
    image = MetadataImage(written(root))
    assert shown(image) == expected(root)
    assert [device.tag for device in image.devices] == [device.tag for device in DEVICES]
    assert image.inode_count == len({id(node) for _, node in tree_paths(root)})
    assert image.has_any_xattrs == any(storable_xattrs(node.xattrs) for _, node in tree_paths(root))


@settings(max_examples=100)
@given(stacks())
def test_lookup_finds_every_name_and_no_other(layers):
    root = merge(layers)
    image = MetadataImage(written(root))
    for path, node in tree_paths(root):
        assert image.resolve(path, follow=False) == node.nid
        for name, child in (node.children or {}).items():
            assert image.lookup(node.nid, name) == child.nid
            for other in (name[:-1], name + b"\1", name + b"\0", b"\xff" * 256, b""):
                if other not in node.children and other not in (b".", b".."):
                    assert image.lookup(node.nid, other) is None


@settings(max_examples=50)
@given(stacks())
def test_the_same_tree_gives_the_same_bytes(layers):
    first, second = merge(layers), merge(layers)
    for _, node in tree_paths(second):
        if node.children:
            node.children = dict(reversed(node.children.items()))
    assert written(first) == written(second) == written(first)


def test_inodes_are_numbered_depth_first_from_the_root():
    image = MetadataImage(compiled(*(file(path) for path in (b"b", b"a/y", b"a/x", b"c"))))
    nids = [inode.nid for _, inode in image.walk()]
    assert nids[0] == 1
    assert nids == sorted(nids)


def test_writing_loads_no_more_than_a_buffer_at_once():
    class Counting(io.BytesIO):
        longest = 0

        def write(self, data) -> int:
            self.longest = max(self.longest, len(data))
            return super().write(data)

    out = Counting()
    write_image(merge([[file(b"%d" % n) for n in range(40_000)]]), [], out)
    assert len(out.getvalue()) > 3 << 20
    assert out.longest < 3 << 19


def test_an_image_opens_in_any_buffer(tmp_path):
    content = compiled(file(b"a"))
    (tmp_path / "image").write_bytes(content)
    with (
        (tmp_path / "image").open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        image = MetadataImage(mapped)
        assert image.resolve(b"a") is not None
        image.close()
    assert MetadataImage(memoryview(bytearray(content))).resolve(b"a") is not None


def test_an_empty_tree_is_an_image():
    image = MetadataImage(written(merge([]), []))
    assert [path for path, _ in image.walk()] == [b""]
    assert (image.inode_count, image.devices, image.has_any_xattrs) == (1, (), False)


def test_the_total_size_counts_whole_blocks_of_all_layers():
    content = written(merge([]), [Device(b"a", 1), Device(b"b", 1024)])
    image = MetadataImage(content)
    assert image.devices == (Device(b"a", 512), Device(b"b", 1024))
    assert image.total_size == len(content) + 1536


def test_structures_have_the_sizes_of_the_format():
    sizes = {
        erofs.SUPERBLOCK: 128,
        erofs.DEVICE_SLOT: 128,
        erofs.INODE: 64,
        erofs.CHUNK: 8,
        erofs.DIRENT: 12,
        erofs.XATTR_HEADER: 12,
        erofs.XATTR_ENTRY: 4,
    }
    assert {structure: structure.size for structure in sizes} == sizes


def test_the_superblock_names_the_device_table():
    content = written(merge([]), [Device(b"one", 512), Device(b"two", 1024)])
    table = 128 * int.from_bytes(content[1024 + 0x58 : 1024 + 0x5A], "little")
    assert content[table:].startswith(b"one")
    assert content[table + 128 + 64 : table + 128 + 68] == b"\2\0\0\0"


# Directories.


@pytest.mark.parametrize("count", [0, 1, 30, 31, 32, 1000])
def test_entries_go_on_from_any_cookie(count):
    names = [b"%04d" % number for number in range(count)]
    image = MetadataImage(compiled(*(file(name) for name in reversed(names))))
    everything = list(image.entries(1))
    assert [name for name, _, _ in everything] == names
    assert all(image.lookup(1, name) == nid for name, nid, _ in everything)
    for number, (_, _, cookie) in enumerate(everything):
        assert list(image.entries(1, cookie)) == everything[number + 1 :]


def test_names_around_the_dots_are_in_order():
    names = [b"-", b"...", b"..x", b".a", b"0", b"!", b".-"]
    image = MetadataImage(compiled(*(file(name) for name in names)))
    assert [name for name, _, _ in image.entries(1)] == sorted(names)
    assert image.lookup(1, b".") == image.lookup(1, b"..") == 1


@pytest.mark.parametrize("tail", range(440, 520))
def test_directories_of_every_size_around_a_block_read_back(tail):
    names = [b"a" * 200, b"b" * 99, b"c" * (tail - 12 * 5 - 3 - 299)]
    root = merge([[file(b"d/" + name) for name in names]])
    assert shown(MetadataImage(written(root))) == expected(root)


@pytest.mark.parametrize(("length", "layout"), [(448, erofs.FLAT_INLINE), (449, erofs.FLAT_PLAIN)])
def test_a_target_that_fits_into_a_block_with_its_inode_stands_beside_it(length, layout):
    content = compiled(*(Member(b"%d" % n, Kind.SYMLINK, link=b"t" * length) for n in range(9)))
    start = erofs.meta_block(LAYERS) * 512
    nids = [nid for _, nid, _ in MetadataImage(content).entries(1)]
    assert {content[start + 32 * nid] for nid in nids} == {layout}


# Paths.


@pytest.mark.parametrize(
    ("path", "same"),
    [
        (b"", b""),
        (b"/", b""),
        (b"/d//./f", b"d/f"),
        (b"d/../d/f", b"d/f"),
        (b"../../d", b"d"),
        (b"d/up", b"d/f"),
        (b"d/out", b"d/f"),
        (b"absolute/f", b"d/f"),
        (b"absolute/", b"d"),
        (b"absolute/..", b""),
        (b"root/root/d/up", b"d/f"),
        (b"chain1", b"chain41"),
        (b"chain0", None),
        (b"loop", None),
        (b"broken", None),
        (b"missing", None),
        (b"d/f/", None),
        (b"d/f/..", None),
        (b"d/f/x", None),
        (b"d/../" * 2000 + b"d", b"d"),
        (b"d/../" * 2048 + b"d", None),
    ],
)
def test_paths_resolve_inside_the_root(path, same):
    image = MetadataImage(compiled(*LINKS))
    nids = {path: inode.nid for path, inode in image.walk()}
    assert image.resolve(path) == (None if same is None else nids[same])


def test_a_symlink_at_the_end_is_followed_only_when_asked():
    image = MetadataImage(compiled(*LINKS))
    assert S_ISLNK(image.inode(image.resolve(b"absolute", follow=False)).mode)
    assert S_ISDIR(image.inode(image.resolve(b"absolute/", follow=False)).mode)
    assert image.resolve(b"absolute/f", follow=False) == image.resolve(b"d/f")


# Extremes.


def test_a_tree_as_deep_as_allowed_is_written_and_walked_without_recursion():
    deepest = b"/".join([b"d"] * MAX_DEPTH)
    image = MetadataImage(compiled(file(deepest)))
    assert [path for path, _ in image.walk()][-1] == deepest
    root = node = new_directory()
    for _ in range(MAX_DEPTH + 1):
        node.children[b"d"] = node = new_directory()
    count_links(root)
    with pytest.raises(LimitExceeded):
        written(root)


def test_a_directory_of_a_hundred_thousand_entries_is_searched_by_halves():
    members = [file(b"entry-%d" % number) for number in range(100_000)]
    image = MetadataImage(compiled(*members))
    assert image.inode(image.lookup(1, b"entry-77777")).nlink == 1
    assert image.lookup(1, b"entry-100000") is None
    assert sum(1 for _ in image.entries(1)) == 100_000


def test_large_files_at_large_offsets_keep_their_address():
    devices = [Device(b"big", (2**32 - 1) * 512)]
    size, start = erofs.MAX_FILE_SIZE, (2**31 - 1) * 512
    image = MetadataImage(
        compiled(file(b"f", size, start), file(b"g", 1, (2**32 - 2) * 512), devices=devices)
    )
    assert image.extent(image.resolve(b"f")) == (0, start)
    assert image.inode(image.resolve(b"f")).size == size
    assert image.extent(image.resolve(b"g")) == (0, (2**32 - 2) * 512)


def test_a_thousand_layers_each_have_their_device():
    layers = [[file(b"%d" % number, 1, 512)] for number in range(1000)]
    image = MetadataImage(written(merge(layers), [Device(b"%d" % n, 1024) for n in range(1000)]))
    assert all(image.extent(image.resolve(b"%d" % number)) == (number, 512) for number in range(1000))
    assert image.devices[999] == Device(b"999", 1024)


@pytest.mark.parametrize(
    "member",
    [
        file(b"f", 1, 511),
        file(b"f", 1, -512),
        file(b"f", -1),
        file(b"f", 513, DEVICE_SIZE - 512),
        file(b"f", 1, DEVICE_SIZE),
        file(b"f", uid=2**32 - 1),
        file(b"f", gid=-1),
        file(b"f", mtime_ns=2**63 * 10**9),
        Member(b"l", Kind.SYMLINK),
        Member(b"l", Kind.SYMLINK, link=b"a\0b"),
        file(b"f", xattrs=((b"user.a\0b", b""),)),
    ],
)
def test_what_no_file_can_be_is_refused(member):
    with pytest.raises(FormatError):
        compiled(member)


@pytest.mark.parametrize(
    "member",
    [
        Member(b"l", Kind.SYMLINK, link=b"t" * 4096),
        Member(b"c", Kind.CHARACTER, device=(4096, 0)),
        Member(b"c", Kind.BLOCK, device=(0, 2**20)),
        Member(b"c", Kind.BLOCK, device=(0, -1)),
        file(b"f", xattrs=((b"user." + b"n" * 251, b""),)),
        file(b"f", xattrs=((b"user.v", bytes(65536)),)),
        file(b"f", xattrs=tuple((b"user.%d" % n, bytes(65000)) for n in range(5))),
    ],
)
def test_what_is_too_large_for_its_field_is_refused(member):
    with pytest.raises(LimitExceeded):
        compiled(member)


def test_a_file_larger_than_one_chunk_is_refused():
    with pytest.raises(LimitExceeded):
        compiled(file(b"f", erofs.MAX_FILE_SIZE + 1), devices=[Device(b"", 2**41 - 512)])


@pytest.mark.parametrize(
    "devices",
    [[Device(b"x", (2**32 - 1) * 512 + 1)], [Device(b"x", -1)], [Device(b"x", 0)] * 65536],
    ids=["large", "negative", "many"],
)
def test_layers_that_no_device_can_be_are_refused(devices):
    with pytest.raises(LimitExceeded):
        written(merge([]), devices)


@pytest.mark.parametrize("tag", [b"t" * 65, b"t\0"])
def test_a_tag_that_does_not_read_back_is_refused(tag):
    with pytest.raises(FormatError):
        written(merge([]), [Device(tag, 0)])


def test_content_of_a_layer_without_device_is_refused():
    with pytest.raises(FormatError, match="layer 1 of 1"):
        written(merge([[], [file(b"f", 1)]]), [Device(b"", 512)])


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_a_name_that_no_file_can_have_is_refused(name):
    root = new_directory()
    root.children[name] = Node(Kind.REGULAR, nlink=1)
    with pytest.raises(FormatError):
        written(root)


@pytest.mark.parametrize("kind", [Kind.HARDLINK, Kind.DIRECTORY])
def test_a_node_whose_kind_and_parts_disagree_is_refused(kind):
    root = new_directory()
    root.children[b"x"] = Node(kind, nlink=1)
    with pytest.raises(FormatError):
        written(root)


def test_xattrs_of_other_namespaces_are_dropped():
    xattrs = tuple((name, b"") for name in (b"com.apple.x", b"system.nfs4_acl", b"user.", b"user.ok"))
    image = MetadataImage(compiled(file(b"f", xattrs=xattrs), file(b"g", xattrs=xattrs[:-1])))
    assert image.xattrs(image.resolve(b"f")) == {b"user.ok": b""}
    assert not image.inode(image.resolve(b"g")).has_xattrs
