"""Layers in every encoding, made from tar bytes, and Tocs built from them."""

import gzip
import struct
import zlib
from hashlib import sha256

import zstandard

from indexer.build import BuiltToc, LayerBuilder


def gzip_layer(data: bytes, level: int = 6) -> bytes:
    """One member, as most builders write it."""
    return gzip.compress(data, level, mtime=0)


def gzip_members(data: bytes, size: int = 100_000) -> bytes:
    """A member for every `size` bytes, an empty one among them."""
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(gzip.compress(piece, mtime=0) for piece in (*pieces[:1], b"", *pieces[1:]))


def gzip_with_fields(data: bytes) -> bytes:
    """All optional header fields at once: FEXTRA, FNAME, FCOMMENT, FHCRC (RFC 1952 section 2.3.1)."""
    extra = b"AB\x04\x00wxyz"
    header = b"\x1f\x8b\x08\x1e\0\0\0\0\x00\x03" + struct.pack("<H", len(extra)) + extra + b"name\0comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = raw.compress(data) + raw.flush()
    return header + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def gzip_stored(data: bytes) -> bytes:
    """Stored blocks only, between compressed ones at odd bits."""
    raw = zlib.compressobj(6, zlib.DEFLATED, 31)
    pieces = []
    for number, start in enumerate(range(0, len(data), 40_000)):
        pieces.append(raw.compress(data[start : start + 40_000]))
        if number % 3 == 0:
            pieces.append(raw.flush(zlib.Z_PARTIAL_FLUSH))
        elif number % 3 == 1:
            pieces.append(raw.flush(zlib.Z_SYNC_FLUSH))
        else:
            pieces.append(raw.flush(zlib.Z_BLOCK))
    return b"".join(pieces) + raw.flush()


def zstd_frame(data: bytes, *, content_size: bool = False) -> bytes:
    """One frame, as BuildKit streams it."""
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=content_size, write_checksum=True)
    if content_size:
        return compressor.compress(data)
    streaming = compressor.compressobj()
    return streaming.compress(data) + streaming.flush()


def zstd_frames(data: bytes, size: int = 70_000) -> bytes:
    """A frame for every `size` bytes, skippable frames between them, with and without content sizes."""
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"12345"
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    frames = [zstd_frame(piece, content_size=bool(n % 2)) for n, piece in enumerate(pieces)]
    return skippable.join([b"", *frames, b""])


ENCODINGS = {
    "plain": lambda data: data,
    "gzip -1": lambda data: gzip_layer(data, 1),
    "gzip -9": lambda data: gzip_layer(data, 9),
    "gzip -0": lambda data: gzip_layer(data, 0),
    "gzip members": gzip_members,
    "gzip header fields": gzip_with_fields,
    "gzip mixed blocks": gzip_stored,
    "zstd frame": zstd_frame,
    "zstd frame with size": lambda data: zstd_frame(data, content_size=True),
    "zstd frames": zstd_frames,
}
"""Name to encoder; each takes the tar's bytes."""


def digest_of(data: bytes) -> str:
    return "sha256:" + sha256(data).hexdigest()


def build(blob: bytes, *, step: int = 1 << 20, span_size: int = 64 << 10, **options: object) -> BuiltToc:
    """The Toc of a blob, fed in pieces of `step` bytes."""
    with LayerBuilder(len(blob), digest_of(blob), span_size=span_size, **options) as builder:  # type: ignore[arg-type]
        for start in range(0, len(blob), step):
            builder.feed(blob[start : start + step])
        return builder.finish()
