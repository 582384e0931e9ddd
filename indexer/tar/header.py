"""One header block of a tar: its fields as values, whatever dialect wrote them.

Layout: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format". The magic tells
three dialects apart: POSIX (`ustar`, NUL), old GNU (`ustar`, two spaces, NUL) and v7 (anything else). Where
readers of tars differ we read what container engines read, that is Go's archive/tar.
"""

from functools import partial
from struct import Struct
from typing import Final, NamedTuple
from zlib import adler32

from indexer.errors import FormatError, LimitExceeded

MAX_PATH: Final = 4095
"""Bytes of the longest path or link target: PATH_MAX without its NUL, so engines unpack none longer."""

MAX_NAME: Final = 255
"""Bytes of the longest path component (NAME_MAX)."""

GNU_MAGIC: Final = b"ustar  \0"

_POSIX_MAGIC: Final = b"ustar\0"
_SLASH: Final = ord("/")
_DOT_OR_SLASH: Final = frozenset(b"./")
_NANO: Final = 1_000_000_000
_FIELDS: Final = Struct("<100s8s8s8s12s12s8sc100s8s")
_GNU_TIMES: Final = Struct("<345x12s12s")
_DEVICE: Final = Struct("<329x8s8s")


class Header(NamedTuple):
    """What a header block says, names as written.

    Attributes:
        name: path, with a POSIX prefix put before it.
        mode: permission bits, and in old tars the file type's.
        uid: numeric owner, may be negative.
        gid: numeric group, may be negative.
        size: bytes of the body, may be negative.
        mtime_ns: nanoseconds since 1970.
        typeflag: one byte.
        link: link target.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    typeflag: bytes
    link: bytes


_make_header: Final = partial(tuple.__new__, Header)  # half the cost of Header(...)


def read_header(block: bytes, offset: int) -> Header:
    """The fields of a header block of 512 bytes that stands at `offset` of the stream.

    Raises:
        FormatError: the checksum is wrong, or a number is none.
    """
    name, mode, uid, gid, size, mtime, checksum, typeflag, link, magic = _FIELDS.unpack_from(block)
    _check_sum(block, checksum, offset)
    name = name.partition(b"\0")[0]
    if block[345] and (prefix := _prefix(block, magic)):
        name = prefix + b"/" + name
    return _make_header(
        (
            name,
            read_number(mode, "mode", offset),
            read_number(uid, "uid", offset),
            read_number(gid, "gid", offset),
            read_number(size, "size", offset),
            read_number(mtime, "mtime", offset) * _NANO,
            typeflag,
            link.partition(b"\0")[0],
        )
    )


def read_size(block: bytes, offset: int) -> int:
    """The size alone, of a header that says nothing else.

    Raises:
        FormatError: the checksum is wrong, or the size is no number.
    """
    _check_sum(block, block[148:156], offset)
    return read_number(block[124:136], "size", offset)


def _check_sum(block: bytes, field: bytes, offset: int) -> None:
    """The sum of the block's bytes, those of its own field taken as spaces; signed bytes are accepted too.

    The low half of an Adler-32 begun at 0 is the sum of the bytes modulo 65521, so of up to 256 bytes it is
    their very sum: 20 times faster than `sum`.
    """
    total = (adler32(block[:256], 0) & 0xFFFF) + (adler32(block[256:], 0) & 0xFFFF)
    unsigned = total - (adler32(field, 0) & 0xFFFF) + 8 * 0x20
    stored = read_number(field, "checksum", offset)
    if stored != unsigned:
        negative = sum(byte >> 7 for byte in block) - sum(byte >> 7 for byte in field)
        if stored != unsigned - 256 * negative:
            raise FormatError(f"tar header: expected checksum {unsigned}, got {stored}", offset)


def _prefix(block: bytes, magic: bytes) -> bytes:
    """The front of a long path, which POSIX headers hold and GNU headers should not."""
    if magic[:6] == _POSIX_MAGIC:
        # star keeps times behind a shorter prefix: star(5), "The star tar format".
        end = 476 if block[508:512] == b"tar\0" else 500
        return block[345:end].partition(b"\0")[0]
    if magic != GNU_MAGIC:
        return b""
    # GNU has atime and ctime here. Go before 1.8, which wrote many image layers, put a prefix in their
    # place; Go's reader takes it for one where the two are no numbers, and so do we.
    try:
        for field in _GNU_TIMES.unpack_from(block):
            if field[0]:
                read_number(field, "time", 0)
    except FormatError:
        prefix = block[345:500].partition(b"\0")[0]
        return prefix if prefix.isascii() else b""
    return b""


def read_number(field: bytes, what: str, offset: int) -> int:
    """A numeric field: octal digits between spaces and NULs (none mean 0), or base-256.

    Raises:
        FormatError: it is neither, or does not fit 64 bits.
    """
    digits = field.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass  # an 8 or a 9
    if field[0] & 0x80:
        return _base256(field, what, offset)
    digits = digits.partition(b"\0")[0].rstrip()
    if not digits:
        return 0
    if digits.isdigit() and not digits.strip(b"01234567"):
        return int(digits, 8)
    raise FormatError(f"tar header: {what} is not a number: {field!r}", offset)


def _base256(field: bytes, what: str, offset: int) -> int:
    """Two's complement, big-endian, in all bits but the first, the mark: GNU tar manual, "Extensions"."""
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    if value >> (bits - 1):
        value -= 1 << bits
    if not -(1 << 63) <= value < 1 << 63:
        raise FormatError(f"tar header: {what} does not fit 64 bits", offset)
    return value


def read_device(block: bytes, offset: int) -> tuple[int, int]:
    """The (major, minor) of a device's header block; a v7 header has none, which is (0, 0).

    Raises:
        FormatError: they are no numbers, or none Linux has (12 and 20 bits).
    """
    if block[257:263] != _POSIX_MAGIC and block[257:265] != GNU_MAGIC:
        return 0, 0
    raw_major, raw_minor = _DEVICE.unpack_from(block)
    major, minor = read_number(raw_major, "devmajor", offset), read_number(raw_minor, "devminor", offset)
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise FormatError(f"tar header: no device has number {major}:{minor}", offset)
    return major, minor


def clean_path(raw: bytes, offset: int | None = None) -> bytes:
    """A path from the layer's root: without empty and "." components; b"" is the root itself.

    Raises:
        FormatError: it has a ".." component, a NUL, or a component above MAX_NAME.
        LimitExceeded: it is longer than MAX_PATH.
    """
    path = raw[2:] if raw.startswith(b"./") else raw
    if path.endswith(b"/"):
        path = path[:-1]
    # Most are clean now. (`find`, because `in` costs three times as much.)
    plain = path and path[0] not in _DOT_OR_SLASH and path[-1] != _SLASH and len(path) <= MAX_NAME
    if plain and path.find(b"//") < 0 and path.find(b"/.") < 0 and 0 not in path:
        return path
    components = [part for part in path.split(b"/") if part not in (b"", b".")]
    path = b"/".join(components)
    if b".." in components:
        raise FormatError(f'tar: a path has ".." in it: {raw[:200]!r}', offset)
    if b"\0" in path:
        raise FormatError(f"tar: a path has a NUL in it: {raw[:200]!r}", offset)
    if len(path) > MAX_PATH:
        raise LimitExceeded(f"tar: a path of {len(path)} bytes; at most {MAX_PATH} are read", offset)
    if components and max(map(len, components)) > MAX_NAME:
        raise FormatError(f"tar: a name has more than {MAX_NAME} bytes: {path[:200]!r}", offset)
    return path
