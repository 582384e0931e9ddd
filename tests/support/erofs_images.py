"""Metadata images over three layers of known bytes, and what is to be seen in them."""

import io
import os
import random
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISLNK

from hypothesis import strategies as st

from indexer.erofs import format as erofs
from indexer.erofs.format import Device
from indexer.erofs.layout import storable_xattrs
from indexer.erofs.read import MetadataImage
from indexer.erofs.write import write_image
from indexer.merge import merge
from indexer.toc import Kind, Member
from indexer.tree import Node
from tests.support.kernel_erofs import Seen
from tests.support.trees import tree_members, tree_paths

LAYERS = 3
DEVICE_SIZE = 1 << 17
DEVICES = [Device(b"layer %d" % number, DEVICE_SIZE) for number in range(LAYERS)]
CONTENTS = [random.Random(number).randbytes(DEVICE_SIZE) for number in range(LAYERS)]


def written(root: Node, devices: Sequence[Device] = DEVICES) -> bytes:
    out = io.BytesIO()
    write_image(root, devices, out)
    return out.getvalue()


def compiled(*members: Member, devices: Sequence[Device] = DEVICES) -> bytes:
    """The image of one layer."""
    return written(merge([members]), devices)


def file(path: bytes, size: int = 0, data_start: int = 0, **attributes) -> Member:
    return Member(path, Kind.REGULAR, size=size, data_start=data_start, **attributes)


def content_files(where: Path) -> list[Path]:
    """The layers' bytes as files."""
    paths = [where / f"layer{number}" for number in range(LAYERS)]
    for path, content in zip(paths, CONTENTS, strict=True):
        path.write_bytes(content)
    return paths


def expected(root: Node) -> dict[bytes, Seen]:
    """What a written tree must show."""
    seen = {}
    for path, node in tree_paths(root):
        xattrs = storable_xattrs(node.xattrs)
        sizes = {Kind.DIRECTORY: None, Kind.SYMLINK: len(node.link)}
        seen[path] = Seen(
            *(node.nid, erofs.FILE_TYPES[node.kind][1] | node.mode, node.nlink, node.uid, node.gid),
            sizes.get(node.kind, node.size),
            node.mtime_ns,
            os.makedev(*node.device),
            node.link if node.kind == Kind.SYMLINK else b"",
            {erofs.XATTR_PREFIXES[index] + rest: value for index, rest, value in xattrs},
            CONTENTS[node.layer][node.data_start : node.data_start + node.size] if node.size else b"",
        )
    return seen


def shown(image: MetadataImage) -> dict[bytes, Seen]:
    """What the reader tells."""
    seen = {}
    for path, inode in image.walk():
        content = b""
        extent = image.extent(inode.nid)
        if extent is not None:
            content = CONTENTS[extent[0]][extent[1] : extent[1] + inode.size]
        xattrs = image.xattrs(inode.nid)
        assert inode.has_xattrs == bool(xattrs)
        seen[path] = Seen(
            *(inode.nid, inode.mode, inode.nlink, inode.uid, inode.gid),
            None if S_ISDIR(inode.mode) else inode.size,
            inode.mtime_ns,
            inode.rdev,
            image.readlink(inode.nid) if S_ISLNK(inode.mode) else b"",
            xattrs,
            content,
        )
    return seen


def stacks() -> st.SearchStrategy[list[list[Member]]]:
    return tree_members(layers=LAYERS, device_size=DEVICE_SIZE)


def without_hidden_xattrs(layers: list[list[Member]]) -> list[list[Member]]:
    """Layers without the xattrs that Linux gives only to files and directories."""
    plain = (Kind.REGULAR, Kind.DIRECTORY)
    return [
        [
            member
            if member.kind in plain
            else member._replace(xattrs=tuple(x for x in member.xattrs if x[0][:5] != b"user."))
            for member in members
        ]
        for members in layers
    ]


LINKS = [
    file(b"d/f"),
    Member(b"d/up", Kind.SYMLINK, link=b"../d/f"),
    Member(b"d/out", Kind.SYMLINK, link=b"../../../d/./f"),
    Member(b"absolute", Kind.SYMLINK, link=b"/d"),
    Member(b"loop", Kind.SYMLINK, link=b"loop"),
    Member(b"broken", Kind.SYMLINK, link=b"nothing"),
    Member(b"root", Kind.SYMLINK, link=b"/"),
    *(Member(b"chain%d" % n, Kind.SYMLINK, link=b"chain%d" % (n + 1)) for n in range(41)),
    file(b"chain41"),
]
