"""What each layer changes over those below it, as a lower directory of overlayfs.

References are to the kernel's `filesystems/overlayfs.rst`. The layers are merged as ever; before each one the
names of all directories are remembered, and after it, what the layer has touched is copied. So the layers of
an image, each shown alone, make under overlayfs the tree that `merge` makes of them.

What a layer hides or describes, it does so whatever is below: another image may have the same layer over
other ones, and who keeps both of their layers by digest has it once.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from indexer.merge import AUFS, MAX_ENTRIES, OPAQUE, WHITEOUT, Merger, is_reserved
from indexer.toc import Kind, Member
from indexer.tree import Node, count_links

OPAQUE_XATTR: Final = (b"trusted.overlay.opaque", b"y")
"""What a directory has that hides all that lower ones of its name hold."""


def layers_alone(layers: Iterable[Collection[Member]], *, max_entries: int = MAX_ENTRIES) -> Iterator[Node]:
    """What each of these layers changes over those below it, as a lower directory of overlayfs.

    A name that is hidden is a character device 0:0 ("whiteouts and opaque directories"), also where nothing
    below has it, but its directory; all of them are names of one node. A directory that replaces something is
    opaque, and so is one with an opaque mark. The root, and a directory that is there for what is in it, have
    their attributes of the merged tree. A file of a lower layer that the layer links to is there by all its
    names, with the number of that layer.

    Args:
        layers: the members of each layer, bottom first; each is gone through twice, in order.
        max_entries: as for `merge`.

    Raises:
        LimitExceeded: as `merge` does for all these layers.
        FormatError: the same.
    """
    comparer = _Comparer(max_entries)
    for number, members in enumerate(layers):
        comparer.remember()
        comparer.apply(number, members)
        comparer.hide(members)
        root = comparer.changes()
        count_links(root)
        yield root


class _Comparer(Merger):
    """A merger that can tell what has changed since a certain moment."""

    def __init__(self, max_entries: int) -> None:
        super().__init__(max_entries)
        self._names: list[tuple[Node, dict[bytes, Node]]] = []
        self._described: set[Node] = set()
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
        for noted in (self._described, self._opaque, self._hidden, self._names):
            noted.clear()
        stack = [self.root]
        while stack:
            directory = stack.pop()
            children = directory.children or {}
            self._names.append((directory, children.copy()))
            stack += [child for child in children.values() if child.children is not None]

    def changes(self) -> Node:
        """The root of a tree of what has changed."""
        copies = _Copies()
        whiteout = Node(Kind.CHARACTER, mode=0)
        # A directory stands after its parent. One that is not there is new, and all that is in it.
        for directory, before in reversed(self._names):
            is_merged = directory not in self._opaque  # elsewhere overlayfs would list whiteouts
            names = before if is_merged else {}
            children = directory.children or {}
            changed = self._changed(children, names, copies)
            hidden = self._hidden.get(directory, set()) if is_merged else set()
            changed |= dict.fromkeys(sorted((names.keys() | hidden) - children.keys()), whiteout)
            if changed or directory is self.root or self._is_kept(directory):
                copies.of(directory).children = changed
        for directory in self._opaque:
            copy = copies.of(directory)
            copy.xattrs = tuple(sorted((*copy.xattrs, OPAQUE_XATTR)))
        return copies.of(self.root)

    def _is_kept(self, node: Node) -> bool:
        return node in self._described or node in self._opaque

    def _changed(
        self, now: dict[bytes, Node], before: dict[bytes, Node], copies: "_Copies"
    ) -> dict[bytes, Node]:
        """Those children of a directory that are others than before, or are to be kept, or hold what is.

        Choice: a directory is opaque where the name was something else, or a mark says so. The root has no
        mark of its own: there, a layer's mark becomes a whiteout for each name.
        """
        changed = {}
        for name, node in now.items():
            old = before.get(name)
            if node is not old or self._is_kept(node):
                changed[name] = copies.of_all(node)
            elif node in copies:
                changed[name] = copies.of(node)
            if old is not None and node is not old:
                self._mark_opaque(node)
        return changed


class _Copies:
    """The nodes of another tree, each by that which it is a copy of."""

    def __init__(self) -> None:
        self._copies: dict[Node, Node] = {}

    def __contains__(self, node: Node) -> bool:
        return node in self._copies

    def of(self, node: Node) -> Node:
        """The copy of a node alone."""
        copy = self._copies.get(node)
        if copy is None:
            copy = self._copies[node] = node.copy()
        return copy

    def of_all(self, node: Node) -> Node:
        """The copy of a node and all below it."""
        if node in self._copies:
            return self._copies[node]
        stack = [self.of(node)]
        while stack:
            directory = stack.pop()
            if directory.children is not None:
                directory.children = {name: self.of(child) for name, child in directory.children.items()}
                stack += directory.children.values()
        return self._copies[node]
