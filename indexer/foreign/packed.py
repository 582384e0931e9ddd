"""Chunks of files as spans of the packed address space.

Contents stand there one after the other in the order of the blob, each on a 512-byte boundary; padding after
each, and chunks of zeros, come from nothing compressed. No compressed length is stored in most tables: a
chunk's bytes reach to the next larger offset (estargz.md, "TOC"), where tar headers between may come along.
They are cut where a writer can have needed no more.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from indexer.errors import FormatError, Unsupported
from indexer.foreign.facts import MAX_SPAN, NO_WINDOWS, BlobFacts
from indexer.foreign.json_listing import LANDMARK, LANDMARK_DIGEST, Chunk, Content, Listing
from indexer.spans.scan import Limits, bounded
from indexer.toc import (
    BLOCK_SIZE,
    AddressSpace,
    Compression,
    Entry,
    Proof,
    Span,
    SpanTable,
    Toc,
    TocHeader,
    round_to_block,
)

MAX_SHARING: Final = 1 << 14
"""Chunks of the fullest gzip member or frame that is taken over: who reads one of them has to bring all.

The smallest files fill 16 MiB of tar with as many.
"""

_FEW_CHUNKS: Final = 1000  # of a file; of more, each has a block of its own, on average
_ZEROS_AT_ONCE: Final = 4 << 20
_OF_NOTHING: Final = sha256(b"").digest()
_ENTRIES: Final = {Compression.GZIP: Entry.GZIP_MEMBER, Compression.ZSTD: Entry.ZSTD_FRAME}


class _Placed(NamedTuple):
    """A chunk and where its compressed bytes end."""

    chunk: Chunk
    end: int


def packed_toc(
    listing: Listing, facts: BlobFacts, compression: Compression, payload_end: int, limits: Limits
) -> Toc:
    """The Toc of a layer whose table of contents lists chunks.

    Args:
        listing: what the table says.
        facts: the layer.
        compression: of its chunks: GZIP or ZSTD.
        payload_end: where in the blob its last chunk ends at most.
        limits: bounds against bombs.

    Raises:
        FormatError: chunks overlap or leave the blob.
        LimitExceeded: the contents are too large for the blob.
        Unsupported: a chunk is too large to be checked in memory, too many share a member or frame, or a
            file has too many.
    """
    contents = sorted(listing.contents, key=lambda content: content.chunks[0][:2])
    packer = _Packer(_ENTRIES[compression])
    members = list(listing.members)
    check_size = bounded(limits, facts.size)
    for content, placed in zip(contents, _placed(contents, payload_end), strict=True):
        if content.member >= 0:
            member = members[content.member]
            check_size(packer.position + member.size)
            members[content.member] = member._replace(data_start=packer.position)
            packer.pack(placed)
        elif _is_landmark(content):  # no member refers to it; `prioritised` finds it
            check_size(packer.position + 1)
            packer.pack(placed)
    header = TocHeader(
        layer_digest=facts.digest,
        layer_size=facts.size,
        diff_id="",
        uncompressed_size=packer.position,
        device_size=packer.position,
        compression=compression,
        address_space=AddressSpace.PACKED,
        span_size=0,
        windows_digest=NO_WINDOWS,
    )
    return Toc(header, SpanTable.from_spans(packer.spans), (), members)


def _is_landmark(content: Content) -> bool:
    chunk = content.chunks[0]
    return content.member == LANDMARK and (chunk.size, chunk.digest) == (1, LANDMARK_DIGEST)


def _placed(contents: Sequence[Content], payload_end: int) -> list[list[_Placed]]:
    """The chunks of each content with their ends, found from the last to the first."""
    placed: list[list[_Placed]] = []
    after: Chunk | None = None  # the chunk behind the one in hand
    here = payload_end  # the next larger offset
    sharing = 0  # chunks of the member or frame in hand
    for content in reversed(contents):
        _check_count(content.chunks)
        chunks: list[_Placed] = []
        for chunk in reversed(content.chunks):
            if after is None or after.offset != chunk.offset:
                here = payload_end if after is None else after.offset
                sharing = 0
            sharing += 1
            if sharing > MAX_SHARING:
                raise Unsupported(f"a foreign index with more than {MAX_SHARING} chunks in a member or frame")
            _check_chunk(chunk, after)
            said = content.end if content.end and not chunks else here
            if not chunk.offset < said <= here:
                raise FormatError("a foreign index with chunks that overlap or leave the blob", chunk.offset)
            chunks.append(_Placed(chunk, min(said, chunk.offset + _most(chunk.inner_offset + chunk.size))))
            after = chunk
        placed.append(chunks[::-1])
    return placed[::-1]


def _check_count(chunks: Sequence[Chunk]) -> None:
    """Reading some pages of a file takes some spans: writers make no chunk of a few bytes but by chance."""
    size = sum(chunk.size for chunk in chunks)
    if len(chunks) > _FEW_CHUNKS + size // BLOCK_SIZE:
        raise Unsupported(f"a foreign index with a file of {size} bytes in {len(chunks)} chunks")


def _check_chunk(chunk: Chunk, after: Chunk | None) -> None:
    """A chunk can be checked in memory, and ends before the one behind it if they share a member or frame."""
    inner_end = chunk.inner_offset + chunk.size
    if not chunk.zeros and inner_end > MAX_SPAN:
        raise Unsupported(f"a foreign index with a chunk of {inner_end} bytes; at most {MAX_SPAN} are read")
    shared = after is not None and after.offset == chunk.offset
    if shared and after and (chunk.zeros or after.zeros or inner_end > after.inner_offset):
        raise FormatError("a foreign index with chunks that overlap", chunk.offset)


def _most(size: int) -> int:
    """Compressed bytes that no writer needs more of for `size` uncompressed ones, with room for headers."""
    return size + size // 16 + (64 << 10)


class _Packer:
    """Lays contents out, one after the other."""

    def __init__(self, entry: Entry) -> None:
        self.spans: list[Span] = []
        self.position = 0
        self._entry = entry

    def pack(self, placed: Sequence[_Placed]) -> None:
        """The chunks of one file, and padding up to the next block boundary."""
        first = len(self.spans)
        for piece in placed:
            if piece.chunk.zeros:
                self._add_zeros(piece.chunk, first)
            else:
                self._add(piece.chunk, piece.end)
        missing = round_to_block(self.position) - self.position
        if missing:
            self._pad(missing)

    def _add_zeros(self, chunk: Chunk, first: int) -> None:
        """Zeros: padding of the span before, if that is of this file and they are few."""
        if len(self.spans) > first and self.spans[-1].padding + chunk.size <= _ZEROS_AT_ONCE:
            self._pad(chunk.size)
            return
        for size in _pieces(chunk.size):
            run = chunk._replace(size=size, inner_offset=0)
            self._append(run, chunk.offset, Entry.RAW, _OF_NOTHING, size)

    def _add(self, chunk: Chunk, end: int) -> None:
        self._append(chunk, end, self._entry, chunk.digest, 0)

    def _append(self, chunk: Chunk, end: int, entry: Entry, root: bytes, padding: int) -> None:
        self.spans.append(
            Span(
                number=len(self.spans),
                uncompressed_start=self.position,
                uncompressed_end=self.position + chunk.size,
                compressed_start=chunk.offset,
                compressed_end=end,
                entry=entry,
                bits=0,
                skip=chunk.inner_offset,
                window_start=0,
                window_end=0,
                first_leaf=0,  # the table counts leaves itself
                root=root,
                proof=Proof.CONTENT,
                padding=padding,
            )
        )
        self.position += chunk.size

    def _pad(self, size: int) -> None:
        last = self.spans[-1]
        self.position += size
        self.spans[-1] = last._replace(uncompressed_end=self.position, padding=last.padding + size)


def _pieces(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _ZEROS_AT_ONCE)
        size -= _ZEROS_AT_ONCE
