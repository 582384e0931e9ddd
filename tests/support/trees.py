"""Merged trees from another hand: a slow applier of layers, strategies for members, and views to compare.

The applier keeps no tree. Each layer is a table of paths of its own; what a path shows is found by looking
through the layers from the top, as overlayfs does, every time it is asked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from indexer.toc import Kind, Member
from indexer.tree import Node


class Refused(Exception):
    """The naive applier's only error."""


class Shown(NamedTuple):
    """All that can be seen of one path. `names` are the paths of the same inode, sorted."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    layer: int
    data_start: int
    link: bytes
    device: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]
    nlink: int
    names: tuple[bytes, ...]


def tree_paths(root: Node) -> Iterator[tuple[bytes, Node]]:
    """(path, node) of every name in a tree, the root first, parents before children, in order of names."""
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        prefix = path + b"/" if path else b""
        children = node.children or {}
        stack += [(prefix + name, children[name]) for name in sorted(children, reverse=True)]


def shown_by_tree(root: Node) -> dict[bytes, Shown]:
    """Every path of a merged tree, flat."""
    paths = dict(tree_paths(root))
    names: dict[int, list[bytes]] = {}
    for path, node in paths.items():
        names.setdefault(id(node), []).append(path)
    return {
        path: Shown(
            *(node.kind, node.mode, node.uid, node.gid, node.mtime_ns),
            *(node.size, node.layer if node.size else 0, node.data_start),
            *(node.link, node.device, node.xattrs, node.nlink),
            tuple(sorted(names[id(node)])),
        )
        for path, node in paths.items()
    }


@dataclass(eq=False)
class _Thing:
    """An inode. An implicit directory has no member."""

    member: Member | None
    layer: int

    @property
    def is_directory(self) -> bool:
        return self.member is None or self.member.kind == Kind.DIRECTORY


@dataclass
class _Layer:
    things: dict[bytes, _Thing] = field(default_factory=dict)
    whiteouts: set[bytes] = field(default_factory=set)
    opaques: set[bytes] = field(default_factory=set)

    def hides(self, path: bytes) -> bool:
        """Whether lower layers' `path` cannot be seen through this layer."""
        return path in self.whiteouts or any(
            above in self.whiteouts
            or above in self.opaques
            or (above in self.things and not self.things[above].is_directory)
            for above in ancestors(path)
        )


def ancestors(path: bytes) -> list[bytes]:
    """The directories above a path, the root first."""
    if not path:
        return []
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(len(parts))]


def applied(layers: Sequence[Sequence[Member]]) -> dict[bytes, Shown]:
    """What a stack of layers shows, path by path; raises Refused for what cannot be merged."""
    stack: list[_Layer] = []
    for number, members in enumerate(layers):
        layer = _Layer()
        for member in members:
            _note_whiteout(layer, member.path)
        stack.append(layer)
        _apply(stack, number, [m for m in members if not _reserved(m.path)])
    return _flatten(stack)


def _reserved(path: bytes) -> bool:
    return any(part.startswith(b".wh.") for part in path.split(b"/"))


def _note_whiteout(layer: _Layer, path: bytes) -> None:
    *above, base = path.split(b"/")
    for part in above:
        if part.startswith(b".wh..wh."):
            return
        if part.startswith(b".wh."):
            raise Refused
    if base == b".wh..wh..opq":
        layer.opaques.add(b"/".join(above))
    elif base.startswith(b".wh.") and not base.startswith(b".wh..wh."):
        if base[4:] in (b"", b".", b".."):
            raise Refused
        layer.whiteouts.add(b"/".join([*above, base[4:]]))


def _look(stack: Sequence[_Layer], path: bytes) -> _Thing | None:
    for layer in reversed(stack):
        if path in layer.things:
            return layer.things[path]
        if layer.hides(path):
            return None
    return None


def _apply(stack: list[_Layer], number: int, members: Iterable[Member]) -> None:
    things = stack[-1].things
    waiting: list[tuple[Member, _Thing]] = []
    for member in members:
        path = member.path
        for above in ancestors(path)[1:]:
            if not things.setdefault(above, _Thing(None, number)).is_directory:
                raise Refused
        if not path and member.kind != Kind.DIRECTORY:
            raise Refused
        thing = _Thing(member, number)
        if member.kind == Kind.HARDLINK:
            target = _root_or(stack, member.link)
            if target is None or (target.member is not None and target.member.kind == Kind.HARDLINK):
                if target is not None:
                    thing.member = member._replace(link=target.member.link)
                waiting.append((member, thing))
            else:
                thing = _linked(target)
                _touch(thing, member)
        if thing.is_directory:
            if path in things and not things[path].is_directory:
                stack[-1].opaques.add(path)
        else:
            for below in [other for other in things if other.startswith(path + b"/")]:
                del things[below]
        things[path] = thing
    _settle(stack, waiting)


def _root_or(stack: list[_Layer], path: bytes) -> _Thing | None:
    return _look(stack, path) if path else _Thing(None, 0)


def _linked(target: _Thing) -> _Thing:
    if target.is_directory:
        raise Refused
    return target


def _touch(target: _Thing, header: Member) -> None:
    old = target.member
    target.member = old._replace(
        mode=old.mode if old.kind == Kind.SYMLINK else header.mode,
        uid=header.uid,
        gid=header.gid,
        mtime_ns=header.mtime_ns,
        xattrs=tuple(sorted({**dict(old.xattrs), **dict(header.xattrs)}.items())),
    )


def _settle(stack: list[_Layer], waiting: list[tuple[Member, _Thing]]) -> None:
    things = stack[-1].things
    left = [(member, thing) for member, thing in waiting if things.get(member.path) is thing]
    bound = []
    while left:
        found = None
        for member, thing in left:
            target = _root_or(stack, thing.member.link)
            if target is not None and (target.is_directory or target.member.kind != Kind.HARDLINK):
                found = (member, thing, _linked(target))
                break
        if found is None:
            raise Refused
        member, thing, target = found
        things[member.path] = target
        bound.append((member, target))
        left.remove((member, thing))
    for member, _ in waiting:
        for other, target in bound:
            if other is member:
                _touch(target, member)


def _implicit(stack: Sequence[_Layer], path: bytes) -> Member:
    """The attributes of an implicit directory of the top layer: those of the lower one that it shows."""
    *lower, layer = stack
    if not layer.hides(path):
        for depth in range(len(lower), 0, -1):
            thing = lower[depth - 1].things.get(path)
            if thing is not None and thing.is_directory:
                return thing.member or _implicit(lower[:depth], path)
            if thing is not None or lower[depth - 1].hides(path):
                break
    return Member(path, Kind.DIRECTORY, mode=0o755)


def _flatten(stack: list[_Layer]) -> dict[bytes, Shown]:
    visible: dict[bytes, tuple[_Thing, Member]] = {}
    for path in {b"", *(path for layer in stack for path in layer.things)}:
        thing = _look(stack, path)
        if thing is None and not path:
            thing = _Thing(None, 0)
        if thing is not None:
            owner = next((n for n in range(len(stack), 0, -1) if path in stack[n - 1].things), 0)
            member = thing.member or (
                _implicit(stack[:owner], path) if path else Member(b"", Kind.DIRECTORY, 0o755)
            )
            visible[path] = (thing, member)
    names: dict[int, list[bytes]] = {}
    subdirectories: Counter[bytes] = Counter()
    for path, (thing, _) in visible.items():
        names.setdefault(id(thing), []).append(path)
        if path and thing.is_directory:
            subdirectories[path.rpartition(b"/")[0]] += 1
    return {
        path: Shown(
            *(member.kind, 0o777 if member.kind == Kind.SYMLINK else member.mode),
            *(member.uid, member.gid, member.mtime_ns),
            *(member.size, thing.layer if member.size else 0, member.data_start),
            *(member.link, member.device),
            tuple(pair for pair in member.xattrs if b".overlay." not in pair[0]),
            2 + subdirectories[path] if thing.is_directory else len(names[id(thing)]),
            tuple(sorted(names[id(thing)])),
        )
        for path, (thing, member) in visible.items()
    }


# Strategies.

_PLAIN = st.sampled_from([b"a", b"b", b"c"])
_MARKED = st.sampled_from([b".wh.a", b".wh.b", b".wh.c", b".wh..wh..opq", b".wh..wh.plnk"])
_XATTRS = st.sampled_from(
    [(), (), ((b"user.one", b"1"),), ((b"trusted.overlay.opaque", b"y"), (b"user.two", b"2"))]
)
_KINDS = st.sampled_from(
    [*(Kind.REGULAR,) * 4, *(Kind.DIRECTORY,) * 4, *(Kind.HARDLINK,) * 2, Kind.SYMLINK, Kind.CHARACTER]
)


def _joined(parts: st.SearchStrategy[bytes], last: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda above, base: b"/".join([*above, base]), st.lists(parts, max_size=2), last)


@st.composite
def layer_members(draw: st.DrawFn) -> list[Member]:
    """The members of one layer, over so few names that they meet: duplicates, whiteouts, links and all."""
    members = []
    paths = st.one_of(
        _joined(_PLAIN, _PLAIN), _joined(_PLAIN, _PLAIN), _joined(_PLAIN, _MARKED), st.just(b"")
    )
    for number in range(draw(st.integers(0, 8))):
        path = draw(paths)
        kind = draw(_KINDS) if path else Kind.DIRECTORY
        members.append(
            Member(
                path,
                kind,
                mode=draw(st.sampled_from([0o644, 0o755, 0o4711])),
                uid=number,
                gid=draw(st.integers(0, 3)),
                mtime_ns=draw(st.integers(-3, 3)),
                size=number + 1 if kind == Kind.REGULAR else 0,
                data_start=512 * number if kind == Kind.REGULAR else 0,
                link=draw(_joined(_PLAIN, _PLAIN)) if kind in (Kind.HARDLINK, Kind.SYMLINK) else b"",
                device=draw(st.sampled_from([(0, 0), (1, 3)])) if kind == Kind.CHARACTER else (0, 0),
                xattrs=draw(_XATTRS),
            )
        )
    return members


def layer_stacks() -> st.SearchStrategy[list[list[Member]]]:
    """A few layers that disagree with each other."""
    return st.lists(layer_members(), max_size=4)


_NAMES = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from([b"x" * 255, b"\xff" * 255, b"-", b"...", b"\xc3\x28", b" ", b"a", b"b"]),
).filter(lambda name: not ({b"/"[0], 0} & set(name)) and name not in (b".", b"..") and name[:4] != b".wh.")
_RARE_XATTRS = st.dictionaries(
    st.sampled_from(
        [b"user.a", b"user." + b"n" * 250, b"trusted.t", b"security.s", b"user.b", b"com.apple.quarantine"]
    ),
    st.one_of(st.binary(max_size=9), st.sampled_from([bytes(600), b"v" * 4000])),
    max_size=4,
)


@st.composite
def tree_members(draw: st.DrawFn, *, layers: int, device_size: int) -> list[list[Member]]:
    """Layers without conflicts whose tree has names, numbers and sizes of every sort.

    Contents lie anywhere in their layer's `device_size` bytes and may overlap.
    """
    stack: list[list[Member]] = [[] for _ in range(layers)]
    taken: dict[bytes, tuple[Kind, int]] = {}
    directories = [b""]
    for _ in range(draw(st.integers(0, 25))):
        above = draw(st.sampled_from(directories))
        path = above + b"/" * bool(above) + draw(_NAMES)
        linkable = [p for p, (kind, _) in taken.items() if kind != Kind.DIRECTORY]
        kind = draw(st.sampled_from([k for k in Kind if k != Kind.HARDLINK or linkable]))
        if path in taken:
            continue
        start = 512 * draw(st.integers(0, device_size // 512 - 1))
        size = draw(st.sampled_from([0, 1, 511, 512, 513, 70_000])) if kind == Kind.REGULAR else 0
        size = min(size, device_size - start)
        link = b""
        layer = draw(st.integers(0, layers - 1))
        if kind == Kind.SYMLINK:
            link = draw(
                st.sampled_from([b"a", b"../b", b"/", b"t" * 448, b"t" * 449, b"t" * 512, b"t" * 4095])
            )
        elif kind == Kind.HARDLINK:
            link = draw(st.sampled_from(linkable))
            layer = max(layer, taken[link][1])
        elif kind == Kind.DIRECTORY:
            directories.append(path)
        taken[path] = (kind, layer)
        nodes = kind in (Kind.CHARACTER, Kind.BLOCK)
        stack[layer].append(
            Member(
                path,
                kind,
                mode=draw(st.integers(0, 0o7777)),
                uid=draw(st.sampled_from([0, 1000, 2**32 - 2])),
                gid=draw(st.sampled_from([0, 65534, 2**32 - 2])),
                mtime_ns=draw(st.integers(-(10**18), 4 * 10**18)),
                size=size,
                data_start=start if size else 0,
                link=link,
                device=(draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))) if nodes else (0, 0),
                xattrs=tuple(sorted(draw(_RARE_XATTRS).items())),
            )
        )
    return stack
