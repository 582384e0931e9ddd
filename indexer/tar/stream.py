"""A push parser for tar: feed the stream in any cuts, take the members.

It passes bodies by and keeps at most one block, one extended header or the map of one sparse member.
Headers come in this order, and the parser's state is the method that takes the next unit of bytes:

    header -> extended header's body -> header            x X g L K: they speak of the member after them
           -> more cells -> ... -> header                 S with more than four pieces
           -> map in the body -> ... -> header            a PAX sparse file of format 1.0
           -> second zero block -> the end

Rules: OCI image-spec, layer.md; where it is silent, what Go's archive/tar reads, as container engines use it.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from indexer.errors import FormatError, LimitExceeded, Unsupported
from indexer.tar.header import GNU_MAGIC, MAX_PATH, Header, clean_path, read_device, read_header, read_size
from indexer.tar.pax import Records, parse_records, read_xattrs, record_number, record_time_ns
from indexer.tar.sparse import (
    MapInBody,
    Piece,
    SparseBody,
    check_pieces,
    gnu_pieces,
    gnu_real_size,
    map_in_records,
    pax_real_size,
    pax_version,
)
from indexer.toc import BLOCK_SIZE, Extent, Kind, Member, round_to_block, tail_start

MAX_MEMBERS: Final = 4_000_000
"""Members of one layer, unless said otherwise."""

MAX_EXTENDED: Final = 1 << 20
"""Bytes of one extended header's body; Go's limit too."""

MAX_TEXT: Final = 1 << 30
"""Bytes of all paths, link targets and xattrs of a layer: members are in memory, and compress well."""

MAX_PIECES: Final = 1_000_000
"""Pieces of all sparse members of a layer."""

MAX_DEVICE: Final = 1 << 41
"""The address space with its tail is smaller than this: EROFS has 32-bit numbers for blocks of 512 bytes."""

_MAX_ID: Final = 2**32 - 2
_ZERO_BLOCK: Final = bytes(BLOCK_SIZE)
_EXTENDED: Final = frozenset((b"x", b"X", b"g", b"L", b"K"))
_KINDS: Final = {
    b"0": Kind.REGULAR,
    b"\0": Kind.REGULAR,  # v7
    b"7": Kind.REGULAR,  # contiguous
    b"S": Kind.REGULAR,  # old GNU sparse
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"D": Kind.DIRECTORY,  # GNU incremental: a directory whose body lists names
}
_make_member: Final = partial(tuple.__new__, Member)  # a quarter of the cost of Member(...)


class _Extension:
    """What the extended headers so far say of the member to come.

    A second PAX header takes the place of the first; a global one changes nothing: both as Go does it.
    """

    __slots__ = ("link", "name", "records", "sparse_version")

    def __init__(self) -> None:
        self.name = b""
        self.link = b""
        self.records: Records = {}
        self.sparse_version: str | None = None

    def take(self, typeflag: bytes, body: bytes, offset: int) -> None:
        """One more extended header, whose body stands at `offset`."""
        if typeflag == b"L":
            self.name = body.partition(b"\0")[0]
        elif typeflag == b"K":
            self.link = body.partition(b"\0")[0]
        else:
            self.records = parse_records(body, offset)
            self.sparse_version = pax_version(self.records, offset)

    def over(self, header: Header, offset: int) -> Header:
        """The header with these in place of its own; GNU long names win over PAX ones, as in Go."""
        records = self.records
        name, mode, uid, gid, size, mtime_ns, typeflag, link = header
        name = self.name or records.get(b"path") or name
        if self.sparse_version:
            name = records.get(b"GNU.sparse.name") or name
        return Header(
            name,
            mode,
            record_number(records, b"uid", uid, offset),
            record_number(records, b"gid", gid, offset),
            record_number(records, b"size", size, offset),
            record_time_ns(records, b"mtime", mtime_ns, offset),
            typeflag,
            self.link or records.get(b"linkpath") or link,
        )


class TarParser:
    """Feed it a layer's uncompressed tar stream in any cuts, then close it.

    After an error it must not be used again.

    Attributes:
        members: those whose headers have passed. Until `close`, sparse ones have a `data_start` of 0.
        extents: the tail, ordered by start; there after `close`.
        device_size: end of the stream and its tail, rounded up to a block; there after `close`.
    """

    def __init__(self, *, max_members: int = MAX_MEMBERS) -> None:
        self.members: list[Member] = []
        self.extents: list[Extent] = []
        self.device_size = 0
        self._max_members = max_members
        self._position = 0  # offset of the next byte to come
        self._skip = 0  # how many bytes from there to pass by
        self._body_end = 0  # of the last member, without padding
        self._ended = False
        self._take: Callable[[bytes], None] = self._take_header
        self._need = BLOCK_SIZE  # bytes that `_take` takes at once
        self._held = bytearray()  # the first of them, where a cut fell between
        self._extension: _Extension | None = None
        self._sparse: dict[int, SparseBody] = {}  # by number of the member
        self._pieces = 0
        self._text = 0
        self._tail_size = 0

    def __repr__(self) -> str:
        state = (
            "ended"
            if self._ended
            else f"passing {self._skip}"
            if self._skip
            else f"holding {len(self._held)}"
        )
        return f"<TarParser at byte {self._position}, {state}, {len(self.members)} members>"

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream.

        Raises:
            FormatError: they break the format, or hold a name, number or map that cannot be.
            LimitExceeded: a name, header, map, count or size is above its limit.
            Unsupported: a type of member, or a version of a sparse format, that engines do not read either.
        """
        view = memoryview(data)
        size = len(view)
        start = 0
        held = self._held
        while start < size and not self._ended:
            if self._skip:
                step = min(self._skip, size - start)
                self._skip -= step
                self._position += step
                start += step
                continue
            end = start + self._need - len(held)
            unit = bytes(view[start:end])
            if held or end > size:
                held += unit
                if end > size:
                    break
                unit = bytes(held)
                held.clear()
            self._position += end - start
            start = end
            self._take(unit)
        self._position += size - start

    def close(self) -> None:
        """The stream ends here. An end marker may be missing, and the padding of the last body.

        Raises:
            FormatError: it ends within a header, a body, or a group of headers.
            LimitExceeded: with its tail it is too large to be addressed.
        """
        between = self._ended or self._take in (self._take_header, self._take_second_zero)
        if self._held or not between or self._position < self._body_end:
            raise FormatError("tar: the stream is cut short", self._position)
        if self._extension:
            raise FormatError("tar: no member after an extended header", self._position)
        start = tail_start(self._position)
        if start + self._tail_size >= MAX_DEVICE:
            raise LimitExceeded(f"tar: a layer of {start + self._tail_size} bytes with its sparse files")
        self.extents = []
        for number, body in self._sparse.items():
            self.members[number] = self.members[number]._replace(data_start=start)
            self.extents.extend(body.extents(start))
            start += round_to_block(body.size)
        self.device_size = start

    def _take_header(self, block: bytes) -> None:
        offset = self._position - BLOCK_SIZE
        if block == _ZERO_BLOCK:
            self._take = self._take_second_zero
            return
        if block[156:157] in _EXTENDED:
            self._begin_extended(block, offset)
            return
        header = read_header(block, offset)
        records: Records = {}
        version = None
        if self._extension:
            header = self._extension.over(header, offset)
            records = self._extension.records
            version = self._extension.sparse_version
            self._extension = None
        if header.typeflag == b"V":  # a volume label names nothing
            self._pass_body(header.size, offset)
            return
        kind = _kind_of(header, offset)
        if kind is not Kind.REGULAR:
            link, device = _link_of(header, kind, offset), (0, 0)
            if kind in (Kind.CHARACTER, Kind.BLOCK):
                device = read_device(block, offset)
            self._add(header, kind, records, offset, link=link, device=device)
            if header.typeflag == b"D":
                self._pass_body(header.size, offset)
        elif header.typeflag == b"S":
            self._begin_old_sparse(header, records, block, offset)
        elif version:
            self._begin_pax_sparse(header, records, version, offset)
        else:
            self._add(header, kind, records, offset, size=header.size, data_start=self._position)
            self._pass_body(header.size, offset)

    def _take_second_zero(self, block: bytes) -> None:
        if block != _ZERO_BLOCK:
            raise FormatError("tar: data after a single zero block", self._position - BLOCK_SIZE)
        self._ended = True

    def _add(
        self,
        header: Header,
        kind: Kind,
        records: Records,
        offset: int,
        *,
        size: int = 0,
        data_start: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> None:
        name, mode, uid, gid, _, mtime_ns, _, _ = header
        path = clean_path(name, offset)
        if not path and kind is not Kind.DIRECTORY:
            raise FormatError("tar: a root that is no directory", offset)
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise FormatError(f"tar: no user or group has number {uid}:{gid}", offset)
        if len(self.members) >= self._max_members:
            raise LimitExceeded(f"tar: more than {self._max_members} members", offset)
        xattrs = read_xattrs(records, offset) if records else ()
        self._text += len(path) + len(link) + sum(len(key) + len(value) for key, value in xattrs)
        if self._text > MAX_TEXT:
            raise LimitExceeded(f"tar: more than {MAX_TEXT} bytes of paths, links and xattrs", offset)
        mode = 0o777 if kind is Kind.SYMLINK else mode & 0o7777
        start = data_start if size else 0
        self.members.append(
            _make_member((path, kind, mode, uid, gid, mtime_ns, size, start, link, device, xattrs))
        )

    def _pass_body(self, size: int, offset: int) -> None:
        """The bytes from here are a body of `size`, and its padding."""
        if size < 0:
            raise FormatError(f"tar: a body of {size} bytes", offset)
        self._body_end = self._position + size
        if self._body_end >= MAX_DEVICE:
            raise LimitExceeded(f"tar: a body that ends at byte {self._body_end}", offset)
        self._skip = round_to_block(size)

    def _begin_extended(self, block: bytes, offset: int) -> None:
        typeflag, size = block[156:157], read_size(block, offset)
        if size < 0:
            raise FormatError(f"tar: an extended header of {size} bytes", offset)
        if size > MAX_EXTENDED:
            raise LimitExceeded(
                f"tar: an extended header of {size} bytes; at most {MAX_EXTENDED} are read", offset
            )
        if size:
            self._need = round_to_block(size)
            self._take = partial(self._take_extended, typeflag, size)
        else:
            self._take_extended(typeflag, 0, b"")

    def _take_extended(self, typeflag: bytes, size: int, padded: bytes) -> None:
        self._take, self._need = self._take_header, BLOCK_SIZE
        offset = self._position - len(padded)
        if typeflag == b"g":
            parse_records(padded[:size], offset)
            return
        if not self._extension:
            self._extension = _Extension()
        self._extension.take(typeflag, padded[:size], offset)

    def _begin_old_sparse(self, header: Header, records: Records, block: bytes, offset: int) -> None:
        if block[257:265] != GNU_MAGIC:
            raise Unsupported(f"tar: a sparse file not of GNU format: {header.name[:200]!r}")
        pieces, more = gnu_pieces(block, offset, first=True)
        add = partial(self._add_sparse, header, records, gnu_real_size(block, offset), offset, header.size)
        if more:
            self._take = partial(self._take_cells, add, pieces)
        else:
            add(pieces)

    def _take_cells(self, add: Callable[[list[Piece]], None], pieces: list[Piece], block: bytes) -> None:
        offset = self._position - BLOCK_SIZE
        further, more = gnu_pieces(block, offset, first=False)
        pieces += further
        self._check_count(pieces, offset)
        if not more:
            self._take = self._take_header
            add(pieces)

    def _begin_pax_sparse(self, header: Header, records: Records, version: str, offset: int) -> None:
        size = pax_real_size(records, header.size, offset)
        add = partial(self._add_sparse, header, records, size, offset)
        if version == "1":
            self._take = partial(self._take_map, add, MapInBody(header.size, offset), header.size)
        else:
            add(header.size, map_in_records(records, offset))

    def _take_map(
        self, add: Callable[[int, list[Piece]], None], map_: MapInBody, stored: int, block: bytes
    ) -> None:
        if map_.feed(block):
            self._take = self._take_header
            add(stored - map_.size, map_.pieces())

    def _add_sparse(
        self, header: Header, records: Records, size: int, offset: int, stored: int, pieces: list[Piece]
    ) -> None:
        check_pieces(pieces, size, stored, offset)
        self._check_count(pieces, offset)
        if size:
            self._sparse[len(self.members)] = SparseBody(size, self._position, pieces)
        self._pieces += len(pieces)
        self._tail_size += round_to_block(size)
        if self._tail_size >= MAX_DEVICE:
            raise LimitExceeded(f"tar: sparse files of {self._tail_size} bytes", offset)
        self._add(header, Kind.REGULAR, records, offset, size=size)
        self._pass_body(stored, offset)

    def _check_count(self, pieces: list[Piece], offset: int) -> None:
        if self._pieces + len(pieces) > MAX_PIECES:
            raise LimitExceeded(f"tar: more than {MAX_PIECES} pieces of sparse files", offset)


def _kind_of(header: Header, offset: int) -> Kind:
    """What kind of member a typeflag means.

    A name that ends in "/" is a directory where the type is NUL, as v7 wrote them, or where a regular file
    would be empty (GNU tar reads it so; engines make a file of it, in which nothing can lie).
    """
    typeflag = header.typeflag
    kind = _KINDS.get(typeflag)
    if kind is None:
        name = header.name[:200]
        raise Unsupported(f"tar: a member of type {typeflag!r}, {name!r} (at byte {offset})")
    bodiless = typeflag == b"\0" or (typeflag == b"0" and not header.size)
    return Kind.DIRECTORY if bodiless and header.name.endswith(b"/") else kind


def _link_of(header: Header, kind: Kind, offset: int) -> bytes:
    """A member's link target: a path of the layer for a hard link, any text for a symlink."""
    if kind is Kind.HARDLINK:
        target = clean_path(header.link, offset)
        if not target:
            raise FormatError(f"tar: a hard link to the root: {header.name[:200]!r}", offset)
        return target
    if kind is not Kind.SYMLINK:
        return b""
    if not header.link or b"\0" in header.link:
        raise FormatError(f"tar: a symlink to nowhere: {header.name[:200]!r}", offset)
    if len(header.link) > MAX_PATH:
        raise LimitExceeded(
            f"tar: a symlink of {len(header.link)} bytes; at most {MAX_PATH} are read", offset
        )
    return header.link
