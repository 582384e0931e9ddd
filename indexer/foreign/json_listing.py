"""What eStargz and zstd:chunked tables say: members, and the chunks that files with content are cut into.

Both dialects have the same entries (stargz-snapshotter, estargz.md, "TOC"; containers/storage,
pkg/chunked/internal/minimal). A file's first chunk stands in its own entry; the others follow as entries of
type "chunk". A size of 0 reaches to the file's end. Only zstd:chunked says where a file's last chunk ends,
and of chunks that they are zeros.

Names are JSON strings. A name that was not UTF-8 has U+FFFD where its bytes were, and may not be the same in
two places any more: such a table is not taken.
"""

import binascii
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from msgspec import Struct

from indexer.digest import digest_hex
from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.foreign.facts import kind_of, make_member
from indexer.foreign.json_entries import read_entries
from indexer.foreign.times import time_ns
from indexer.tar.pax import check_xattrs
from indexer.toc import Kind, Member

PREFETCH_LANDMARK: Final = b".prefetch.landmark"
LANDMARKS: Final = frozenset((PREFETCH_LANDMARK, b".no.prefetch.landmark", b"stargz.index.json"))
"""What eStargz writers put into a layer for themselves."""

LANDMARK_DIGEST: Final = sha256(b"\x0f").digest()
"""Of a landmark's content (estargz.md, "Prioritized Files and Landmark Files")."""

_MAX_NUMBER: Final = (1 << 63) - 1
_REPLACEMENT: Final = "\ufffd"


class Chunk(NamedTuple):
    """A piece of a file's content.

    Attributes:
        offset: of the gzip member or zstd frame that it is in, in the blob.
        inner_offset: its first byte in what comes out there.
        size: its uncompressed bytes, at least 1.
        digest: sha256 of these.
        zeros: whether they are all zeros, and need not be read.
    """

    offset: int
    inner_offset: int
    size: int
    digest: bytes
    zeros: bool


HIDDEN: Final = -1
LANDMARK: Final = -2
"""In place of a member's number: no member, and the landmark behind what is wanted first."""


class Content(NamedTuple):
    """A file's content.

    Attributes:
        member: number of the member; HIDDEN or LANDMARK.
        chunks: in order, at least one.
        end: where in the blob the last one ends; 0 where it is not said.
    """

    member: int
    chunks: Sequence[Chunk]
    end: int


class Listing(Struct, frozen=True):
    """A table's members, with `data_start` 0, and the contents of those that have any, both in its order."""

    members: Sequence[Member]
    contents: Sequence[Content]


def read_listing(data: bytes, max_members: int, hidden: Collection[bytes] = ()) -> Listing:
    """What a table says.

    Args:
        data: the JSON.
        max_members: how many entries it may have.
        hidden: paths that are no members.

    Raises:
        FormatError: it breaks its own rules.
        LimitExceeded: too many entries, or one too large.
        Unsupported: a chunk without digest, or a name that JSON could not carry.
    """
    lister = _Lister(hidden)
    for number, entry in enumerate(read_entries(data)):
        if number >= max_members:
            raise LimitExceeded(f"a table of contents with more than {max_members} entries")
        lister.take(entry)
    lister.close()
    return Listing(lister.members, lister.contents)


class _Lister:
    """Takes entries in order and puts files together with their chunks."""

    def __init__(self, hidden: Collection[bytes]) -> None:
        self.members: list[Member] = []
        self.contents: list[Content] = []
        self._hidden = hidden
        self._size = 0  # of the file whose chunks come
        self._position = 0  # where in it the next chunk begins
        self._chunks: list[Chunk] = []

    def take(self, entry: Mapping[str, Any]) -> None:
        """The next entry."""
        if entry.get("type") == "chunk":
            self._take_chunk(entry, _text(entry, "chunkDigest"))
            return
        self.close()
        member = _member(entry)
        number = LANDMARK if member.path == PREFETCH_LANDMARK else HIDDEN
        if member.path not in self._hidden:
            number = len(self.members)
            self.members.append(member)
        self._size, self._position, self._chunks = member.size, 0, []
        if member.size:
            self.contents.append(Content(number, self._chunks, _number(entry, "endOffset")))
            whole = _number(entry, "chunkSize") in (0, member.size)
            digest = _text(entry, "chunkDigest") or (_text(entry, "digest") if whole else "")
            self._take_chunk(entry, digest)

    def close(self) -> None:
        """The file at hand is complete.

        Raises:
            FormatError: it is not.
        """
        if self._position != self._size:
            raise FormatError(f"chunks of {self._position} bytes for a file of {self._size}")

    def _take_chunk(self, entry: Mapping[str, Any], digest: str) -> None:
        offset = _number(entry, "chunkOffset")
        if offset != self._position:
            raise FormatError(f"a chunk at byte {offset} of a file, expected at {self._position}")
        length = _number(entry, "chunkSize") or self._size - self._position
        self._position += length
        if length <= 0 or self._position > self._size:
            raise FormatError(f"a chunk that passes the end of a file of {self._size} bytes")
        if not digest:
            raise Unsupported("a foreign index without digests of its chunks cannot be used")
        kind = _text(entry, "chunkType")
        if kind not in ("", "zeros"):
            raise Unsupported(f"a foreign index with a chunk of type {kind[:100]!r}")
        self._chunks.append(
            Chunk(
                offset=_number(entry, "offset"),
                inner_offset=_number(entry, "innerOffset"),
                size=length,
                digest=bytes.fromhex(digest_hex(digest)),
                zeros=kind == "zeros",
            )
        )


def _member(entry: Mapping[str, Any]) -> Member:
    kind = kind_of(_text(entry, "type"))
    return make_member(
        kind,
        _name(_text(entry, "name")),
        mode=_number(entry, "mode"),
        uid=_number(entry, "uid"),
        gid=_number(entry, "gid"),
        mtime_ns=time_ns(_text(entry, "modtime")),
        size=_number(entry, "size"),
        data_start=0,
        link=_name(_text(entry, "linkName")) if kind in (Kind.SYMLINK, Kind.HARDLINK) else b"",
        device=(_number(entry, "devMajor"), _number(entry, "devMinor")),
        xattrs=_xattrs(entry),
    )


def _xattrs(entry: Mapping[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    values = entry.get("xattrs")
    if not values:
        return ()
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise FormatError("a table of contents with xattrs that are no strings")
    try:
        found = {_name(key): binascii.a2b_base64(value, strict_mode=True) for key, value in values.items()}
    except ValueError as error:
        raise FormatError(f"a table of contents with an xattr that is not base64: {error}") from None
    found = {name: value for name, value in found.items() if value}  # as a tar's records: empty means none
    if found:
        check_xattrs(found)
    return tuple(sorted(found.items()))


def _name(text: str) -> bytes:
    if _REPLACEMENT in text:
        raise Unsupported("a foreign index with a name that is not UTF-8, which JSON cannot carry")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise FormatError("a table of contents with half of a surrogate pair") from None


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FormatError(f"a table of contents in which {key!r} is no string")
    return value


def _number(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise FormatError(f"a table of contents in which {key!r} is no number")
    return value
