"""Writes a layer: members to tar, compressed, with both digests."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

import zstandard

from indexer.build import DEFAULT_SPAN_SIZE
from indexer.tar.write import END, header
from indexer.toc import BLOCK_SIZE
from lazyfs.container.upper import UpperMember
from lazyfs.errors import ContainerError
from lazyfs.oci.media_types import OCI_LAYER

_PIECE: Final = 1 << 20
_GZIP_LEVEL: Final = 6
_GZIP: Final = 31  # zlib's wbits for a gzip header, without name or time
_ZSTD_LEVEL: Final = 3


class WrittenLayer(NamedTuple):
    """What came of it.

    Attributes:
        media_type: of the blob.
        digest: of the blob.
        size: of the blob, in bytes.
        diff_id: digest of the tar.
    """

    media_type: str
    digest: str
    size: int
    diff_id: str


class _Compressor(Protocol):
    def compress(self, data: bytes) -> bytes:
        """What can be written by now."""

    def flush(self) -> bytes:
        """The rest."""


class _Frames:
    """zstd in frames of a span each: any of them can be read alone."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
        self._held = bytearray()

    def compress(self, data: bytes) -> bytes:
        """Whole frames."""
        self._held += data
        made = []
        while len(self._held) >= DEFAULT_SPAN_SIZE:
            made.append(self._compressor.compress(bytes(self._held[:DEFAULT_SPAN_SIZE])))
            del self._held[:DEFAULT_SPAN_SIZE]
        return b"".join(made)

    def flush(self) -> bytes:
        """The last frame."""
        return self._compressor.compress(bytes(self._held)) if self._held else b""


class _Plain:
    """Nothing is compressed."""

    def compress(self, data: bytes) -> bytes:
        """The same."""
        return data

    def flush(self) -> bytes:
        """Nothing."""
        return b""


def write_layer(
    members: Iterable[UpperMember],
    descriptor: int,
    compression: str,
    check: Callable[[], None] = lambda: None,
) -> WrittenLayer:
    """Write a layer to a file; blocks.

    Args:
        members: what it holds.
        descriptor: of the file, open for writing.
        compression: "gzip", "zstd" or "none".
        check: called for each mebibyte at least; raises what ends it.

    Raises:
        ContainerError: a file became shorter while it was read, or the members cannot be had.
        OSError: the disk refuses.
    """
    blob, tar, size = sha256(), sha256(), 0
    for piece in _compressed(_large(_tar(members)), _compressor(compression), tar.update):
        check()
        blob.update(piece)
        size += len(piece)
        while piece:
            piece = piece[os.write(descriptor, piece) :]  # noqa: PLW2901  # what is left of it
    media_type = OCI_LAYER if compression == "none" else f"{OCI_LAYER}+{compression}"
    return WrittenLayer(media_type, f"sha256:{blob.hexdigest()}", size, f"sha256:{tar.hexdigest()}")


def _compressor(compression: str) -> _Compressor:
    if compression == "none":
        return _Plain()
    return _Frames() if compression == "zstd" else zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)


def _large(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces together: to compress or hash lets go of Python's lock, which is dear for a header alone."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _compressed(pieces: Iterable[bytes], compressor: _Compressor, note: "_Note") -> Iterator[bytes]:
    for piece in pieces:
        note(piece)
        yield compressor.compress(piece)
    yield compressor.flush()


class _Note(Protocol):
    def __call__(self, data: bytes, /) -> None: ...


def _tar(members: Iterable[UpperMember]) -> Iterator[bytes]:
    for member, content in members:
        yield header(member)
        if member.size:
            yield from _content(member.path, content, member.size)
            yield bytes(-member.size % BLOCK_SIZE)
    yield END


def _content(path: bytes, descriptor: int, size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = os.read(descriptor, min(left, _PIECE))
        if not piece:
            raise ContainerError(
                f"/{os.fsdecode(path)} became shorter while it was read: stop the container first"
            )
        left -= len(piece)
        yield piece
