"""The merged tree of an image: what `merge` makes and `erofs.write` compiles."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from indexer.toc import Kind

MAX_DEPTH: Final = 1024
"""Components of the deepest path a tree may have."""

MAX_NAME: Final = 255
"""Bytes of the longest name (NAME_MAX)."""


class Node(Struct, eq=False):
    """One inode. Two names of the same node are hard links.

    Attributes:
        kind: what it is; HARDLINK does not occur in a finished tree.
        mode: permission, setuid, setgid and sticky bits.
        uid: numeric owner.
        gid: numeric group.
        mtime_ns: modification time, nanoseconds since 1970, may be negative.
        size: bytes of content of a regular file; else 0.
        layer: number of the layer, from 0 at the bottom, that holds the content.
        data_start: uncompressed offset of the content in that layer; 0 where size is 0.
        link: a symlink's target; else b"".
        device: (major, minor) of a device; else (0, 0).
        xattrs: sorted pairs of name and value.
        children: a directory's nodes by name; None for anything else.
        nlink: names of the node in the whole tree; of a directory 2 and its subdirectories.
        nid: the number of the inode in the metadata image; 0 before it is written.
    """

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    layer: int = 0
    data_start: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    children: "dict[bytes, Node] | None" = None
    nlink: int = 0
    nid: int = 0

    def __repr__(self) -> str:
        return f"<Node {self.kind.name} {self.mode:o}, {self.size} bytes of layer {self.layer}>"

    def copy(self) -> "Node":
        """Another inode of which the same is known, and that no tree is written with yet."""
        return Node(
            self.kind,
            self.mode,
            self.uid,
            self.gid,
            self.mtime_ns,
            self.size,
            self.layer,
            self.data_start,
            self.link,
            self.device,
            self.xattrs,
            self.children,
        )


def new_directory() -> Node:
    """An empty directory that no member described: 0755, owned by root, of 1970."""
    return Node(Kind.DIRECTORY, children={})


def count_links(root: Node) -> None:
    """Set `nlink` of every node under a `root` whose nodes are all still at 0."""
    root.nlink = 2
    stack = [root]
    while stack:
        directory = stack.pop()
        for child in (directory.children or {}).values():
            if child.children is None:
                child.nlink += 1
            else:
                child.nlink = 2
                directory.nlink += 1
                stack.append(child)


def number_layers(root: Node) -> list[int]:
    """Number the layers that hold contents of a tree anew, from 0 on; returns their numbers of before."""
    files = {node for node in _nodes(root) if node.size}
    used = sorted({node.layer for node in files})
    numbers = {layer: number for number, layer in enumerate(used)}
    for node in files:
        node.layer = numbers[node.layer]
    return used


def _nodes(root: Node) -> Iterator[Node]:
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack += (node.children or {}).values()
