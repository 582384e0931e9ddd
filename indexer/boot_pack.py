"""A boot pack: the leaves that a start of an image touches, in the order of first touch, with their proofs.

    header      magic, version, counts, sizes                        (docs/boot-packs.md has the layout)
    table       one zstd frame: layers, runs of leaves, chunks
    checksum    sha256 of all before
    chunks      zstd frames one after the other; each can be decompressed alone

A chunk is the digests that prove its leaves (`leaf_proofs`), then the leaves. It is read in order: what one
chunk told of a span is not told again. Header, table and checksum are the *head*. Nothing here is trusted:
every leaf is compared with the span's Merkle root in the layer's own table of contents.

All integers are little-endian. The same leaves give the same bytes under the same version of zstd.
"""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from typing import Final, NamedTuple

import zstandard
from msgspec import Struct

from indexer.columns import ColumnReader, pack
from indexer.digest import DIGEST_SIZE, LEAF_SIZE, digest_hex
from indexer.errors import FormatError, LimitExceeded, Unsupported

VERSION: Final = 1
"""Version of the format, apart from the program's. A reader takes its own version only."""

HEADER_SIZE: Final = 48
"""How many bytes of a pack tell how long its head is."""

MAX_HEAD: Final = 32 << 20
MAX_CHUNK: Final = 2 << 20  # decompressed

_MAGIC: Final = b"lazyboot"
_HEADER: Final = struct.Struct("<8sB3xIIIQQ8x")
_MAX_LAYERS: Final = 1000
_MAX_RUNS: Final = 1 << 20
_MAX_CHUNKS: Final = 1 << 20
_MAX_TABLE: Final = 64 << 20
_MAX_LEAF: Final = 1 << 48
_LEVEL: Final = 9
_MOST_THREADS: Final = 8


class PackLayer(NamedTuple):
    """A layer, and the table of contents that its leaves are counted and proved by; both "sha256:…"."""

    layer_digest: str
    toc_digest: str


class Run(NamedTuple):
    """Leaves [first_leaf, end_leaf) of layer number `layer`."""

    layer: int
    first_leaf: int
    end_leaf: int


class Chunk(NamedTuple):
    """A chunk's place.

    Attributes:
        start: offset of its frame in the pack.
        end: its end.
        raw_size: decompressed bytes.
        first_run: number of its first run.
        end_run: number after its last.
        digests: how many digests stand before its leaves.
    """

    start: int
    end: int
    raw_size: int
    first_run: int
    end_run: int
    digests: int


class PackHead(Struct, frozen=True):
    """What a pack holds.

    Attributes:
        layers: by number.
        runs: all runs, in the order of first touch; no leaf twice.
        chunks: where they lie.
        size: bytes of the head.
    """

    layers: tuple[PackLayer, ...]
    runs: tuple[Run, ...]
    chunks: tuple[Chunk, ...]
    size: int

    @property
    def pack_size(self) -> int:
        """Bytes of the whole pack."""
        return self.chunks[-1].end if self.chunks else self.size

    @property
    def leaves(self) -> int:
        """How many leaves it holds."""
        return sum(run.end_leaf - run.first_leaf for run in self.runs)


def head_size(data: bytes | memoryview) -> int:
    """Bytes of the head that begins with `data`, of which at least HEADER_SIZE are there.

    Raises:
        FormatError: this is no pack.
        Unsupported: of another version.
        LimitExceeded: it is too long.
    """
    return _read_header(data)[-1]


def _read_header(data: bytes | memoryview) -> tuple[int, int, int, int, int]:
    """(layers, runs, chunks, decompressed bytes of the table, bytes of the head)."""
    if len(data) < HEADER_SIZE or bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise FormatError("not a boot pack")
    _, version, layers, runs, chunks, stored, raw = _HEADER.unpack_from(data)
    if version != VERSION:
        raise Unsupported(f"boot pack of version {version}; this program reads {VERSION}")
    size = HEADER_SIZE + stored + DIGEST_SIZE
    if size > MAX_HEAD or raw > _MAX_TABLE:
        raise LimitExceeded(f"a boot pack with a head of {size} bytes, {raw} decompressed")
    if layers > _MAX_LAYERS or runs > _MAX_RUNS or chunks > _MAX_CHUNKS:
        raise LimitExceeded(f"a boot pack of {layers} layers, {runs} runs, {chunks} chunks")
    return layers, runs, chunks, raw, size


def decode_pack_head(data: bytes | memoryview) -> PackHead:
    """The head of a pack, from its first bytes; what follows the head is not looked at.

    Raises:
        FormatError: it is no pack, cut short, damaged, or breaks its own rules.
        Unsupported: it is of another version.
        LimitExceeded: it is too large.
    """
    layer_count, run_count, chunk_count, raw_size, size = _read_header(data)
    if len(data) < size:
        raise FormatError(f"a boot pack's head of {size} bytes is cut short", len(data))
    body = bytes(data[: size - DIGEST_SIZE])
    if sha256(body).digest() != bytes(data[size - DIGEST_SIZE : size]):
        raise FormatError("boot pack is damaged: its checksum is wrong")
    reader = ColumnReader(decompress(body[HEADER_SIZE:], raw_size, "a boot pack's table"), "boot pack")
    layers = tuple(_layer(reader.take(2 * DIGEST_SIZE)) for _ in range(layer_count))
    run_columns = [reader.column(run_count) for _ in range(3)]
    chunk_columns = [reader.column(chunk_count) for _ in range(4)]
    reader.close()
    if len(set(layers)) != len(layers):
        raise FormatError("boot pack that names a layer twice")
    runs = _runs(run_columns, len(layers))
    return PackHead(layers, runs, _chunks(chunk_columns, runs, size), size)


def _layer(digests: bytes) -> PackLayer:
    return PackLayer(f"sha256:{digests[:DIGEST_SIZE].hex()}", f"sha256:{digests[DIGEST_SIZE:].hex()}")


def _runs(columns: Sequence[Sequence[int]], layers: int) -> tuple[Run, ...]:
    numbers, firsts, counts = columns
    if numbers and max(numbers) >= layers:
        raise FormatError("boot pack with leaves of a layer that it does not name")
    if counts and (min(counts) == 0 or max(counts) > _MAX_LEAF or max(firsts) > _MAX_LEAF):
        raise FormatError("boot pack with an impossible run of leaves")
    runs = tuple(
        Run(layer, first, first + count) for layer, first, count in zip(numbers, firsts, counts, strict=True)
    )
    for run, following in pairwise(sorted(runs)):
        if run.layer == following.layer and run.end_leaf > following.first_leaf:
            raise FormatError("boot pack with a leaf that comes twice")
    return runs


def _chunks(columns: Sequence[Sequence[int]], runs: Sequence[Run], start: int) -> tuple[Chunk, ...]:
    chunks = []
    first_run = 0
    for stored, raw, count, digests in zip(*columns, strict=True):
        end_run = first_run + count
        leaves = sum(run.end_leaf - run.first_leaf for run in runs[first_run:end_run])
        content = raw - DIGEST_SIZE * digests
        if not count or end_run > len(runs) or not stored or not leaves <= content <= LEAF_SIZE * leaves:
            raise FormatError("boot pack with a chunk of impossible size")
        if max(raw, stored) > MAX_CHUNK:
            raise LimitExceeded(f"boot pack with a chunk of {raw} bytes, {stored} compressed")
        chunks.append(Chunk(start, start + stored, raw, first_run, end_run, digests))
        first_run, start = end_run, start + stored
    if first_run != len(runs):
        raise FormatError("boot pack with leaves in no chunk")
    return tuple(chunks)


class RawChunk(NamedTuple):
    """A chunk before it is written.

    Attributes:
        runs: how many runs it holds.
        digests: how many digests stand before its leaves.
        data: the digests and the leaves.
    """

    runs: int
    digests: int
    data: bytes


def encode_pack(
    layers: Sequence[PackLayer], runs: Sequence[Run], chunks: Sequence[RawChunk], level: int
) -> bytes:
    """A pack. The chunks hold the runs in order; that their content is right is the caller's business.

    Args:
        layers: by number.
        runs: all runs.
        chunks: all chunks.
        level: of zstd, for the chunks.
    """
    with ThreadPoolExecutor(_cores()) as threads:
        frames = list(
            threads.map(lambda chunk: zstandard.ZstdCompressor(level=level).compress(chunk.data), chunks)
        )
    table = b"".join(
        (
            *(bytes.fromhex(digest_hex(digest)) for layer in layers for digest in layer),
            pack(run.layer for run in runs),
            pack(run.first_leaf for run in runs),
            pack(run.end_leaf - run.first_leaf for run in runs),
            pack(len(frame) for frame in frames),
            pack(len(chunk.data) for chunk in chunks),
            pack(chunk.runs for chunk in chunks),
            pack(chunk.digests for chunk in chunks),
        )
    )
    stored = zstandard.ZstdCompressor(level=_LEVEL).compress(table)
    header = _HEADER.pack(_MAGIC, VERSION, len(layers), len(runs), len(chunks), len(stored), len(table))
    body = header + stored
    return b"".join((body, sha256(body).digest(), *frames))


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


def decompress(data: bytes | memoryview, size: int, what: str) -> bytes:
    """Exactly `size` bytes from one zstd frame that states its content size.

    Raises:
        FormatError: it holds something else.
    """
    try:
        stated = zstandard.frame_content_size(data)
        if stated != size:
            raise FormatError(f"{what} states {stated} bytes where {size} belong")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what} is damaged: {error}") from error
