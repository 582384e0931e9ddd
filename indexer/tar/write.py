"""Writes the headers of a tar: ustar blocks, with a PAX header before those that cannot say it.

Format: POSIX.1-2017, pax, "pax Interchange Format". Names and values are bytes and go in as they are, as GNU
tar does it; no hdrcharset record is written, which several readers warn of.
"""

from typing import Final, NamedTuple

from indexer.toc import BLOCK_SIZE, Kind, Member

END: Final = bytes(2 * BLOCK_SIZE)
"""What follows the last member."""

RECORD_SIZE: Final = 20 * BLOCK_SIZE
"""What tar(1) reads and writes at once; a tar is filled up to a whole number of them."""

_NANO: Final = 1_000_000_000
_NAME_SIZE: Final = 100
_PAX_NAME: Final = b"././@PaxHeader"
_TYPES: Final = {
    Kind.REGULAR: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}


class _Field(NamedTuple):
    """A number in the header: its digits, and the PAX record for what does not fit them."""

    digits: int
    record: bytes


_MODE: Final = _Field(7, b"")
_OWNER: Final = (_Field(7, b"uid"), _Field(7, b"gid"))
_SIZE: Final = _Field(11, b"size")
_DEVICE: Final = (_Field(7, b"SCHILY.devmajor"), _Field(7, b"SCHILY.devminor"))


def header(member: Member) -> bytes:
    """The blocks before a member's content; `data_start` does not count.

    A directory's name gets the "/" that tar(1) gives it. An xattr's name with "=" in it, where a record's key
    would end, has that as %3D, which GNU tar writes and reads.
    """
    records: dict[bytes, bytes] = {}
    name = member.path or b"."
    if member.kind is Kind.DIRECTORY:
        name += b"/"
    fields = [
        _text(name, b"path", records),
        _number(member.mode, _MODE, records),
        *(
            _number(owner, field, records)
            for owner, field in zip((member.uid, member.gid), _OWNER, strict=True)
        ),
        _number(member.size, _SIZE, records),
        _time(member.mtime_ns, records),
        b" " * 8,
        _TYPES[member.kind],
        _text(member.link, b"linkpath", records),
        b"ustar\x0000",
        bytes(64),
        *(_number(number, field, records) for number, field in zip(member.device, _DEVICE, strict=True)),
    ]
    for key, value in member.xattrs:
        records[b"SCHILY.xattr." + key.replace(b"=", b"%3D")] = value
    block = _signed(b"".join(fields))
    if not records:
        return block
    body = b"".join(_record(key, value) for key, value in records.items())
    return _pax_header(len(body)) + body + bytes(-len(body) % BLOCK_SIZE) + block


def _text(value: bytes, key: bytes, records: dict[bytes, bytes]) -> bytes:
    """A field of 100 bytes; what is longer or not ASCII stands in a record."""
    if len(value) > _NAME_SIZE or not value.isascii():
        records[key] = value
        value = bytes(byte if byte < 0x80 else 0x3F for byte in value[:_NAME_SIZE])
    return value.ljust(_NAME_SIZE, b"\0")


def _number(value: int, field: _Field, records: dict[bytes, bytes]) -> bytes:
    """Octal digits and a NUL; what does not fit stands in a record."""
    if not 0 <= value < 8**field.digits:
        records[field.record] = b"%d" % value
        value = 0
    return b"%0*o\0" % (field.digits, value)


def _time(time_ns: int, records: dict[bytes, bytes]) -> bytes:
    """Seconds; what has nanoseconds or does not fit stands in a record, in decimal."""
    seconds, nanoseconds = divmod(time_ns, _NANO)
    if nanoseconds or not 0 <= seconds < 8**11:
        whole, part = divmod(abs(time_ns), _NANO)
        fraction = b".%09d" % part if part else b""
        records[b"mtime"] = (b"-" if time_ns < 0 else b"") + b"%d" % whole + fraction
    return b"%011o\0" % (seconds if 0 <= seconds < 8**11 else 0)


def _record(key: bytes, value: bytes) -> bytes:
    r"""One record, "LENGTH KEY=VALUE\n", whose length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _pax_header(size: int) -> bytes:
    """The header block of a PAX header with a body of so many bytes."""
    name = _PAX_NAME.ljust(_NAME_SIZE, b"\0")
    numbers = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    return _signed(name + numbers + b" " * 8 + b"x" + bytes(_NAME_SIZE) + b"ustar\x0000")


def _signed(fields: bytes) -> bytes:
    """A whole block, its checksum (at 148, spaces so far) filled in."""
    block = fields.ljust(BLOCK_SIZE, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
