"""Writers of eStargz and zstd:chunked layers, in every dialect, from the bytes of a tar.

They follow the formats' documents, not our readers: a tar is cut where its contents and chunks begin, each
piece is compressed by itself, and a JSON table says where they are.
"""

import base64
import gzip
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import zstandard

from indexer.tar.stream import TarParser
from indexer.toc import Kind, Member
from tests.support.tars import (
    block,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    tar,
    whiteout,
)

LANDMARK = b".no.prefetch.landmark"
PREFETCH_LANDMARK = b".prefetch.landmark"
STARGZ = "containerd.io/snapshot/stargz/toc.digest"
PODMAN = "io.github.containers.zstd-chunked."
OLD_PODMAN = "io.containers.zstd-chunked."

TYPES = {
    Kind.REGULAR: "reg",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.HARDLINK: "hardlink",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
    Kind.FIFO: "fifo",
}
_ZERO_RUN = re.compile(rb"\0{1024,}")


@dataclass(frozen=True, slots=True)
class ForeignLayer:
    """A layer with a table of contents in it.

    Attributes:
        blob: the layer.
        json: the table.
        annotations: what a manifest says of it.
    """

    blob: bytes
    json: bytes
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to write such layers.

    Attributes:
        compress: makes a gzip member or zstd frame.
        finish: adds table and footer to the compressed tar, and tells the annotations.
        seconds_only: times lose their fractions.
        landmark: whether a landmark is put into the tar.
        zeros: whether runs of zeros are chunks of their own, and every content ends where its frames do.
    """

    compress: Callable[[bytes], bytes]
    finish: "Callable[[bytes, bytes], ForeignLayer]"
    seconds_only: bool = True
    landmark: bool = True
    zeros: bool = False


def write_layer(
    original: bytes,
    dialect: str,
    *,
    chunk_size: int = 4 << 20,
    min_chunk: int = 0,
    first: bytes = b"",
    edit: Callable[[dict[str, Any]], Any] = lambda table: table,
) -> ForeignLayer:
    """A layer of a tar, in a dialect of DIALECTS.

    Args:
        original: the tar.
        dialect: its name.
        chunk_size: bytes of a chunk.
        min_chunk: bytes that a gzip member or frame has at least before another begins; not in zstd:chunked.
        first: members that are to stand before a landmark, and are wanted first.
        edit: what is to be changed in the table; gives what is written instead.
    """
    how = DIALECTS[dialect]
    landmark = file(PREFETCH_LANDMARK if first else LANDMARK, b"\x0f") if how.landmark else b""
    whole = first + landmark + original
    payload, table = _Writer(whole, how, chunk_size, min_chunk).write()
    text = json.dumps(edit(table), indent="\t" if how.landmark else None).encode()
    return how.finish(payload, text)


@dataclass
class _Writer:
    tar: bytes
    how: Dialect
    chunk_size: int
    min_chunk: int
    out: bytearray = field(default_factory=bytearray)
    open: bytearray = field(default_factory=bytearray)  # what the next member or frame will hold
    entries: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> tuple[bytes, dict[str, Any]]:
        parser = TarParser()
        parser.feed(self.tar)
        parser.close()
        position = 0
        for member in parser.members:
            entry = self._entry(member)
            self.entries.append(entry)
            if member.size:
                self.open += self.tar[position : member.data_start]
                position = member.data_start + member.size
                self._content(entry, self.tar[member.data_start : position])
        self.open += self.tar[position:]
        self._flush()
        return bytes(self.out), {"version": 1, "entries": self.entries}

    def _flush(self) -> None:
        if self.open:
            self.out += self.how.compress(bytes(self.open))
            self.open.clear()

    def _content(self, entry: dict[str, Any], content: bytes) -> None:
        pieces = list(self._zero_pieces(content) if self.how.zeros else self._equal_pieces(content))
        entry["digest"] = _digest(content)
        offset = 0
        for number, (piece, zeros) in enumerate(pieces):
            if self.how.zeros or len(self.open) >= self.min_chunk:
                self._flush()
            chunk = entry if not number else {"name": entry["name"], "type": "chunk", "chunkOffset": offset}
            chunk |= {"offset": len(self.out)} | ({"innerOffset": len(self.open)} if self.open else {})
            if len(pieces) > 1 or self.how.landmark:
                last = number == len(pieces) - 1
                chunk |= {"chunkDigest": _digest(piece), "chunkSize": 0 if last else len(piece)}
                if self.how.zeros:
                    chunk |= {"chunkSize": len(piece)} | ({"chunkType": "zeros"} if zeros else {})
            if number:
                self.entries.append(chunk)
            self.open += piece
            offset += len(piece)
        if self.how.zeros:
            self._flush()
            entry["endOffset"] = len(self.out)

    def _equal_pieces(self, content: bytes) -> Iterator[tuple[bytes, bool]]:
        for start in range(0, len(content), self.chunk_size):
            yield content[start : start + self.chunk_size], False

    def _zero_pieces(self, content: bytes) -> Iterator[tuple[bytes, bool]]:
        position = 0
        for run in _ZERO_RUN.finditer(content):
            yield from self._equal_pieces(content[position : run.start()])
            yield run[0], True
            position = run.end()
        yield from self._equal_pieces(content[position:])

    def _entry(self, member: Member) -> dict[str, Any]:
        is_directory = member.kind is Kind.DIRECTORY
        entry: dict[str, Any] = {
            "name": member.path.decode() + ("/" if is_directory else ""),
            "type": TYPES[member.kind],
            "modtime": self._time(member.mtime_ns),
            "mode": member.mode,
        }
        facts = {
            "size": member.size,
            "uid": member.uid,
            "gid": member.gid,
            "linkName": member.link.decode(),
            "devMajor": member.device[0],
            "devMinor": member.device[1],
            "xattrs": {name.decode(): base64.b64encode(value).decode() for name, value in member.xattrs},
        }
        return entry | {name: value for name, value in facts.items() if value}

    def _time(self, time_ns: int) -> str:
        seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
        return rfc3339(seconds, 0 if self.how.seconds_only else nanoseconds)


def rfc3339(seconds: int, nanoseconds: int) -> str:
    """A time as Go writes it, with as many digits as are needed."""
    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{text.rjust(19, '0')}{fraction}Z"


def _digest(data: bytes) -> str:
    return "sha256:" + sha256(data).hexdigest()


def gzip_member(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zstd_frame(data: bytes) -> bytes:
    streaming = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    return streaming.compress(data) + streaming.flush()


def skippable(data: bytes) -> bytes:
    """A skippable frame (RFC 8878 section 3.1.2)."""
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def gzip_footer(extra: bytes) -> bytes:
    """An empty gzip member with an extra field, its block stored."""
    return (
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
        + struct.pack("<H", len(extra))
        + extra
        + b"\1\0\0\xff\xff"
        + bytes(8)
    )


def _finish_estargz(payload: bytes, table: bytes) -> ForeignLayer:
    toc = gzip_member(file(b"stargz.index.json", table) + bytes(1024))
    footer = gzip_footer(b"SG\x16\0%016xSTARGZ" % len(payload))
    return ForeignLayer(payload + toc + footer, table, {STARGZ: _digest(table)})


def _finish_legacy(payload: bytes, table: bytes) -> ForeignLayer:
    toc = gzip_member(file(b"stargz.index.json", table) + bytes(1024))
    return ForeignLayer(payload + toc + gzip_footer(b"%016xSTARGZ" % len(payload)), table, {})


def _finish_stargz_zstd(payload: bytes, table: bytes) -> ForeignLayer:
    stored = zstd_frame(table)
    start = len(payload) + 8
    footer = struct.pack("<4Q", start, len(stored), len(table), 1) + b"GnUlInUx"
    annotations = {STARGZ: _digest(table), **_chunked(OLD_PODMAN, start, stored, table)}
    return ForeignLayer(payload + skippable(stored) + skippable(footer), table, annotations)


def _finish_podman(payload: bytes, table: bytes) -> ForeignLayer:
    stored, split = zstd_frame(table), zstd_frame(b'{"type":2,"payload":""}\n')
    start = len(payload) + 8
    second = start + len(stored) + 8
    numbers = (start, len(stored), len(table), 1, second, len(split), 24)
    footer = struct.pack("<7Q", *numbers) + b"GNUlInUx"
    blob = payload + skippable(stored) + skippable(split) + skippable(footer)
    return ForeignLayer(blob, table, _chunked(PODMAN, start, stored, table))


def _chunked(prefix: str, start: int, stored: bytes, table: bytes) -> dict[str, str]:
    return {
        f"{prefix}manifest-checksum": _digest(stored),
        f"{prefix}manifest-position": f"{start}:{len(stored)}:{len(table)}:1",
    }


DIALECTS = {
    "estargz": Dialect(gzip_member, _finish_estargz),
    "legacy stargz": Dialect(gzip_member, _finish_legacy),
    "stargz zstd": Dialect(zstd_frame, _finish_stargz_zstd),
    "zstd:chunked": Dialect(zstd_frame, _finish_podman, seconds_only=False, landmark=False, zeros=True),
}


LIVING = tuple(name for name in DIALECTS if name != "legacy stargz")
"""The dialects with digests."""

MIXED = tar(
    directory(b"./", mode=0o751),
    directory(b"d", mode=0o1777, uid=3, gid=2**32 - 2),
    file(b"d/empty", mtime="1700000000.123456789"),
    file(b"d/small", b"hello", mode=0o4755, mtime=-5, xattrs={b"user.b": b"\xff\0", b"user.a": b"1"}),
    symlink(b"d/link", "../somewhere/é".encode()),
    file("ümlaut".encode(), b"x" * 511),
    hardlink(b"hard", b"d/small"),
    char(b"null", 1, 3),
    block(b"disk", 8, 1),
    fifo(b"pipe"),
    file(b"zeros", bytes(10_000)),
    file(b"holes", b"a" * 700 + bytes(5000) + b"b" * 3000 + bytes(1024) + b"c"),
    file(b"big", bytes(range(256)) * 700),
    whiteout(b"gone"),
    opaque(b"d"),
    file(b"d/small", b"another"),
    file(b"last", b"end"),
)
"""Members of all kinds, contents of all sizes, and one path twice."""


def expected_members(original: bytes, dialect: str) -> Sequence[Member]:
    """What a layer of this tar and dialect has, by the tar itself; `data_start` is 0."""
    parser = TarParser()
    parser.feed(original)
    parser.close()
    cut = 1_000_000_000 if DIALECTS[dialect].seconds_only else 1
    return [m._replace(data_start=0, mtime_ns=m.mtime_ns // cut * cut) for m in parser.members]


def contents(original: bytes) -> dict[bytes, bytes]:
    """The last content under each path of a tar that is not empty."""
    parser = TarParser()
    parser.feed(original)
    parser.close()
    return {m.path: original[m.data_start : m.data_start + m.size] for m in parser.members if m.size}
