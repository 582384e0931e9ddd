"""A zTOC of soci-snapshotter as a Toc: tar offsets, and spans with digests of their compressed bytes.

Format: soci-snapshotter, ztoc/fbs/ztoc.fbs, a FlatBuffer without file identifier; the slots are listed
below. What a span becomes is not covered by its digest: it follows from checkpoint and window, which are
covered by the digest of the zTOC itself.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from indexer.build import BuiltToc
from indexer.digest import digest_hex, sha256_digest
from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.foreign.facts import MAX_SPAN, BlobFacts, kind_of, make_member
from indexer.foreign.flatbuffer import FlatBuffer, Table
from indexer.foreign.gzip_zinfo import MAX_CHECKPOINTS, Checkpoint, parse_zinfo
from indexer.foreign.times import time_ns
from indexer.spans.scan import Limits, bounded
from indexer.tar.pax import read_xattrs
from indexer.toc import (
    BLOCK_SIZE,
    AddressSpace,
    Compression,
    Entry,
    Member,
    Proof,
    Span,
    SpanTable,
    Toc,
    TocHeader,
    round_to_block,
)
from indexer.toc_codec import WindowCompressor

MAX_ZTOC: Final = 512 << 20
"""Bytes of the largest zTOC: 33 KB for each span, 150 or so for each member."""

# Slots of the tables.
_COMPRESSED_SIZE, _UNCOMPRESSED_SIZE, _TOC, _COMPRESSION = 2, 3, 4, 5
_MEMBERS = 0
_NAME, _TYPE, _OFFSET, _SIZE, _LINK, _MODE, _UID, _GID = range(8)
_TIME, _MAJOR, _MINOR, _RECORDS = 10, 11, 12, 13
_KEY, _VALUE = 0, 1
_ALGORITHM, _MAX_SPAN_ID, _DIGESTS, _CHECKPOINTS = range(4)
_INFO_SPAN_SIZE, _INFO_SIZE = 1, 2

_ALGORITHMS: Final = {1: Compression.GZIP, 2: Compression.NONE}
_MAX_RECORDS: Final = 4096
_SPARSE: Final = b"GNU.sparse."


class Ztoc(Struct, frozen=True):
    """What a zTOC makes.

    Attributes:
        built: the Toc and its windows.
        assumes_plain_header: whether it is right only if the blob begins with a gzip header without optional
            fields, of 10 bytes: old zTOCs do not tell.
    """

    built: BuiltToc
    assumes_plain_header: bool = False


def read_ztoc(data: bytes, facts: BlobFacts, limits: Limits) -> Ztoc:
    """The Toc that a zTOC makes.

    Args:
        data: the zTOC, which is the one its descriptor promised.
        facts: the layer.
        limits: bounds against bombs.

    Raises:
        FormatError: it breaks its own rules, or speaks of another layer.
        LimitExceeded: it is too large, or what it lists is.
        Unsupported: a span is too large to be checked in memory, or a file is sparse.
    """
    if len(data) > MAX_ZTOC:
        raise LimitExceeded(f"a zTOC of {len(data)} bytes; at most {MAX_ZTOC} are read")
    root = FlatBuffer(data).root()
    size = root.number(_UNCOMPRESSED_SIZE, "q")
    if root.number(_COMPRESSED_SIZE, "q") != facts.size:
        raise FormatError(f"a zTOC of another layer than one of {facts.size} bytes")
    if size < 0:
        raise FormatError(f"a zTOC of a layer of {size} bytes")
    bounded(limits, facts.size)(size)
    info = root.table(_COMPRESSION)
    compression = _ALGORITHMS.get(info.number(_ALGORITHM, "b", 1))
    if compression is None:
        raise Unsupported("a zTOC of an unknown compression")
    spans = _Spans()
    plain = False
    if compression is Compression.GZIP:
        zinfo = parse_zinfo(info.string(_CHECKPOINTS))
        plain = zinfo.assumes_plain_header
        spans.add_gzip(zinfo.points, _digests(info, len(zinfo.points)), size, facts.size)
    else:
        if size > facts.size:
            raise FormatError(f"a zTOC of {size} bytes of tar in a layer of {facts.size}")
        size = facts.size  # zeros after the tar's end mark are no part of it, but of the spans
        spans.add_raw(_digests(info, None), _raw_span_size(info, size), size)
    members = _members(root.table(_TOC), size, limits.max_members)
    windows = b"".join(spans.windows)
    header = TocHeader(
        layer_digest=facts.digest,
        layer_size=facts.size,
        diff_id="",
        uncompressed_size=size,
        device_size=round_to_block(size),
        compression=compression,
        address_space=AddressSpace.TAR,
        span_size=0,
        windows_digest=sha256_digest(windows),
    )
    return Ztoc(BuiltToc(Toc(header, SpanTable.from_spans(spans.spans), (), members), windows), plain)


def _digests(info: Table, count: int | None) -> list[bytes]:
    """The spans' digests, `count` of them if that is known."""
    texts = info.strings(_DIGESTS, MAX_CHECKPOINTS)
    digests = [bytes.fromhex(digest_hex(text.decode("latin-1"))) for text in texts]
    if len(digests) != info.number(_MAX_SPAN_ID, "i") + 1 or count not in (None, len(digests)):
        raise FormatError(f"a zTOC with {len(digests)} digests, which is not one for each span")
    return digests


def _raw_span_size(info: Table, layer_size: int) -> int:
    """The span size of an uncompressed layer, from a FlatBuffer TarZinfo (ztoc/compression/fbs/zinfo.fbs)."""
    zinfo = FlatBuffer(info.string(_CHECKPOINTS)).root()
    if zinfo.number(_INFO_SIZE, "q") != layer_size:
        raise FormatError("a zTOC with spans of another layer")
    return zinfo.number(_INFO_SPAN_SIZE, "q")


class _Spans:
    """Spans and their windows, put together."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.windows: list[bytes] = []
        self._window_end = 0
        self._compress = WindowCompressor()

    def add_gzip(self, points: Sequence[Checkpoint], digests: Sequence[bytes], size: int, end: int) -> None:
        """Spans between checkpoints; neighbours share a byte where one begins within it."""
        behind = [(point.uncompressed, point.compressed) for point in points[1:]]
        for point, digest, (stop, compressed_end) in zip(
            points, digests, [*behind, (size, end)], strict=True
        ):
            if stop > size or not point.uncompressed <= stop or not point.compressed < compressed_end <= end:
                raise FormatError("a zTOC with spans that leave the layer", point.compressed)
            start = point.compressed - (1 if point.bits else 0)
            self._add(
                (point.uncompressed, stop),
                (start, compressed_end),
                Entry.DEFLATE,
                digest,
                Proof.COMPRESSED,
                bits=point.bits,
                window=point.window,
            )

    def add_raw(self, digests: Sequence[bytes], span_size: int, size: int) -> None:
        """Equal pieces of an uncompressed layer."""
        if span_size <= 0 or len(digests) != -(-size // span_size):
            raise FormatError("a zTOC with spans that do not fill the layer")
        for number, digest in enumerate(digests):
            start = number * span_size
            stop = min(start + span_size, size)
            self._add((start, stop), (start, stop), Entry.RAW, digest, Proof.CONTENT)

    def _add(
        self,
        uncompressed: tuple[int, int],
        compressed: tuple[int, int],
        entry: Entry,
        digest: bytes,
        proof: Proof,
        *,
        bits: int = 0,
        window: bytes = b"",
    ) -> None:
        if max(end - start for start, end in (uncompressed, compressed)) > MAX_SPAN:
            raise Unsupported(f"a zTOC with a span of more than {MAX_SPAN} bytes")
        if uncompressed[0] == uncompressed[1]:
            return
        stored = self._compress(window)
        self.windows.append(stored)
        window_start, self._window_end = self._window_end, self._window_end + len(stored)
        self.spans.append(
            Span(
                number=len(self.spans),
                uncompressed_start=uncompressed[0],
                uncompressed_end=uncompressed[1],
                compressed_start=compressed[0],
                compressed_end=compressed[1],
                entry=entry,
                bits=bits,
                skip=0,
                window_start=window_start,
                window_end=self._window_end,
                first_leaf=0,  # the table counts leaves itself
                root=digest,
                proof=proof,
            )
        )


def _members(toc: Table, size: int, most: int) -> list[Member]:
    members = [_member(table) for table in toc.tables(_MEMBERS, most)]
    _check_contents(members, size)
    return members


def _member(table: Table) -> Member:
    kind = kind_of(table.string(_TYPE).decode("latin-1"))
    records = dict(_records(table))
    if any(key.startswith(_SPARSE) for key in records):
        raise Unsupported("a zTOC with a sparse file, of which it does not tell where the pieces are")
    return make_member(
        kind,
        table.string(_NAME),
        mode=table.number(_MODE, "q"),
        uid=table.number(_UID, "I"),
        gid=table.number(_GID, "I"),
        mtime_ns=time_ns(table.string(_TIME).decode("latin-1")),
        size=table.number(_SIZE, "q"),
        data_start=table.number(_OFFSET, "q"),
        link=table.string(_LINK),
        device=(table.number(_MAJOR, "q"), table.number(_MINOR, "q")),
        xattrs=read_xattrs(records, 0) if records else (),
    )


def _records(table: Table) -> Iterator[tuple[bytes, bytes]]:
    """All PAX records of a member: the slot is called `xattrs`, but holds the others too."""
    for record in table.tables(_RECORDS, _MAX_RECORDS):
        yield record.string(_KEY), record.string(_VALUE)


def _check_contents(members: Sequence[Member], size: int) -> None:
    """Contents stand on blocks of the tar, in order, with room for a header before each."""
    files = [member for member in members if member.size]
    for member in files:
        if member.data_start < BLOCK_SIZE or member.data_start % BLOCK_SIZE:
            raise FormatError(f"a zTOC with content at byte {member.data_start} of a tar")
        if member.data_start + member.size > size:
            raise FormatError("a zTOC with content that passes the end of the tar", member.data_start)
    for member, later in pairwise(files):
        if later.data_start < round_to_block(member.data_start + member.size) + BLOCK_SIZE:
            raise FormatError("a zTOC with contents that overlap or are out of order", later.data_start)
