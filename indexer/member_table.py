"""The members of a layer as one table of columns, and back."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import compress, islice, pairwise
from operator import add, attrgetter, gt
from typing import Final, NamedTuple

from indexer.columns import ColumnReader, pack
from indexer.errors import FormatError, LimitExceeded
from indexer.tar.header import MAX_PATH
from indexer.toc import BLOCK_SIZE, Kind, Member, round_to_block

_MAX_SIZE: Final = 1 << 62
_MAX_PATHS: Final = 1 << 30  # bytes of all paths, whatever they share
_MAX_OWNER: Final = 2**32 - 2
_NANO: Final = 1_000_000_000
_CHECKED_TOGETHER: Final = 1024  # paths
_KINDS: Final = tuple(Kind)
_LINKS: Final = (Kind.SYMLINK, Kind.HARDLINK)
_ARE_LINKS: Final = bytes(kind in _LINKS for kind in range(256))

XattrSet = tuple[tuple[bytes, bytes], ...]


def encode_members(members: Sequence[Member]) -> bytes:
    """The table: columns of numbers, then paths (less what they share with the one before), links, xattrs."""
    paths = [m.path for m in members]
    shared = [0, *(_shared_size(a, b) for a, b in pairwise(paths))] if paths else []
    xattr_sets = list(dict.fromkeys(m.xattrs for m in members))
    xattr_numbers = {xattrs: number for number, xattrs in enumerate(xattr_sets)}
    links = [m.link for m in members if m.kind in _LINKS]
    gaps = []
    end = 0
    for member in members:
        if member.size:
            gaps.append(member.data_start - end)
            end = round_to_block(member.data_start + member.size)
        else:
            gaps.append(0)
    tables = [
        bytes(m.kind for m in members),
        *(pack(map(attrgetter(name), members)) for name in ("mode", "uid", "gid", "size")),
        pack((m.mtime_ns // _NANO for m in members), "q"),
        pack(m.mtime_ns % _NANO for m in members),
        pack(gaps, "q"),
        pack(m.device[0] for m in members),
        pack(m.device[1] for m in members),
        pack(xattr_numbers[m.xattrs] for m in members),
        pack(shared),
        pack(len(path) - cut for path, cut in zip(paths, shared, strict=True)),
        b"".join(path[cut:] for path, cut in zip(paths, shared, strict=True)),
        pack(map(len, links)),
        b"".join(links),
        _encode_xattr_sets(xattr_sets),
    ]
    return b"".join(tables)


def _shared_size(a: bytes, b: bytes) -> int:
    """How many bytes two paths have in common at their front, by halving: slices compare in C."""
    if b.startswith(a):
        return len(a)
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class FileRanges:
    """Where contents of a layer's regular files lie in its address space.

    Args:
        starts: of those that are not empty, in any order.
        sizes: theirs.
    """

    def __init__(self, starts: Sequence[int] = (), sizes: Sequence[int] = ()) -> None:
        if any(map(gt, starts, islice(starts, 1, None))):
            starts, sizes = zip(*sorted(zip(starts, sizes, strict=True)), strict=True)
        self._starts = array("Q", starts)
        self._ends = array("Q", map(add, starts, sizes))

    def __len__(self) -> int:
        return len(self._starts)

    def around(self, offset: int) -> tuple[int, int] | None:
        """(start, end) of the content that holds a byte; None where none does."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0 or self._ends[at] <= offset:
            return None
        return self._starts[at], self._ends[at]


def decode_ranges(data: bytes, count: int) -> FileRanges:
    """Where the contents of a table's members lie, at a seventh of the cost of `decode_members`.

    Raises:
        FormatError: the table breaks its own rules, as far as it is looked at.
    """
    reader = ColumnReader(data, "member table")
    kinds = reader.take(count)
    reader.skip(3 * count)
    sizes = reader.column(count)
    reader.skip(2 * count)
    starts = _content_starts(kinds, sizes, reader.column(count, "q"))
    return FileRanges(list(compress(starts, sizes)), list(filter(None, sizes)))


class Owners(NamedTuple):
    """Who owns a layer's members: the numbers of users and groups."""

    users: frozenset[int]
    groups: frozenset[int]


def decode_owners(data: bytes, count: int) -> Owners:
    """Who owns a table's members, at a small part of the cost of `decode_members`.

    Raises:
        FormatError: the table breaks its own rules, as far as it is looked at.
    """
    reader = ColumnReader(data, "member table")
    reader.take(count)
    reader.skip(count)
    owners = Owners(frozenset(reader.column(count)), frozenset(reader.column(count)))
    if any(max(numbers, default=0) > _MAX_OWNER for numbers in owners):
        raise FormatError(f"member table: a number is above {_MAX_OWNER}")
    return owners


def decode_members(data: bytes, count: int) -> list[Member]:
    """The members of a table that `encode_members` made.

    Raises:
        FormatError: the table breaks its own rules, or holds a path no tar could give.
        LimitExceeded: the paths are too long together.
    """
    reader = ColumnReader(data, "member table")
    kinds = reader.take(count)
    if count and max(kinds) >= len(_KINDS):
        raise FormatError("member table: unknown kind")
    modes, uids, gids, sizes = (reader.column(count) for _ in range(4))
    seconds = reader.column(count, "q")
    nanos = reader.column(count)
    gaps = reader.column(count, "q")
    majors, minors, xattr_numbers = (reader.column(count) for _ in range(3))
    _check_ranges(modes, uids, gids, sizes, nanos, majors, minors)
    paths = _decode_paths(reader, count)
    found_links = iter(_decode_links(reader, sum(kinds.count(kind) for kind in _LINKS)))
    xattr_sets = _decode_xattr_sets(reader)
    reader.close()
    if count and max(xattr_numbers) >= len(xattr_sets):
        raise FormatError("member table: unknown set of xattrs")
    starts = _content_starts(kinds, sizes, gaps)
    rows = zip(
        paths,
        map(_KINDS.__getitem__, kinds),
        modes,
        uids,
        gids,
        [second * _NANO + nano for second, nano in zip(seconds, nanos, strict=True)],
        sizes,
        starts,
        [next(found_links) if is_link else b"" for is_link in kinds.translate(_ARE_LINKS)],
        zip(majors, minors, strict=True),
        map(xattr_sets.__getitem__, xattr_numbers),
        strict=True,
    )
    return list(map(partial(tuple.__new__, Member), rows))  # half the cost of Member(...)


def _content_starts(kinds: bytes, sizes: Sequence[int], gaps: Sequence[int]) -> list[int]:
    """Where each member's content begins; 0 where it has none."""
    starts = []
    end = 0
    for kind, size, gap in zip(kinds, sizes, gaps, strict=True):
        start = 0
        if size:
            start = end + gap
            if kind != Kind.REGULAR or not 0 <= start < _MAX_SIZE or size > _MAX_SIZE:
                raise FormatError("member table: content where none can be")
            end = start + size
            end += -end % BLOCK_SIZE
        starts.append(start)
    return starts


def _check_ranges(
    modes: Sequence[int],
    uids: Sequence[int],
    gids: Sequence[int],
    sizes: Sequence[int],
    nanos: Sequence[int],
    majors: Sequence[int],
    minors: Sequence[int],
) -> None:
    bounds = ((modes, 0o7777), (uids, _MAX_OWNER), (gids, _MAX_OWNER), (sizes, _MAX_SIZE), (nanos, _NANO - 1))
    for column, top in (*bounds, (majors, 2**32 - 1), (minors, 2**32 - 1)):
        if column and max(column) > top:
            raise FormatError(f"member table: a number is above {top}")


def _decode_paths(reader: ColumnReader, count: int) -> list[bytes]:
    shared = reader.column(count)
    sizes = reader.column(count)
    if max(map(add, shared, sizes), default=0) > MAX_PATH:
        raise FormatError("member table: a path is too long")
    if sum(shared) + sum(sizes) > _MAX_PATHS:
        raise LimitExceeded(f"member table: paths of more than {_MAX_PATHS} bytes together")
    text = reader.take(sum(sizes))
    paths = []
    path = b""
    position = 0
    for cut, size in zip(shared, sizes, strict=True):
        if cut > len(path):
            raise FormatError("member table: a path shares more than there is")
        path = path[:cut] + text[position : position + size]
        position += size
        paths.append(path)
    _check_paths(paths)
    return paths


def _check_paths(paths: Sequence[bytes]) -> None:
    """As `check_path`, of many at once: what no path may hold is looked for in all of them together."""
    for first in range(0, len(paths), _CHECKED_TOGETHER):
        some = [path for path in paths[first : first + _CHECKED_TOGETHER] if path]
        framed = b"/" + b"/\0/".join(some) + b"/"
        if (
            b"//" in framed
            or b"/./" in framed
            or b"/../" in framed
            or framed.count(b"\0") != max(len(some) - 1, 0)
        ):
            for path in some:
                check_path(path)


def check_path(path: bytes) -> None:
    """A member's path has no empty, "." or ".." component and no NUL; the root is b"".

    Raises:
        FormatError: this one is otherwise.
    """
    framed = b"/" + path + b"/"
    if (path and b"//" in framed) or b"/./" in framed or b"/../" in framed or b"\0" in path:
        raise FormatError(f"not a clean path: {path[:200]!r}")


def _decode_links(reader: ColumnReader, count: int) -> list[bytes]:
    sizes = reader.column(count)
    if count and max(sizes) > MAX_PATH:
        raise FormatError("member table: a link is too long")
    text = reader.take(sum(sizes))
    links = []
    position = 0
    for size in sizes:
        links.append(text[position : position + size])
        position += size
    return links


def _encode_xattr_sets(xattr_sets: Sequence[XattrSet]) -> bytes:
    flat = [piece for xattrs in xattr_sets for pair in xattrs for piece in pair]
    return b"".join(
        (pack([len(xattr_sets)]), pack(map(len, xattr_sets)), pack(map(len, flat)), b"".join(flat))
    )


def _decode_xattr_sets(reader: ColumnReader) -> list[XattrSet]:
    (count,) = reader.column(1)
    pairs = reader.column(count)
    sizes = reader.column(2 * sum(pairs))
    pieces = iter([reader.take(size) for size in sizes])
    return [tuple((next(pieces), next(pieces)) for _ in range(number)) for number in pairs]
