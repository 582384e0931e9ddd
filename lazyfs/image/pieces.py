"""Reads pieces of files in order while the next ones are already under way, in bounded memory."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

import trio

from lazyfs.image.image import Image
from lazyfs.image.tasks import open_tasks

PIECE_SIZE: Final = 1 << 20
"""Bytes of the largest piece."""

WINDOW_SIZE: Final = 16 << 20
"""Bytes of pieces that are read, or being read, before they are wanted."""

_MOST_PIECES: Final = 512


class Piece(NamedTuple):
    """Bytes to hand on: those given, or [start, start + size) of an inode's content.

    Attributes:
        given: bytes that are there already.
        nid: the inode.
        start: where in its content.
        size: how many.
    """

    given: bytes = b""
    nid: int = 0
    start: int = 0
    size: int = 0


class _Slot:
    """A piece's bytes, once they have come."""

    __slots__ = ("came", "data")

    def __init__(self) -> None:
        self.came = trio.Event()
        self.data = b""


async def hand_on(
    image: Image, pieces: Iterable[Piece], take: Callable[[bytes], Awaitable[None]], window: int = WINDOW_SIZE
) -> None:
    """Give the bytes of all pieces to `take`, in order.

    Raises:
        IndexerError: content is damaged.
        LazyfsError: content cannot be had.
    """
    source = iter(pieces)
    under_way: deque[tuple[Piece, _Slot]] = deque()
    room = window
    async with open_tasks() as nursery:
        while True:
            while room > 0 and len(under_way) < _MOST_PIECES and (piece := next(source, None)):
                slot = _Slot()
                under_way.append((piece, slot))
                room -= len(piece.given) + piece.size
                if piece.size:
                    nursery.start_soon(_read, image, piece, slot)
                else:
                    slot.data = piece.given
                    slot.came.set()
            if not under_way:
                return
            piece, slot = under_way.popleft()
            await slot.came.wait()
            room += len(piece.given) + piece.size
            await take(slot.data)


async def _read(image: Image, piece: Piece, slot: _Slot) -> None:
    slot.data = await image.read(piece.nid, piece.start, piece.size)
    slot.came.set()


def pieces_of(nid: int, size: int) -> Iterable[Piece]:
    """The pieces of a whole file."""
    return (
        Piece(nid=nid, start=start, size=min(PIECE_SIZE, size - start))
        for start in range(0, size, PIECE_SIZE)
    )
