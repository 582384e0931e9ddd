"""What each layer of an image does to those below, and which bytes are shipped for nobody to see.

All of it comes from the layers' tables of contents. A layer is looked at twice: its members against the
tree of the layers below it, by path; and at the end its contents against the finished tree, by place: what
no path of the finished tree leads to is wasted, whoever hid it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from indexer.errors import LimitExceeded
from indexer.merge import OPAQUE, WHITEOUT, Merger, is_reserved
from indexer.toc import Kind, Member
from indexer.tree import MAX_DEPTH, Node
from lazyfs.oci.config import ImageConfig


class Tally(NamedTuple):
    """Names in the tree, and bytes of content of regular files under them, each inode once."""

    names: int = 0
    size: int = 0


class LayerChanges(NamedTuple):
    """What one layer does.

    Attributes:
        size: bytes of content in its tar.
        added: names the layers below do not have.
        changed: names they have, with something else or other attributes; a directory that is described
            again as it was is none.
        hidden: names of lower layers that end here, by a whiteout, an opaque directory, or because something
            else than a directory replaces one. Their sizes are those of the lower layers.
        wasted: bytes of its content that the finished tree does not show.
    """

    size: int
    added: Tally
    changed: Tally
    hidden: Tally
    wasted: int


class WastedFile(NamedTuple):
    """Content under one path that the finished tree does not show.

    Attributes:
        path: from the root.
        size: bytes, of all copies.
        layers: numbers of the layers that ship a copy.
    """

    path: bytes
    size: int
    layers: tuple[int, ...]


class LayerReport(NamedTuple):
    """What the layers of an image do.

    Attributes:
        layers: the lowest first.
        wasted_files: by path, the largest first.
    """

    layers: tuple[LayerChanges, ...]
    wasted_files: tuple[WastedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of content in all layers."""
        return sum(layer.size for layer in self.layers)

    @property
    def wasted(self) -> int:
        """Bytes of it that the finished tree does not show."""
        return sum(layer.wasted for layer in self.layers)

    @property
    def efficiency(self) -> float:
        """The share of the content that the finished tree shows, from 0 to 1; 1 where there is none.

        dive's score means the same. It counts by path: of a path with several versions the smallest is
        useful to it, and a removed directory costs it nothing; here the version that is seen is useful.
        """
        return 1 - self.wasted / self.size if self.size else 1.0


def report_layers(layers: Iterable[Sequence[Member]]) -> LayerReport:
    """What layers do, given their members, the lowest layer first.

    Raises:
        IndexerError: members that make no tree.
    """
    merger = Merger()
    contents: list[list[tuple[bytes, int, int]]] = []
    tallies = []
    for number, members in enumerate(layers):
        tallies.append(_Against(merger.root).tally(members))
        contents.append([(m.path, m.data_start, m.size) for m in members if m.size])
        merger.apply(number, members)
    seen = {(node.layer, node.data_start) for node in _nodes(merger.root) if node.size}
    wasted: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    wasted_of_layer = [0] * len(contents)
    for number, found in enumerate(contents):
        for path, start, size in found:
            if (number, start) not in seen:
                wasted[path].append((number, size))
                wasted_of_layer[number] += size
    return LayerReport(
        tuple(
            LayerChanges(sum(size for _, _, size in found), *three, waste)
            for found, three, waste in zip(contents, tallies, wasted_of_layer, strict=True)
        ),
        tuple(sorted(map(_wasted_file, wasted.items()), key=lambda file: (-file.size, file.path))),
    )


def _wasted_file(item: tuple[bytes, list[tuple[int, int]]]) -> WastedFile:
    path, copies = item
    layers = dict.fromkeys(number for number, _ in copies)
    return WastedFile(path, sum(size for _, size in copies), tuple(layers))


def created_by(config: ImageConfig, layers: int) -> list[str]:
    """The command that made each of so many layers, the lowest first.

    History tells of every step in order, and of each whether it left no layer (image-spec `config.md`,
    "history"). All are "" where the steps that left one are not as many as the layers.
    """
    steps = [step.created_by for step in config.history if not step.empty_layer]
    return steps if len(steps) == layers else [""] * layers


class _Own:
    """A path of a layer: what it says there last, the paths below, and whether it ever said no directory."""

    __slots__ = ("children", "fresh", "member")

    def __init__(self) -> None:
        self.member: Member | None = None
        self.children: dict[bytes, _Own] = {}
        self.fresh = False


class _Against:
    """A layer's members against the tree of the layers below, which is not changed."""

    def __init__(self, below: Node) -> None:
        self._below = below
        self._own = _Own()
        self._added: list[Member | None] = []
        self._changed: list[Member | None] = []
        self._hidden: dict[tuple[int, bytes], Node] = {}
        self._emptied: set[int] = set()  # directories whose names were looked at

    def tally(self, members: Sequence[Member]) -> tuple[Tally, Tally, Tally]:
        """(added, changed, hidden)."""
        for member in members:
            if not is_reserved(member.path):
                self._plant(member)
        self._compare()
        for member in members:
            if is_reserved(member.path):
                self._white_out(member.path)
        hidden = {id(node): node for node in self._hidden.values()}
        return (
            _tally(self._added),
            _tally(self._changed),
            Tally(len(self._hidden), sum(node.size for node in hidden.values())),
        )

    def _plant(self, member: Member) -> None:
        names = member.path.split(b"/") if member.path else []
        if len(names) > MAX_DEPTH:
            raise LimitExceeded(f"a path of more than {MAX_DEPTH} components: {member.path[:200]!r}")
        own = self._own
        for name in names:
            own = own.children.setdefault(name, _Own())
        own.member = member
        if member.kind is not Kind.DIRECTORY:
            own.children.clear()
            own.fresh = True

    def _compare(self) -> None:
        stack: list[tuple[Node | None, _Own]] = [(self._below, self._own)]
        while stack:
            old, own = stack.pop()
            stays = old is not None and old.children is not None and not own.fresh
            if old is None:
                self._added.append(own.member)
            elif not stays:
                self._changed.append(own.member)
                self._hide_below(old, own)
            elif own.member is not None and not _describes_the_same(old, own.member):
                self._changed.append(own.member)
            there = (old.children if old is not None else None) or {}
            stack.extend((there.get(name), child) for name, child in own.children.items())

    def _white_out(self, path: bytes) -> None:
        """Note what a whiteout hides; nothing for one that `merge` refuses or ignores."""
        head, _, base = path.rpartition(b"/")
        parent: Node | None = self._below
        own: _Own | None = self._own
        for name in head.split(b"/") if head else ():
            parent = parent.children.get(name) if parent is not None and parent.children else None
            own = own.children.get(name) if own is not None else None
        if parent is None or not parent.children:
            return
        if base == OPAQUE:
            self._hide_below(parent, own)
            return
        hidden = base.removeprefix(WHITEOUT)
        if not hidden.startswith(WHITEOUT) and hidden in parent.children:
            self._hide_below(*self._hide(parent, hidden, own))

    def _hide_below(self, directory: Node, own: _Own | None) -> None:
        """Everything below a directory goes, but for what the layer itself has there."""
        stack = [(directory, own)]
        while stack:
            parent, own_parent = stack.pop()
            if parent.children and id(parent) not in self._emptied:
                self._emptied.add(id(parent))
                stack.extend(self._hide(parent, name, own_parent) for name in parent.children)

    def _hide(self, parent: Node, name: bytes, own_parent: _Own | None) -> tuple[Node, _Own | None]:
        """A name goes, unless the layer itself has it; what is there, and what the layer has."""
        node = (parent.children or {})[name]
        own = own_parent.children.get(name) if own_parent is not None else None
        if own is None:
            self._hidden[id(parent), name] = node
        return node, own


def _tally(members: Sequence[Member | None]) -> Tally:
    return Tally(len(members), sum(member.size for member in members if member is not None))


def _describes_the_same(directory: Node, member: Member) -> bool:
    old = (directory.mode, directory.uid, directory.gid, directory.xattrs)
    return old == (member.mode, member.uid, member.gid, member.xattrs)


def _nodes(top: Node) -> Iterator[Node]:
    """A node and everything below it, once for each name."""
    stack = [top]
    while stack:
        node = stack.pop()
        yield node
        stack.extend((node.children or {}).values())
