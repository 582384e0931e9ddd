"""What differs between two images, with as few bytes moved as that can be told.

First the two trees alone are compared. What they leave open are the contents of regular files of the same
size that lie in different places; most of those `same_bytes` answers from the indexes. Only the ranges that
are left are read, from both images, up to the first byte that differs.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any, Final

from msgspec import Struct, field

from indexer.erofs.read import MetadataImage
from lazyfs.errors import NotFound
from lazyfs.image.image import Image
from lazyfs.image.inside.browse import Entry, children, entry_at
from lazyfs.image.inside.same_bytes import SameBytes, place_of
from lazyfs.image.tasks import run_all, run_few

_READERS: Final = 16
_PIECE: Final = 1 << 20


class Kind(Enum):
    """What became of a path; the letters are those of `docker diff`."""

    ADDED = "A"
    DELETED = "D"
    CHANGED = "C"


class Change(Struct, frozen=True):
    """A path that is not the same in both images.

    Attributes:
        kind: what became of it.
        path: from the root, without a leading "/".
        aspects: of a changed one: what differs, as old and new value. Of "type", "mode", "owner", "device",
            "size", "target", "xattrs", "mtime" and "content", whose values are None.
    """

    kind: Kind
    path: bytes
    aspects: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


class CompareOptions(Struct, frozen=True):
    """What counts as a difference.

    Attributes:
        times: modification times too.
        quick: read no content: where indexes do not tell, regular files of the same size and time are taken
            for the same, and those of another time told as different in "mtime".
    """

    times: bool = False
    quick: bool = False


class Difference(Struct, frozen=True):
    """All that differs between two images.

    Attributes:
        changes: in the order of a walk by name.
        read_pairs: pairs of files whose contents had to be read.
        read_bytes: bytes of content that were read, of both images together.
    """

    changes: tuple[Change, ...]
    read_pairs: int = 0
    read_bytes: int = 0


async def difference(
    old: Image, new: Image, path: bytes = b"", options: CompareOptions | None = None
) -> Difference:
    """What differs between two images, or between what they have at `path`.

    Names, types, permissions, owners, sizes, link targets, devices, xattrs and contents count. Which names
    share an inode does not.

    Raises:
        NotFound: neither image has `path`.
        IndexerError: something is damaged.
        LazyfsError: content cannot be had.
    """
    comparison = _Comparison(old, new, options or CompareOptions())
    found = [comparison.compare(*pair) for pair in _pairs(old.metadata, new.metadata, path)]
    await comparison.read_open_questions()
    return Difference(
        tuple(change for judge in found if (change := judge.change()) is not None),
        read_pairs=comparison.read_pairs,
        read_bytes=comparison.read_bytes,
    )


def _pairs(
    old: MetadataImage, new: MetadataImage, path: bytes
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """What the two trees have under the same paths, parents first, by name."""
    stack = [_tops(old, new, path)]
    while stack:
        left, right = stack.pop()
        yield left, right
        ours = {entry.name: entry for entry in children(old, left)} if left else {}
        theirs = {entry.name: entry for entry in children(new, right)} if right else {}
        names = sorted(ours.keys() | theirs.keys(), reverse=True)
        stack.extend((ours.get(name), theirs.get(name)) for name in names)


def _tops(old: MetadataImage, new: MetadataImage, path: bytes) -> tuple[Entry | None, Entry | None]:
    found: list[Entry | None] = []
    for image in (old, new):
        try:
            found.append(entry_at(image, path, follow=False))
        except NotFound:
            found.append(None)
    if found == [None, None]:
        raise NotFound(f"neither image has /{os.fsdecode(path.strip(b'/'))}")
    return found[0], found[1]


class _Judgement(Struct):
    """What is known of a pair so far; content may still be an open question."""

    old: Entry | None
    new: Entry | None
    aspects: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def change(self) -> Change | None:
        if self.old is None or self.new is None:
            some = self.old or self.new
            assert some is not None
            return Change(Kind.ADDED if self.old is None else Kind.DELETED, some.path)
        return Change(Kind.CHANGED, self.old.path, self.aspects) if self.aspects else None


class _Comparison:
    """Two images under comparison, and the questions that only their contents answer."""

    def __init__(self, old: Image, new: Image, options: CompareOptions) -> None:
        self._old = old
        self._new = new
        self._options = options
        self._same = SameBytes()
        self._open: dict[tuple[int, int], _OpenQuestion] = {}
        self.read_pairs = self.read_bytes = 0

    def compare(self, old: Entry | None, new: Entry | None) -> _Judgement:
        """What the trees and the indexes tell; the rest is kept as an open question."""
        judgement = _Judgement(old, new)
        if old is not None and new is not None:
            judgement.aspects.update(self._attributes(old, new))
            if old.letter == new.letter == "f" and old.inode.size == new.inode.size > 0:
                self._ask(old, new, judgement)
        return judgement

    def _attributes(self, old: Entry, new: Entry) -> Iterator[tuple[str, tuple[Any, Any]]]:
        pairs: dict[str, tuple[Any, Any]] = {
            "type": (old.letter, new.letter),
            "mode": (_mode(old), _mode(new)),
            "owner": (_owner(old), _owner(new)),
        }
        if old.letter == new.letter:
            if old.letter == "f":
                pairs["size"] = (old.inode.size, new.inode.size)
            elif old.letter == "l":
                pairs["target"] = (os.fsdecode(old.target), os.fsdecode(new.target))
            elif old.letter in "cb":
                pairs["device"] = (_device(old), _device(new))
        if old.inode.has_xattrs or new.inode.has_xattrs:
            pairs["xattrs"] = (_xattrs(self._old.metadata, old), _xattrs(self._new.metadata, new))
        if self._options.times:
            pairs["mtime"] = (old.inode.mtime_ns, new.inode.mtime_ns)
        return ((name, pair) for name, pair in pairs.items() if pair[0] != pair[1])

    def _ask(self, old: Entry, new: Entry, judgement: _Judgement) -> None:
        nids = (old.inode.nid, new.inode.nid)
        if nids in self._open:
            self._open[nids].judgements.append(judgement)
            return
        one, other = place_of(self._old, nids[0]), place_of(self._new, nids[1])
        assert one is not None
        assert other is not None
        ranges = self._same.unproven(one, other)
        if not ranges:
            return
        if self._options.quick:
            times = (old.inode.mtime_ns, new.inode.mtime_ns)
            if times[0] != times[1]:
                judgement.aspects["mtime"] = times
            return
        self._open[nids] = _OpenQuestion(ranges, [judgement])

    async def read_open_questions(self) -> None:
        """Answer them by reading, several at once, in the order of the old image's layers."""
        order = sorted(self._open, key=lambda nids: self._old.metadata.extent(nids[0]) or (0, 0))
        await run_few((partial(self._answer, nids, self._open[nids]) for nids in order), _READERS)

    async def _answer(self, nids: tuple[int, int], question: "_OpenQuestion") -> None:
        self.read_pairs += 1
        for start, end in question.ranges:
            for offset in range(start, end, _PIECE):
                if not await self._equal(nids, offset, min(_PIECE, end - offset)):
                    for judgement in question.judgements:
                        judgement.aspects["content"] = (None, None)
                    return

    async def _equal(self, nids: tuple[int, int], offset: int, size: int) -> bool:
        pieces: dict[int, bytes] = {}

        async def read(number: int, image: Image) -> None:
            pieces[number] = await image.read(nids[number], offset, size)
            self.read_bytes += size

        await run_all(partial(read, number, image) for number, image in enumerate((self._old, self._new)))
        return pieces[0] == pieces[1]


class _OpenQuestion(Struct, frozen=True):
    """Two contents that indexes could not compare, and whom the answer concerns."""

    ranges: list[tuple[int, int]]
    judgements: list[_Judgement]


def _mode(entry: Entry) -> str:
    return f"{stat.S_IMODE(entry.inode.mode):04o}"


def _owner(entry: Entry) -> str:
    return f"{entry.inode.uid}:{entry.inode.gid}"


def _device(entry: Entry) -> str:
    return f"{os.major(entry.inode.rdev)}:{os.minor(entry.inode.rdev)}"


def _xattrs(image: MetadataImage, entry: Entry) -> dict[str, str]:
    """Names as text, values in hexadecimal."""
    found = image.xattrs(entry.inode.nid) if entry.inode.has_xattrs else {}
    return {os.fsdecode(name): value.hex() for name, value in found.items()}
