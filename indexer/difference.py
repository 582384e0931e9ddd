"""What the topmost of some layers changes, as a lower directory of overlayfs.

References are to the kernel's `filesystems/overlayfs.rst`. The topmost layer is merged as ever, over a tree
that is remembered; then what is still as it was leaves the tree. So the layers of an image, each shown alone,
make under overlayfs the tree that `merge` makes of them; only hard links between layers become files of their
own.

To remember takes a copy of each directory's names, and the attributes of those nodes that the topmost layer
describes again: directories, and what its hard links name.
"""

from collections.abc import Collection, Iterable
from typing import Final

from indexer.merge import MAX_ENTRIES, Merger
from indexer.toc import Kind, Member
from indexer.tree import Node, count_links

OPAQUE_XATTR: Final = (b"trusted.overlay.opaque", b"y")
"""What a directory has that hides all that lower ones of its name hold."""

_Attributes = tuple[int, int, int, int, tuple[tuple[bytes, bytes], ...]]


def top_layer(layers: Iterable[Collection[Member]], *, max_entries: int = MAX_ENTRIES) -> Node:
    """What the topmost of these layers changes over those below it, as a lower directory of overlayfs.

    A name that is gone is a character device 0:0 ("whiteouts and opaque directories"); all of them are names
    of one node. A directory that replaces something is opaque. The root, and a directory that is there for
    what is in it, have their attributes of the merged tree. A name for a file of a lower layer has that
    layer's number.

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
    root = comparer.changes()
    count_links(root)
    return root


class _Comparer(Merger):
    """A merger that can tell what has changed since a certain moment."""

    def __init__(self, max_entries: int) -> None:
        super().__init__(max_entries)
        self._names: list[tuple[Node, dict[bytes, Node]]] = []
        self._described: dict[Node, _Attributes] = {}

    def describe(self, node: Node, member: Member) -> None:
        """Remember a node's attributes before they change."""
        self._described.setdefault(node, _attributes(node))
        super().describe(node, member)

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
        described = {node for node, old in self._described.items() if _attributes(node) != old}
        whiteout = Node(Kind.CHARACTER, mode=0)
        # A directory stands after its parent. One that is not there is new, and all that is in it.
        for directory, names in reversed(self._names):
            children = directory.children or {}
            directory.children = _changed(children, names, described)
            directory.children.update(dict.fromkeys(sorted(names.keys() - children.keys()), whiteout))
        return self.root


def _attributes(node: Node) -> _Attributes:
    """All of a node that may change once it stands in the tree."""
    return node.mode, node.uid, node.gid, node.mtime_ns, node.xattrs


def _changed(now: dict[bytes, Node], before: dict[bytes, Node], described: set[Node]) -> dict[bytes, Node]:
    """Those children of a directory that are others than before, or have changed, or hold what has.

    Choice: a directory is opaque only where the name was something else. The root has no mark of its own:
    overlayfs would not look at it, so an opaque mark of a layer becomes a whiteout for each name.
    """
    changed = {}
    for name, node in now.items():
        old = before.get(name)
        if node is not old:
            if old is not None and node.children is not None:
                node.xattrs = tuple(sorted((*node.xattrs, OPAQUE_XATTR)))
            changed[name] = node
        elif node.children or node in described:
            changed[name] = node
    return changed
