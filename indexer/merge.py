"""Layers become one tree, as the image specification applies them.

References are to `layer.md` of the OCI image specification. Where it is silent or engines differ, what we
do is said beside the line that does it, as a comment that begins with "Choice:".

Each layer passes twice. The first pass applies its whiteouts to the tree of the layers below; the second
adds its members. So the place of a whiteout in its tar says nothing: "Whiteout files MUST only apply to
resources in lower/parent layers" (Whiteouts), and an entry beside its own whiteout replaces the lower one.

Paths are literal: no symlink is followed in a member's path or in a hard link's target.
"""

from collections.abc import Collection, Iterable
from typing import Final

from indexer.errors import FormatError, LimitExceeded
from indexer.tar.pax import check_xattrs
from indexer.toc import DIRECTORY, HARDLINK, SYMLINK, Kind, Member
from indexer.tree import MAX_DEPTH, MAX_NAME, Node, count_links, new_directory

MAX_ENTRIES: Final = 8_000_000
"""Members of all layers and directories implied by their paths; a node takes about 400 bytes."""

WHITEOUT: Final = b".wh."
"""What a name begins with that hides a lower layer's, or is otherwise none of a tree's."""

OPAQUE: Final = b".wh..wh..opq"
"""The name that hides all that lower layers have in its directory."""

AUFS: Final = b".wh..wh."
"""What names of aufs's own metadata begin with."""

_OVERLAY_XATTRS: Final = (b"trusted.overlay.", b"user.overlay.")


def merge(layers: Iterable[Collection[Member]], *, max_entries: int = MAX_ENTRIES) -> Node:
    """The tree that a container of these layers sees.

    Args:
        layers: the members of each layer, bottom first.
        max_entries: how many members, and directories that only paths tell of, are accepted together.

    Raises:
        LimitExceeded: more entries, or a path of more than MAX_DEPTH components.
        FormatError: members that no tree can hold; the message has the path.
    """
    merger = Merger(max_entries)
    for number, members in enumerate(layers):
        merger.apply(number, members)
    count_links(merger.root)
    return merger.root


class Merger:
    """The tree so far, and what must be known of the layer in hand.

    Attributes:
        root: the tree of the layers so far; `merge` counts its links in the end.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self.root = new_directory()
        self._room = max_entries
        self._layer = 0
        self._directories: dict[bytes, dict[bytes, Node]] = {}
        self._linked: set[bytes] = set()
        self._forward: list[tuple[Member, Node]] = []

    def apply(self, number: int, members: Collection[Member]) -> None:
        """Put layer `number`, the next above those so far, over the tree. Raises what `merge` does."""
        self._layer = number
        self._spend(len(members))
        self._linked.clear()
        self._forward.clear()
        added = []
        for member in members:
            if is_reserved(member.path):
                self._hide(member.path)
            else:
                added.append(member)
        self._forget_directories()
        for member in added:
            self._add(member)
        self._bind_forward_links()

    def describe(self, node: Node, member: Member) -> None:
        """Change a node that stands in the tree already, as a later header of it says."""
        if node.children is None:
            _describe_linked(node, member)
        else:
            _describe(node, member)

    def _spend(self, entries: int) -> None:
        self._room -= entries
        if self._room < 0:
            raise LimitExceeded("the layers have more entries than are allowed")

    # The first pass: what lower layers lose.

    def _hide(self, path: bytes) -> None:
        """Apply one member with a name that begins with ".wh.", of whatever type.

        Choice: a whiteout may be any type of member (aufs ships them as hard links); the specification says
        "empty file". Engines look at the name alone, and such a name cannot stand in a tree anyhow.

        Choice: a whiteout implies no parent directories. Engines that unpack create them on their way, so
        that "a/.wh.b" without "a" leaves an empty "a", even where ".wh.a" stands in the same layer.
        """
        head, _, base = path.rpartition(b"/")
        for name in head.split(b"/"):
            # Choice: metadata of aufs (".wh..wh.plnk/..." and the like) is dropped, as moby does;
            # containerd takes it for a whiteout of ".wh.plnk".
            if name.startswith(AUFS):
                return
            if name.startswith(WHITEOUT):
                raise FormatError(f"a member below a whiteout: {path[:200]!r}")
        children = self._children_at(head)
        if base == OPAQUE:
            if children is not None:
                children.clear()
        elif not base.startswith(AUFS):
            hidden = base.removeprefix(WHITEOUT)
            # ".wh." alone is invalid by the specification; one that names the directory itself or its parent
            # is an error in moby too.
            if hidden in (b"", b".", b".."):
                raise FormatError(f"a whiteout of nothing: {path[:200]!r}")
            if children is not None:
                children.pop(hidden, None)

    # The second pass: what this layer has.

    def _forget_directories(self) -> None:
        self._directories = {b"": self._root_children}

    @property
    def _root_children(self) -> dict[bytes, Node]:
        children = self.root.children
        assert children is not None
        return children

    def _add(self, member: Member) -> None:
        path = member.path
        if not path:
            self._describe_root(member)
            return
        if path.startswith(b"/"):
            raise FormatError(f"a path from another root: {path[:200]!r}")
        head, _, name = path.rpartition(b"/")
        siblings = self._directories.get(head)
        if siblings is None:
            siblings = self._make_directories(head)
        old = siblings.get(name)
        kind = member.kind
        if old is None:
            _check_name(name, path)
        if kind == HARDLINK:
            siblings[name] = self._link(member)
        elif old is not None and old.children is not None and kind == DIRECTORY:
            # "its attributes MUST be replaced" (Changeset over existing files); its children stay. Choice:
            # all xattrs are replaced, also between two entries of one layer; extraction keeps old ones.
            self.describe(old, member)
            return
        else:
            # Choice: a path twice in one layer is an error by the specification, and happens: as in
            # extraction the later entry wins, and hard links to the earlier one keep its content.
            siblings[name] = self._new_node(member)
        if old is not None and old.children is not None:
            self._forget_directories()

    def _describe_root(self, member: Member) -> None:
        # Choice: the root's own entry is applied; containerd and moby skip it. Without one: 0755, root, 1970.
        if member.kind != Kind.DIRECTORY:
            raise FormatError("the root is not a directory")
        self.describe(self.root, member)

    def _new_node(self, member: Member) -> Node:
        _, kind, mode, uid, gid, mtime_ns, size, data_start, link, device, xattrs = member
        # Choice: a character device 0:0 stays one; over overlayfs it becomes a whiteout by accident.
        return Node(
            kind,
            0o777 if kind == SYMLINK else mode & 0o7777,
            uid,
            gid,
            mtime_ns,
            size,
            self._layer,
            data_start,
            link,
            device,
            _visible(xattrs) if xattrs else xattrs,
            {} if kind == DIRECTORY else None,
        )

    def _make_directories(self, path: bytes) -> dict[bytes, Node]:
        """The children of directory `path`, made together with its parents where they are missing."""
        names = path.split(b"/")
        if len(names) >= MAX_DEPTH:
            raise LimitExceeded(f"a path of more than {MAX_DEPTH} components: {path[:200]!r}")
        children = self._root_children
        for depth, name in enumerate(names, 1):
            node = children.get(name)
            if node is None or node.children is None:
                node = self._imply(node, name, b"/".join(names[:depth]))
                children[name] = node
            assert node.children is not None
            children = node.children
        self._directories[path] = children
        return children

    def _imply(self, old: Node | None, name: bytes, path: bytes) -> Node:
        """A directory that only members below it tell of.

        Choice: one that exists below keeps its attributes (as containerd does over overlayfs); a new one is
        0755, root, 1970. A lower file, symlink or other non-directory is replaced, as by an explicit entry;
        one of this layer is an error, as in extraction.
        """
        if old is None:
            _check_name(name, path)
        elif old.layer == self._layer or path in self._linked:
            raise FormatError(f"a directory and something else in one layer: {path[:200]!r}")
        self._spend(1)
        return new_directory()

    def _link(self, member: Member) -> Node:
        """The node that a hard link names, or a stand-in where its target does not exist yet."""
        target = self._find(member.link)
        if target is None or target.kind == Kind.HARDLINK:
            # Choice: a target that comes later in the tar is accepted; extraction fails.
            link = member.link if target is None else target.link
            stand_in = Node(Kind.HARDLINK, layer=self._layer, link=link)
            self._forward.append((member, stand_in))
            return stand_in
        # Choice: a target that only lower layers have is accepted (the specification leaves it open), and
        # the inode is shared. What this layer whites out is no target. A symlink is linked itself.
        _check_target(target, member)
        self.describe(target, member)
        self._linked.add(member.path)
        return target

    def _bind_forward_links(self) -> None:
        """Put the targets in the places of the stand-ins that are still there.

        A stand-in's target did not exist when it was made, so a target that is a stand-in itself came
        later. Going backwards finds every target bound, or never to be: a cycle.
        """
        bound = []
        for member, stand_in in reversed(self._forward):
            head, _, name = member.path.rpartition(b"/")
            siblings = self._children_at(head)
            if siblings is None or siblings.get(name) is not stand_in:
                continue  # replaced since
            target = self._find(stand_in.link)
            if target is None or target.kind == Kind.HARDLINK:
                raise FormatError(f"hard link {member.path[:200]!r} to nothing: {member.link[:200]!r}")
            _check_target(target, member)
            siblings[name] = target
            bound.append((member, target))
        for member, target in reversed(bound):
            self.describe(target, member)

    def _find(self, path: bytes) -> Node | None:
        if not path:
            return self.root
        head, _, name = path.rpartition(b"/")
        siblings = self._directories.get(head)
        if siblings is None:
            siblings = self._children_at(head)
        return None if siblings is None else siblings.get(name)

    def _children_at(self, path: bytes) -> dict[bytes, Node] | None:
        """The children of directory `path`, or None where there is no such directory."""
        children = self._root_children
        for name in path.split(b"/") if path else ():
            node = children.get(name)
            if node is None or node.children is None:
                return None
            children = node.children
        return children


def is_reserved(path: bytes) -> bool:
    """Whether a component begins with ".wh.": such a member is a whiteout, or nothing."""
    return WHITEOUT in path and (path.startswith(WHITEOUT) or b"/.wh." in path)


def _check_name(name: bytes, path: bytes) -> None:
    if not 0 < len(name) <= MAX_NAME or name in (b".", b"..") or b"\0" in name:
        raise FormatError(f"a path that no file can have: {path[:200]!r}")


def _check_target(target: Node, member: Member) -> None:
    if target.children is not None:
        raise FormatError(f"hard link {member.path[:200]!r} to a directory")


def _visible(xattrs: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    # Choice: marks of overlayfs are dropped: over our tree they would hide or redirect what the image has.
    return tuple(pair for pair in xattrs if not pair[0].startswith(_OVERLAY_XATTRS))


def _describe(directory: Node, member: Member) -> None:
    """Replace the attributes of a directory."""
    directory.mode = member.mode & 0o7777
    directory.uid = member.uid
    directory.gid = member.gid
    directory.mtime_ns = member.mtime_ns
    directory.xattrs = _visible(member.xattrs)


def _describe_linked(target: Node, member: Member) -> None:
    """Apply a hard link's own header to the inode it names.

    Choice: as in extraction the last entry's owner, mode and time win, and its xattrs are added to those
    of the inode: several writers give a hard link's header none, and a capability must not vanish by that.
    """
    if target.kind != Kind.SYMLINK:
        target.mode = member.mode & 0o7777
    target.uid = member.uid
    target.gid = member.gid
    target.mtime_ns = member.mtime_ns
    added = _visible(member.xattrs)
    if added:
        xattrs = dict(target.xattrs) | dict(added)
        check_xattrs(xattrs)
        target.xattrs = tuple(sorted(xattrs.items()))
