"""What the topmost of some layers changes, as a lower directory of overlayfs.

References are to the kernel's `filesystems/overlayfs.rst`. The topmost layer is merged as ever, over a tree
that is remembered by a copy of each directory's names; then what the layer has not touched leaves the tree.
So the layers of an image, each shown alone, make under overlayfs the tree that `merge` makes of them.

What a layer hides or describes, it does so whatever is below: another image may have the same layer over
other ones, and who keeps both of their layers by digest has it once.
"""

from collections.abc import Collection, Iterable
from typing import Final

from indexer.merge import AUFS, MAX_ENTRIES, OPAQUE, WHITEOUT, Merger, is_reserved
from indexer.toc import Kind, Member
from indexer.tree import Node, count_links

OPAQUE_XATTR: Final = (b"trusted.overlay.opaque", b"y")
"""What a directory has that hides all that lower ones of its name hold."""


def top_layer(layers: Iterable[Collection[Member]], *, max_entries: int = MAX_ENTRIES) -> Node:
    """What the topmost of these layers changes over those below it, as a lower directory of overlayfs.

    A name that is hidden is a character device 0:0 ("whiteouts and opaque directories"), also where nothing
    below has it, but its directory; all of them are names of one node. A directory that replaces something is
    opaque, and so is one with an opaque mark. The root, and a directory that is there for what is in it, have
    their attributes of the merged tree. A file of a lower layer that the topmost links to is there by all its
    names, with the number of that layer.

    Args:
        layers: the members of each layer, bottom first; each is gone through twice, in order, and two are
            held at a time. Without any, the tree is empty.
        max_entries: as for `merge`.

    Raises:
        LimitExceeded: as `merge` does for all these layers.
        FormatError: the same.
    """
    comparer = _Comparer(max_entries)
    number = -1
    held: Collection[Member] = ()  # below all there is nothing
    for members in layers:
        comparer.apply(number, held)
        number, held = number + 1, members
    comparer.remember()
    comparer.apply(number, held)
    comparer.hide(held)
    root = comparer.changes()
    count_links(root)
    return root


class _Comparer(Merger):
    """A merger that can tell what has changed since a certain moment."""

    def __init__(self, max_entries: int) -> None:
        super().__init__(max_entries)
        self._names: list[tuple[Node, dict[bytes, Node]]] = []
        self._described: set[Node] = set()
        self._whiteout = Node(Kind.CHARACTER, mode=0)
        self._opaque: set[Node] = set()
        self._hidden: dict[Node, set[bytes]] = {}

    def describe(self, node: Node, member: Member) -> None:
        """Remember that a layer told of this node: all its names are among the changes."""
        self._described.add(node)
        super().describe(node, member)

    def hide(self, members: Iterable[Member]) -> None:
        """Have marks for all that these members of the topmost layer hide, be it only above other layers."""
        for member in members:
            if not is_reserved(member.path):
                continue
            head, _, base = member.path.rpartition(b"/")
            directory = self._directory_at(head)
            if base == OPAQUE:
                self._mark_opaque(directory)
            elif not base.startswith(AUFS) and directory is not None and directory.children is not None:
                name = base.removeprefix(WHITEOUT)
                self._mark_opaque(directory.children.get(name))
                self._hidden.setdefault(directory, set()).add(name)

    def _directory_at(self, path: bytes) -> Node | None:
        if not path:
            return self.root
        head, _, name = path.rpartition(b"/")
        return (self._children_at(head) or {}).get(name)

    def _mark_opaque(self, node: Node | None) -> None:
        if node is not None and node.children is not None and node is not self.root:
            self._opaque.add(node)

    def remember(self) -> None:
        """What changes, changes from now on."""
        self._described.clear()
        self._names = []
        stack = [self.root]
        while stack:
            directory = stack.pop()
            children = directory.children or {}
            self._names.append((directory, children.copy()))
            stack += [child for child in children.values() if child.children is not None]

    def changes(self) -> Node:
        """The root of what has changed, made of the tree, which is no longer whole."""
        kept = self._described | self._opaque
        # A directory stands after its parent. One that is not there is new, and all that is in it.
        for directory, before in reversed(self._names):
            is_merged = directory not in self._opaque  # elsewhere overlayfs would list whiteouts
            names = before if is_merged else {}
            children = directory.children or {}
            directory.children = self._changed(children, names, kept)
            hidden = self._hidden.get(directory, set()) if is_merged else set()
            gone = sorted((names.keys() | hidden) - children.keys())
            directory.children.update(dict.fromkeys(gone, self._whiteout))
        for directory in self._opaque:
            directory.xattrs = tuple(sorted((*directory.xattrs, OPAQUE_XATTR)))
        return self.root

    def _changed(
        self, now: dict[bytes, Node], before: dict[bytes, Node], kept: set[Node]
    ) -> dict[bytes, Node]:
        """Those children of a directory that are others than before, or are to be kept, or hold what is.

        Choice: a directory is opaque where the name was something else, or a mark says so. The root has no
        mark of its own: there, a layer's mark becomes a whiteout for each name.
        """
        changed = {}
        for name, node in now.items():
            old = before.get(name)
            if node is not old or node.children or node in kept:
                changed[name] = node
            if old is not None and node is not old:
                self._mark_opaque(node)
        return changed
