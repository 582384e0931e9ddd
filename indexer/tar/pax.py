"""The body of a PAX extended header: its records, and the values that stand in them.

Format: POSIX.1-2017, pax, "pax Extended Header". Keys and values stay bytes: many writers put other things
than UTF-8 there, xattrs above all.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from indexer.errors import FormatError, LimitExceeded

Records = Mapping[bytes, bytes]

MAX_XATTRS: Final = 1024
"""The most xattrs of one member."""

MAX_XATTR_NAME: Final = 255
"""Bytes of the longest xattr name (XATTR_NAME_MAX)."""

MAX_XATTR_VALUE: Final = 1 << 16
"""Bytes of the longest xattr value (XATTR_SIZE_MAX)."""

MAX_XATTRS_SIZE: Final = 1 << 17
"""Bytes of all names and values of one member."""

_MAX_DIGITS: Final = 19  # of an int64
_NANO: Final = 1_000_000_000
_TIME: Final = re.compile(rb"([+-]?)([0-9]{1,19})(?:\.([0-9]*))?")
_SCHILY: Final = b"SCHILY.xattr."
_LIBARCHIVE: Final = b"LIBARCHIVE.xattr."
_SPARSE_MAP: Final = b"GNU.sparse.map"
_SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_NAMES: Final = frozenset((b"path", b"linkpath"))


def parse_records(body: bytes, offset: int) -> dict[bytes, bytes]:
    r"""The records of a PAX body, the last of each key.

    The offset and numbytes pairs of GNU sparse format 0.0, the one case where keys repeat with a meaning,
    are joined to the GNU.sparse.map of format 0.1.

    Raises:
        FormatError: these are not records of the form "LENGTH KEY=VALUE\n".
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    start = 0
    while start < len(body):
        space = body.find(b" ", start, start + _MAX_DIGITS + 1)
        digits = body[start : max(space, start)]
        end = start + int(digits) if digits.isdigit() else 0
        if not space < end - 1 < len(body) or body[end - 1] != 0x0A:
            raise FormatError("PAX header: a record's length is wrong", offset + start)
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not (key and equals) or b"\0" in key or (key in _NAMES and b"\0" in value):
            raise FormatError(f"PAX header: no such record can be: {key[:100]!r}", offset + start)
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(pairs) % 2] or b"," in value:
                raise FormatError("PAX header: a sparse map out of order", offset + start)
            pairs.append(value)
        else:
            records[key] = value
        start = end
    if pairs:
        records[_SPARSE_MAP] = b",".join(pairs)
    return records


def parse_decimal(text: bytes, what: str, offset: int) -> int:
    """A number of 0 or more that fits 63 bits, in decimal digits.

    Raises:
        FormatError: this is none.
    """
    value = int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else -1
    if not 0 <= value < 1 << 63:
        raise FormatError(f"PAX header: {what} is not a number: {text[:40]!r}", offset)
    return value


def record_number(records: Records, key: bytes, otherwise: int, offset: int) -> int:
    """The decimal under `key`, or `otherwise` where there is none (an empty value deletes).

    Raises:
        FormatError: the value is no number.
    """
    text = records.get(key)
    return parse_decimal(text, key.decode(), offset) if text else otherwise


def record_time_ns(records: Records, key: bytes, otherwise: int, offset: int) -> int:
    """The decimal time under `key` in nanoseconds, digits past the ninth dropped; or `otherwise`.

    Raises:
        FormatError: the value is no time, or its seconds do not fit 64 bits.
    """
    text = records.get(key)
    if not text:
        return otherwise
    match = _TIME.fullmatch(text)
    if not match:
        raise FormatError(f"PAX header: {key.decode()} is not a time: {text[:40]!r}", offset)
    sign, seconds, fraction = match.groups(b"")
    time_ns = int(seconds) * _NANO + int(fraction[:9].ljust(9, b"0"))
    if sign == b"-":
        time_ns = -time_ns
    if not -(1 << 63) <= time_ns // _NANO < 1 << 63:
        raise FormatError(f"PAX header: {key.decode()} does not fit 64 bits", offset)
    return time_ns


def read_xattrs(records: Records, offset: int) -> tuple[tuple[bytes, bytes], ...]:
    """The xattrs among the records, sorted: SCHILY.xattr.NAME holds a value as it is.

    LIBARCHIVE.xattr.NAME, read where the other does not give that name, has the name percent-encoded and
    the value in base64 (libarchive, archive_write_set_format_pax.c).

    Raises:
        FormatError: a name is empty or has a NUL, or a value is not base64.
        LimitExceeded: too many, or too large.
    """
    keys = [key for key in records if key.startswith((_SCHILY, _LIBARCHIVE)) and records[key]]
    if not keys:
        return ()
    found = {key.removeprefix(_SCHILY): records[key] for key in keys if key.startswith(_SCHILY)}
    for key in keys:
        name = unquote_to_bytes(key.removeprefix(_LIBARCHIVE)) if key.startswith(_LIBARCHIVE) else b""
        if name and name not in found:
            found[name] = _base64(records[key], offset)
    check_xattrs(found, offset)
    return tuple(sorted(found.items()))


def _base64(text: bytes, offset: int) -> bytes:
    """The value of base64 whose padding libarchive leaves out."""
    text = text.rstrip(b"=")
    try:
        return a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except Base64Error as error:
        raise FormatError(f"PAX header: an xattr is not base64: {error}", offset) from error


def check_xattrs(xattrs: Records, offset: int | None = None) -> None:
    """The xattrs of one member, at least one, can be those of a file.

    Raises:
        FormatError: a name is empty or has a NUL.
        LimitExceeded: too many, or too large.
    """
    if any(not name or b"\0" in name for name in xattrs):
        raise FormatError("an xattr without a proper name", offset)
    longest = max(map(len, xattrs))
    largest = max(map(len, xattrs.values()))
    total = sum(len(name) + len(value) for name, value in xattrs.items())
    bounds = (
        ("xattrs", len(xattrs), MAX_XATTRS),
        ("bytes of an xattr's name", longest, MAX_XATTR_NAME),
        ("bytes of an xattr", largest, MAX_XATTR_VALUE),
        ("bytes of xattrs", total, MAX_XATTRS_SIZE),
    )
    for what, value, limit in bounds:
        if value > limit:
            raise LimitExceeded(f"{value} {what} on one member; at most {limit} are read", offset)
