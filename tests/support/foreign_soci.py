"""A writer of zTOCs, by the flatbuffers library and the format's documents, from a tar and its layer."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import flatbuffers

from indexer.tar.stream import TarParser
from indexer.toc import Entry, Kind, Member
from tests.support.foreign_layers import TYPES, rfc3339
from tests.support.layers import build

WINDOW = 32768
PLAIN_HEADER = 10


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint: where inflating can begin, as a zinfo has it."""

    compressed: int
    uncompressed: int
    bits: int
    window: bytes


@dataclass(frozen=True, slots=True)
class File:
    """A member as a zTOC has it, PAX records and all."""

    name: bytes
    type: bytes
    offset: int
    size: int
    link: bytes
    mode: int
    uid: int
    gid: int
    time: bytes
    device: tuple[int, int]
    records: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a zTOC says; change what is to be a lie."""

    compressed_size: int
    uncompressed_size: int
    files: tuple[File, ...]
    algorithm: int
    digests: tuple[bytes, ...]
    checkpoints: bytes
    max_span_id: int | None = None

    def encode(self) -> bytes:
        """The zTOC."""
        builder = flatbuffers.Builder(1 << 16)
        files = _vector(builder, [_file(builder, file) for file in self.files])
        toc = _table(builder, 1, lambda: _refer(builder, 0, files))
        digests = _vector(builder, [builder.CreateString(digest) for digest in self.digests])
        checkpoints = builder.CreateByteVector(self.checkpoints)
        version, tool = builder.CreateString("0.9"), builder.CreateString("a test")
        last = len(self.digests) - 1 if self.max_span_id is None else self.max_span_id

        def fill_info() -> None:
            builder.PrependInt8Slot(0, self.algorithm, 1)
            builder.PrependInt32Slot(1, last, 0)
            _refer(builder, 2, digests)
            _refer(builder, 3, checkpoints)

        info = _table(builder, 4, fill_info)

        def fill_root() -> None:
            _refer(builder, 0, version)
            _refer(builder, 1, tool)
            builder.PrependInt64Slot(2, self.compressed_size, 0)
            builder.PrependInt64Slot(3, self.uncompressed_size, 0)
            _refer(builder, 4, toc)
            _refer(builder, 5, info)

        builder.Finish(_table(builder, 6, fill_root))
        return bytes(builder.Output())


def draft(tar: bytes, blob: bytes, *, span_size: int = 64 << 10, old: bool = False) -> Draft:
    """What a zTOC of a gzip layer, or of a plain one, says.

    Args:
        tar: the layer's tar.
        blob: the layer.
        span_size: bytes of a span aimed at.
        old: leave out the first checkpoint.
    """
    parser = TarParser()
    parser.feed(tar)
    parser.close()
    files = tuple(_described(member) for member in parser.members)
    if blob == tar:
        ends = [*range(span_size, len(blob), span_size), len(blob)]
        digests = [_digest(blob[max(end - 1, 0) // span_size * span_size : end]) for end in ends]
        return Draft(len(blob), len(tar), files, 2, tuple(digests), raw_zinfo(span_size, len(blob)))
    points = gzip_points(tar, blob, span_size)
    edges = [*(point.compressed for point in points[1:]), len(blob)]
    digests = [
        _digest(blob[point.compressed - bool(point.bits) : end])
        for point, end in zip(points, edges, strict=True)
    ]
    return Draft(len(blob), len(tar), files, 1, tuple(digests), gzip_zinfo(points, span_size, old=old))


def gzip_points(tar: bytes, blob: bytes, span_size: int) -> list[Point]:
    """Checkpoints of a layer whose gzip headers have no optional fields."""
    points = []
    for span in build(blob, span_size=span_size).toc.spans:
        start = span.uncompressed_start
        ahead = PLAIN_HEADER if span.entry is Entry.GZIP_MEMBER else bool(span.bits)
        window = tar[max(start - WINDOW, 0) : start].rjust(WINDOW, b"\0")
        points.append(Point(span.compressed_start + ahead, start, span.bits, window))
    return points


def gzip_zinfo(points: Sequence[Point], span_size: int, *, old: bool = False) -> bytes:
    """The checkpoints as soci-snapshotter packs them."""
    stored = points[1:] if old else points
    parts = [struct.pack("<qqB", p.compressed, p.uncompressed, p.bits) + p.window for p in stored]
    return struct.pack("<iq", len(points), span_size) + b"".join(parts)


def raw_zinfo(span_size: int, size: int) -> bytes:
    """The FlatBuffer TarZinfo of an uncompressed layer."""
    builder = flatbuffers.Builder(64)

    def fill() -> None:
        builder.PrependInt32Slot(0, 2, 0)
        builder.PrependInt64Slot(1, span_size, 0)
        builder.PrependInt64Slot(2, size, 0)

    builder.Finish(_table(builder, 3, fill))
    return bytes(builder.Output())


def with_file(said: Draft, number: int, **changes: object) -> Draft:
    """A draft in which one file is another."""
    files = list(said.files)
    files[number] = replace(files[number], **changes)  # type: ignore[arg-type]
    return replace(said, files=tuple(files))


def replace_header(said: Draft, compressed_size: int, **changes: object) -> Draft:
    """A draft of a layer of another size, and with other changes."""
    return replace(said, compressed_size=compressed_size, **changes)  # type: ignore[arg-type]


def _described(member: Member) -> File:
    seconds, nanoseconds = divmod(member.mtime_ns, 1_000_000_000)
    records: Mapping[bytes, bytes] = {b"SCHILY.xattr." + name: value for name, value in member.xattrs}
    return File(
        name=member.path + (b"/" if member.kind is Kind.DIRECTORY else b""),
        type=TYPES[member.kind].encode(),
        offset=member.data_start,
        size=member.size,
        link=member.link,
        mode=member.mode | 0o100000,
        uid=member.uid,
        gid=member.gid,
        time=rfc3339(seconds, nanoseconds).encode(),
        device=member.device,
        records=((b"path", member.path), *sorted(records.items())),
    )


def _file(builder: flatbuffers.Builder, file: File) -> int:
    records = _vector(
        builder,
        [
            _pair(builder, builder.CreateString(key), builder.CreateString(value))
            for key, value in file.records
        ],
    )
    texts = {0: file.name, 1: file.type, 4: file.link, 8: b"", 9: b"", 10: file.time}
    strings = {slot: builder.CreateString(text) for slot, text in texts.items()}

    def fill() -> None:
        for slot, string in strings.items():
            _refer(builder, slot, string)
        for slot, number in ((2, file.offset), (3, file.size), (5, file.mode)):
            builder.PrependInt64Slot(slot, number, 0)
        builder.PrependUint32Slot(6, file.uid, 0)
        builder.PrependUint32Slot(7, file.gid, 0)
        builder.PrependInt64Slot(11, file.device[0], 0)
        builder.PrependInt64Slot(12, file.device[1], 0)
        _refer(builder, 13, records)

    return _table(builder, 14, fill)


def _pair(builder: flatbuffers.Builder, key: int, value: int) -> int:
    def fill() -> None:
        _refer(builder, 0, key)
        _refer(builder, 1, value)

    return _table(builder, 2, fill)


def _table(builder: flatbuffers.Builder, slots: int, fill: Callable[[], None]) -> int:
    builder.StartObject(slots)
    fill()
    table: int = builder.EndObject()
    return table


def _refer(builder: flatbuffers.Builder, slot: int, target: int) -> None:
    builder.PrependUOffsetTRelativeSlot(slot, target, 0)


def _vector(builder: flatbuffers.Builder, targets: Sequence[int]) -> int:
    builder.StartVector(4, len(targets), 4)
    for target in reversed(targets):
        builder.PrependUOffsetTRelative(target)
    vector: int = builder.EndVector()
    return vector


def _digest(data: bytes) -> bytes:
    return b"sha256:" + sha256(data).hexdigest().encode()
