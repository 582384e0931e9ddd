"""An image's merged tree as one tar, as `docker export` gives it.

The order is that of a walk by name; of an inode with several names the first has the content and the others
are hard links to it. Times are exact, xattrs are there. The same image gives the same bytes.
"""

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from indexer.tar.write import END, RECORD_SIZE, header
from indexer.toc import BLOCK_SIZE, Kind, Member
from lazyfs.image.image import Image
from lazyfs.image.inside.browse import Entry, below, entry_at
from lazyfs.image.inside.pieces import Piece, hand_on, pieces_of

_KINDS: Final = {
    "f": Kind.REGULAR,
    "d": Kind.DIRECTORY,
    "l": Kind.SYMLINK,
    "c": Kind.CHARACTER,
    "b": Kind.BLOCK,
    "p": Kind.FIFO,
}


async def flatten(image: Image, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Give the tar of the whole tree to `take`, in pieces of about 1 MiB at most.

    Raises:
        IndexerError: content is damaged.
        LazyfsError: content cannot be had.
    """
    await hand_on(image, _pieces(image), take)


def _pieces(image: Image) -> Iterator[Piece]:
    first_names: dict[int, bytes] = {}
    size = 0
    for _, entry in below(image.metadata, entry_at(image.metadata, b"")):
        first = first_names.setdefault(entry.inode.nid, entry.path) if entry.inode.nlink > 1 else entry.path
        member = _member(image, entry) if first == entry.path else _link(entry, first)
        blocks = header(member)
        padding = bytes(-member.size % BLOCK_SIZE)
        yield Piece(blocks)
        yield from pieces_of(entry.inode.nid, member.size)
        yield Piece(padding)
        size += len(blocks) + member.size + len(padding)
    yield Piece(END + bytes(-(size + len(END)) % RECORD_SIZE))


def _member(image: Image, entry: Entry) -> Member:
    """A member that is all of an inode."""
    inode = entry.inode
    xattrs = image.metadata.xattrs(inode.nid) if inode.has_xattrs else {}
    return Member(
        entry.path,
        _KINDS[entry.letter],
        stat.S_IMODE(inode.mode),
        inode.uid,
        inode.gid,
        inode.mtime_ns,
        size=inode.size if entry.letter == "f" else 0,
        link=entry.target,
        device=(os.major(inode.rdev), os.minor(inode.rdev)) if entry.letter in "cb" else (0, 0),
        xattrs=tuple(sorted(xattrs.items())),
    )


def _link(entry: Entry, first_name: bytes) -> Member:
    """A member that is another name of an inode."""
    inode = entry.inode
    mode = stat.S_IMODE(inode.mode)
    return Member(entry.path, Kind.HARDLINK, mode, inode.uid, inode.gid, inode.mtime_ns, link=first_name)
