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
    """A piece's bytes, which come."""

    __slots__ = ("came", "data", "piece")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.came = trio.Event()
        self.data = b""

    async def fill(self, image: Image) -> None:
        self.data = await image.read(self.piece.nid, self.piece.start, self.piece.size)
        self.came.set()


async def hand_on(image: Image, pieces: Iterable[Piece], take: Callable[[bytes], Awaitable[None]]) -> None:
    """Give the bytes of all pieces to `take`, in order.

    Raises:
        IndexerError: content is damaged.
        LazyfsError: content cannot be had.
    """
    source = iter(pieces)
    waiting: deque[bytes | _Slot] = deque()
    room = WINDOW_SIZE
    async with open_tasks() as nursery:
        while True:
            while room > 0 and len(waiting) < _MOST_PIECES and (piece := next(source, None)):
                found = piece.given if not piece.size else image.read_nowait(*piece[1:])
                if found is None:
                    slot = _Slot(piece)
                    nursery.start_soon(slot.fill, image)
                waiting.append(slot if found is None else found)
                room -= len(piece.given) + piece.size
            if not waiting:
                return
            first = waiting.popleft()
            if isinstance(first, _Slot):
                await first.came.wait()
                first = first.data
            room += len(first)
            await take(first)


def pieces_of(nid: int, size: int) -> Iterable[Piece]:
    """The pieces of a whole file."""
    return (
        Piece(nid=nid, start=start, size=min(PIECE_SIZE, size - start))
        for start in range(0, size, PIECE_SIZE)
    )
