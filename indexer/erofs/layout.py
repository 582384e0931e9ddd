"""Where everything of a tree goes in its EROFS image: the first of the writer's two passes."""

from typing import Final

from msgspec import Struct

from indexer.erofs import format as erofs
from indexer.erofs.format import BLOCK, SLOT
from indexer.errors import FormatError, LimitExceeded
from indexer.toc import DIRECTORY, REGULAR, SYMLINK
from indexer.tree import MAX_DEPTH, MAX_NAME, Node

_MAX_NID: Final = 0xFFFF_FFFF


class Directory(Struct, eq=False):
    """How one directory is laid out.

    Attributes:
        node: the directory.
        parent: nid of its parent.
        names: all names, "." and ".." too, in order.
        cuts: where blocks begin among the names, then the number of names.
        tail: bytes used in the last block.
    """

    node: Node
    parent: int
    names: list[bytes]
    cuts: list[int]
    tail: int

    @property
    def full_blocks(self) -> int:
        """Blocks before the last."""
        return len(self.cuts) - 2


class Plan(Struct, eq=False):
    """The places of all inodes; each node knows its own as `nid`.

    Attributes:
        inodes: all nodes, once each, in depth-first order.
        directories: the directories among them, in the same order.
        blocks: size of the inode area in blocks.
        data_blocks: blocks after it.
        has_xattrs: whether any inode has xattrs.
    """

    inodes: list[Node]
    directories: list[Directory]
    blocks: int
    data_blocks: int
    has_xattrs: bool


class Shape:
    """The parts of an inode's record, and where its data goes. `shape_of` makes it."""

    __slots__ = ("full_blocks", "inline", "size", "tail", "xattrs")

    def __init__(self, node: Node, directory: Directory | None) -> None:
        """Measure a node; `inline` waits for `settle`."""
        self.xattrs = encode_xattrs(node.xattrs) if node.xattrs else b""
        self.size = erofs.INODE.size + len(self.xattrs)
        self.tail = self.full_blocks = 0
        self.inline = False
        if directory is not None:
            self.tail, self.full_blocks = directory.tail, directory.full_blocks
        elif node.kind == SYMLINK:
            self.full_blocks, self.tail = divmod(len(node.link), BLOCK)
        elif node.kind == REGULAR and node.size:
            self.size += -self.size % erofs.CHUNK.size + erofs.CHUNK.size

    def settle(self, position: int) -> None:
        """Decide for an inode at `position` of the inode area: a tail in the inode must not cross blocks."""
        self.inline = self.tail > 0 and position % BLOCK + self.size + self.tail <= BLOCK

    @property
    def data_blocks(self) -> int:
        """Blocks that its data takes outside the inode area."""
        return self.full_blocks + (self.tail > 0 and not self.inline)


_FILE: Final = Shape(Node(REGULAR, size=1), None)
_EMPTY_FILE: Final = Shape(Node(REGULAR), None)


def shape_of(node: Node, directory: Directory | None) -> Shape:
    """The shape of a node. Regular files without xattrs share theirs, which nothing changes."""
    if node.kind == REGULAR and not node.xattrs and directory is None:
        return _FILE if node.size else _EMPTY_FILE
    return Shape(node, directory)


def plan_image(root: Node) -> Plan:
    """Give every node of the tree its nid.

    Raises:
        LimitExceeded: the tree, a path or an inode is too large.
        FormatError: a name or a kind that cannot be.
    """
    inodes: list[Node] = []
    directories: list[Directory] = []
    linked: set[int] = set()
    has_xattrs = False
    data_blocks = 0
    position = erofs.ROOT_NID * SLOT
    stack = [(root, erofs.ROOT_NID, 0)]
    while stack:
        node, parent, depth = stack.pop()
        directory = None
        if node.children is not None:
            if depth > MAX_DEPTH:
                raise LimitExceeded(f"a tree of more than {MAX_DEPTH} levels")
            directory = _lay_out(node, node.children, parent)
            directories.append(directory)
        elif node.nlink > 1:
            if id(node) in linked:
                continue
            linked.add(id(node))
        _check_kind(node)
        shape = shape_of(node, directory)
        if shape.xattrs:
            has_xattrs = True
        if shape.tail:
            position = _place(position, shape, movable=bool(inodes))
        node.nid = position // SLOT
        inodes.append(node)
        position += shape.size
        if shape.tail or shape.full_blocks:
            data_blocks += shape.data_blocks
            position += shape.tail if shape.inline else 0
        position += -position % SLOT
        if directory is not None:
            children, nid = node.children or {}, node.nid
            stack += [
                (children[name], nid, depth + 1) for name in reversed(directory.names) if name in children
            ]
    if position // SLOT > _MAX_NID:
        raise LimitExceeded("a metadata image of more than 128 GiB")
    return Plan(inodes, directories, -(-position // BLOCK), data_blocks, has_xattrs)


def _place(position: int, shape: Shape, *, movable: bool) -> int:
    """The place of an inode at or after `position`: in the next block where that keeps its tail with it."""
    shape.settle(position)
    if movable and shape.tail and not shape.inline and shape.size + shape.tail <= BLOCK:
        position += -position % BLOCK
        shape.settle(position)
    return position


def _check_kind(node: Node) -> None:
    if node.kind not in erofs.FILE_TYPES or (node.kind == DIRECTORY) != (node.children is not None):
        raise FormatError(f"a node of kind {node.kind!r} cannot stand in a tree so")
    if node.kind == SYMLINK:
        if not node.link or b"\0" in node.link:
            raise FormatError(f"not a symlink's target: {node.link[:200]!r}")
        if len(node.link) > erofs.MAX_SYMLINK:
            raise LimitExceeded(f"a symlink's target of more than {erofs.MAX_SYMLINK} bytes")


def _lay_out(node: Node, children: dict[bytes, Node], parent: int) -> Directory:
    """Fill blocks greedily: an entry does not span two."""
    names = sorted((*children, b".", b".."))
    text = b"".join(names)
    if b"/" in text or b"\0" in text or not children.keys().isdisjoint((b"", b".", b"..")):
        raise FormatError("a name that no file can have")
    if max(map(len, names)) > MAX_NAME:
        raise LimitExceeded(f"a name of more than {MAX_NAME} bytes")
    cuts = [0]
    used = erofs.DIRENT.size * len(names) + len(text)
    if used > BLOCK:
        used = 0
        for number, name in enumerate(names):
            needed = erofs.DIRENT.size + len(name)
            if used + needed > BLOCK:
                cuts.append(number)
                used = 0
            used += needed
    cuts.append(len(names))
    return Directory(node, parent, names, cuts, used)


def storable_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> list[tuple[int, bytes, bytes]]:
    """(index of the prefix, rest of the name, value) of what EROFS can hold, ordered.

    The last of a name wins. Dropped, as Linux takes them nowhere either: namespaces other than user,
    trusted, security and the two POSIX ACLs, and names that are a bare prefix.
    """
    stored = {}
    for name, value in xattrs:
        for index, prefix in erofs.XATTR_PREFIXES.items():
            if name.startswith(prefix) and (name == prefix) == (index in erofs.WHOLE_XATTRS):
                stored[index, name[len(prefix) :]] = value
    return sorted((index, rest, value) for (index, rest), value in stored.items())


def encode_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """What stands between an inode and its tail; b"" where nothing is left to store.

    Raises:
        LimitExceeded: a name, a value or all together are too long.
        FormatError: a name holds a NUL.
    """
    parts = []
    for index, rest, value in storable_xattrs(xattrs):
        if b"\0" in rest:
            raise FormatError(f"an xattr's name with a NUL: {rest[:100]!r}")
        if len(erofs.XATTR_PREFIXES[index]) + len(rest) > erofs.MAX_XATTR_NAME:
            raise LimitExceeded(f"an xattr's name of more than {erofs.MAX_XATTR_NAME} bytes")
        if len(value) > erofs.MAX_XATTR_VALUE:
            raise LimitExceeded(f"an xattr of more than {erofs.MAX_XATTR_VALUE} bytes")
        padding = bytes(-(len(rest) + len(value)) % 4)
        parts.append(erofs.XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value + padding)
    if not parts:
        return b""
    encoded = erofs.XATTR_HEADER.pack(0) + b"".join(parts)
    if len(encoded) > erofs.MAX_XATTRS:
        raise LimitExceeded(f"xattrs of more than {erofs.MAX_XATTRS} bytes on one inode")
    return encoded
