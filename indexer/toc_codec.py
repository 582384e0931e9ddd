"""A Toc as bytes, and back. Two files: the head, and the windows.

The head is what a mount needs before its first read (docs/index-format.md has the layout):

    magic and version     8 bytes
    header                fixed fields of TocHeader, and the counts of the tables
    three sections        spans, extents, members: each one zstd frame, lengths in the header
    checksum              sha256 of all before

The sha256 of the head is the *TOC digest*: the identity under which layers are cached. The windows file is
the compressed sparse windows one after the other; a span says where its own lies, so that one can be read
alone. A wrong window gives wrong bytes, which the span's digest in the head tells.

All integers are little-endian. The same Toc gives the same bytes under the same version of zstd.
"""

import struct
from array import array
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Final

import zstandard
from msgspec import Struct

from indexer.columns import ColumnReader, pack
from indexer.digest import DIGEST_SIZE, digest_hex, leaf_count
from indexer.errors import DigestMismatch, FormatError, LimitExceeded, Unsupported
from indexer.member_table import (
    FileRanges,
    Owners,
    decode_members,
    decode_owners,
    decode_ranges,
    encode_members,
)
from indexer.spans.scan import most_compressed
from indexer.toc import (
    AddressSpace,
    Compression,
    Entry,
    Extent,
    Member,
    Proof,
    SpanTable,
    Toc,
    TocHeader,
    tail_start,
)

_MAGIC: Final = b"lazytoc"
VERSION: Final = 3
"""Version of the head's format, apart from the program's. A reader takes its own version only."""

_HEADER: Final = struct.Struct("<7sB32s32s32sQQQIBB2xQQQ6Q")
_MAX_HEAD: Final = 1 << 30
_MAX_SECTION: Final = 1 << 31
_MAX_SPAN: Final = 1 << 30
_MAX_SIZE: Final = 1 << 62
_LEVEL: Final = 9
_WINDOW_LEVEL: Final = 6
_WINDOW_SIZE: Final = 32768
_UNKNOWN: Final = bytes(DIGEST_SIZE)


class TocHead(Struct, frozen=True):
    """An encoded Toc that has passed its checksum; tables are decoded on demand.

    Attributes:
        header: what the layer is.
        digest: the TOC digest, "sha256:…".
    """

    header: TocHeader
    digest: str
    _counts: tuple[int, int, int]
    _sections: tuple[bytes, bytes, bytes]
    _raw_sizes: tuple[int, int, int]

    @property
    def decoded_size(self) -> int:
        """Bytes of all tables, decompressed."""
        return sum(self._raw_sizes)

    def spans(self) -> SpanTable:
        """The span table.

        Raises:
            FormatError: it breaks its own rules.
        """
        return _decode_spans(self._section(0), self._counts[0], self.header)

    def extents(self) -> tuple[Extent, ...]:
        """The tail's extents.

        Raises:
            FormatError: they break their own rules.
        """
        return _decode_extents(self._section(1), self._counts[1], self.header)

    def members(self) -> list[Member]:
        """The members, in tar order.

        Raises:
            FormatError: they break their own rules, or leave the layer.
        """
        members = decode_members(self._section(2), self._counts[2])
        end = self.header.device_size
        if any(m.data_start + m.size > end for m in members):
            raise FormatError("a member's content passes the end of the layer")
        return members

    def file_ranges(self) -> FileRanges:
        """Where the contents of its members lie.

        Raises:
            FormatError: the members break their own rules.
        """
        return decode_ranges(self._section(2), self._counts[2])

    def owners(self) -> Owners:
        """Who owns its members.

        Raises:
            FormatError: the members break their own rules.
        """
        return decode_owners(self._section(2), self._counts[2])

    def toc(self) -> Toc:
        """Everything."""
        return Toc(self.header, self.spans(), self.extents(), self.members())

    def _section(self, number: int) -> bytes:
        raw_size = self._raw_sizes[number]
        return _decompress(self._sections[number], raw_size, "a TOC section")


def encode_toc(toc: Toc) -> bytes:
    """The head of a Toc."""
    raw = (_encode_spans(toc.spans), _encode_extents(toc.extents), encode_members(toc.members))
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    stored = [compressor.compress(section) for section in raw]
    header = toc.header
    sizes = [size for pair in zip(map(len, stored), map(len, raw), strict=True) for size in pair]
    head = _HEADER.pack(
        _MAGIC,
        VERSION,
        bytes.fromhex(digest_hex(header.layer_digest)),
        bytes.fromhex(digest_hex(header.diff_id)) if header.diff_id else _UNKNOWN,
        bytes.fromhex(digest_hex(header.windows_digest)),
        header.layer_size,
        header.uncompressed_size,
        header.device_size,
        header.span_size,
        header.compression,
        header.address_space,
        len(toc.spans),
        len(toc.extents),
        len(toc.members),
        *sizes,
    )
    body = head + b"".join(stored)
    return body + sha256(body).digest()


def decode_head(data: bytes, expected_digest: str | None = None) -> TocHead:
    """The head, its checksum and lengths verified, tables not yet decoded.

    Args:
        data: what `encode_toc` made.
        expected_digest: the TOC digest it must have, where one is known.

    Raises:
        DigestMismatch: another TOC digest.
        FormatError: not a TOC, or damaged.
        Unsupported: of another version.
    """
    digest = "sha256:" + sha256(data).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise DigestMismatch("table of contents", expected_digest, digest)
    if len(data) < _HEADER.size + DIGEST_SIZE or data[: len(_MAGIC)] != _MAGIC:
        raise FormatError("not a lazyfs table of contents")
    if data[len(_MAGIC)] != VERSION:
        raise Unsupported(f"table of contents of version {data[len(_MAGIC)]}; this program reads {VERSION}")
    if len(data) > _MAX_HEAD:
        raise LimitExceeded(f"a table of contents of {len(data)} bytes")
    if sha256(data[:-DIGEST_SIZE]).digest() != data[-DIGEST_SIZE:]:
        raise FormatError("table of contents is damaged: its checksum is wrong")
    return _decode_header(data, digest)


def _decode_header(data: bytes, digest: str) -> TocHead:
    fields = _HEADER.unpack_from(data)
    digests = ["sha256:" + raw.hex() for raw in fields[2:5]]
    layer_size, size, device_size, span_size, compression, space = fields[5:11]
    counts, sizes = fields[11:14], fields[14:20]
    if compression not in tuple(Compression) or space not in tuple(AddressSpace):
        raise FormatError("table of contents of an unknown compression or address space")
    if max(layer_size, size, device_size) > _MAX_SIZE or device_size < tail_start(size) or device_size % 512:
        raise FormatError("table of contents has impossible sizes")
    if max(sizes[1::2]) > _MAX_SECTION:
        raise LimitExceeded("a table of contents with a section above 2 GiB")
    ends = list(accumulate(sizes[::2], initial=_HEADER.size))
    if ends[-1] + DIGEST_SIZE != len(data):
        raise FormatError("table of contents: its sections do not fill it")
    sections = tuple(data[start:end] for start, end in pairwise(ends))
    return TocHead(
        header=TocHeader(
            layer_digest=digests[0],
            layer_size=layer_size,
            diff_id="" if fields[3] == _UNKNOWN else digests[1],
            uncompressed_size=size,
            device_size=device_size,
            compression=Compression(compression),
            address_space=AddressSpace(space),
            span_size=span_size,
            windows_digest=digests[2],
        ),
        digest=digest,
        _counts=(counts[0], counts[1], counts[2]),
        _sections=(sections[0], sections[1], sections[2]),
        _raw_sizes=(sizes[1], sizes[3], sizes[5]),
    )


class WindowCompressor:
    """Turns sparse windows into what lies in the windows file, again and again in the same memory."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_WINDOW_LEVEL)

    def __call__(self, window: bytes) -> bytes:
        """A sparse window compressed; b"" stays b""."""
        return self._compressor.compress(window) if window else b""


def decompress_window(data: bytes) -> bytes:
    """A sparse window from the windows file.

    Raises:
        FormatError: it is damaged, or larger than a window.
    """
    return _decompress(data, _WINDOW_SIZE, "a window", exact=False) if data else b""


def _decompress(data: bytes, size: int, what: str, *, exact: bool = True) -> bytes:
    """At most `size` bytes from one zstd frame that states its content size."""
    try:
        stated = zstandard.frame_content_size(data)
        if stated < 0 or stated > size or (exact and stated != size):
            raise FormatError(f"{what} states {stated} bytes where {size} belong")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what} is damaged: {error}") from error


def _encode_spans(table: SpanTable) -> bytes:
    spans = list(table)  # a table makes each anew
    starts = [0, *(s.compressed_start for s in spans)]
    return b"".join(
        (
            pack(s.size for s in spans),
            pack((later - start for start, later in pairwise(starts)), "q"),
            pack(s.compressed_size for s in spans),
            bytes(s.entry for s in spans),
            bytes(s.bits for s in spans),
            pack(s.skip for s in spans),
            pack(s.window_end - s.window_start for s in spans),
            b"".join(s.root for s in spans),
            bytes(s.proof for s in spans),
            pack(s.padding for s in spans),
            b"".join(s.blake3 for s in spans),  # b"" where it is not to be
        )
    )


def _decode_spans(data: bytes, count: int, header: TocHeader) -> SpanTable:
    reader = ColumnReader(data, "span table")
    sizes = reader.column(count)
    steps = reader.column(count, "q")
    lengths = reader.column(count)
    entries = reader.take(count)
    bits = reader.take(count)
    skips = reader.column(count)
    windows = reader.column(count)
    roots = reader.take(count * DIGEST_SIZE)
    proofs = reader.take(count)
    paddings = reader.column(count)
    blake3s = _spread(reader.take(DIGEST_SIZE * proofs.count(Proof.MERKLE)), proofs)
    reader.close()
    starts = list(accumulate(steps))
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    _check_spans(sizes, starts, ends, entries, bits, skips, windows, header)
    if any(proof >= len(Proof) for proof in set(proofs)):
        raise FormatError("span table: an unknown kind of proof")
    if any(padding > size for padding, size in zip(paddings, sizes, strict=True)):
        raise FormatError("span table: a span with more padding than bytes")
    return SpanTable(
        ends=array("Q", accumulate(sizes)),
        compressed_starts=array("Q", starts),
        compressed_ends=array("Q", ends),
        entries=entries,
        bits=bits,
        skips=skips,
        window_sizes=windows,
        roots=roots,
        proofs=proofs,
        paddings=paddings,
        blake3s=blake3s,
    )


def _spread(told: bytes, proofs: bytes) -> bytes:
    """Digests of those spans that have one at the places of all spans; b"" where none has."""
    if len(told) in (0, DIGEST_SIZE * len(proofs)):
        return told
    pieces = iter([told[at : at + DIGEST_SIZE] for at in range(0, len(told), DIGEST_SIZE)])
    return b"".join(next(pieces) if proof == Proof.MERKLE else _UNKNOWN for proof in proofs)


def _check_spans(
    sizes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    entries: bytes,
    bits: bytes,
    skips: Sequence[int],
    windows: Sequence[int],
    header: TocHeader,
) -> None:
    if sum(sizes) != header.uncompressed_size:
        raise FormatError("span table: its spans do not fill the layer")
    if not sizes:
        return
    if min(sizes) == 0 or max(sizes) > _MAX_SPAN or max(skips) > _MAX_SIZE:
        raise FormatError("span table: an impossible span size")
    if any(later < earlier for earlier, later in pairwise(starts)):
        raise FormatError("span table: spans are out of order")
    if min(starts) < 0 or max(ends) > header.layer_size:
        raise FormatError("span table: a span leaves the blob")
    for start, end, skip, size in zip(starts, ends, skips, sizes, strict=True):
        if end - start > most_compressed(skip + size):
            raise LimitExceeded(f"span table: a span of {end - start} compressed bytes")
    if max(entries) >= len(Entry) or max(bits) > 7 or max(windows) > 2 * _WINDOW_SIZE:
        raise FormatError("span table: an unknown entry")
    if sum(map(leaf_count, sizes)) > _MAX_SIZE:
        raise FormatError("span table: too many leaves")


def _encode_extents(extents: Sequence[Extent]) -> bytes:
    return b"".join(pack(e[field] for e in extents) for field in range(3))


def _decode_extents(data: bytes, count: int, header: TocHeader) -> tuple[Extent, ...]:
    reader = ColumnReader(data, "extent table")
    columns = [reader.column(count) for _ in range(3)]
    reader.close()
    extents = tuple(map(Extent, *columns))
    end = tail_start(header.uncompressed_size)
    for extent in extents:
        if extent.start < end or extent.tar_start + extent.length > header.uncompressed_size:
            raise FormatError("extent table: an extent overlaps another or leaves the layer")
        end = extent.start + extent.length
    if end > header.device_size:
        raise FormatError("extent table: an extent leaves the layer")
    return extents
