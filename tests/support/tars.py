"""Tars in one line each, written at byte level so that odd and broken ones are as easy as good ones.

Every builder gives the bytes of whole blocks: a header with its body, and before it a PAX header where the
plain one cannot say it. `tar` joins them and adds the end marker; leave it out, or cut, to get a broken tar.

    tar(directory(b"d"), file(b"d/a", b"data", mode=0o755), hardlink(b"b", b"d/a"), whiteout(b"old"))
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypedDict, Unpack

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
USTAR: Final = b"ustar\x0000"
GNU: Final = b"ustar  \x00"
V7: Final = bytes(8)

# Offset and width of each field of a header: POSIX.1-2017 pax, "ustar Interchange Format".
FIELDS: Final = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "typeflag": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "major": (329, 8),
    "minor": (337, 8),
    "prefix": (345, 155),
}


class Attributes(TypedDict, total=False):
    """What any member may have.

    `mtime` is whole seconds, or the text of a PAX decimal ("-1.5"). `pax` are further records, last ones.
    """

    mode: int
    uid: int
    gid: int
    mtime: int | str
    xattrs: Mapping[bytes, bytes]
    pax: Mapping[bytes, bytes]


def padded(data: bytes) -> bytes:
    """`data` with zeros up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def tar(*entries: bytes) -> bytes:
    """The entries and the end marker."""
    return b"".join(entries) + END


def number(value: int, width: int) -> bytes:
    """A numeric field: octal with a NUL where it fits, else base-256."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\x00" % (width - 1, value)
    return base256(value, width)


def base256(value: int, width: int) -> bytes:
    """A numeric field in two's complement, with the first bit set as the mark."""
    field = bytearray((value % (1 << (8 * width - 1))).to_bytes(width, "big"))
    field[0] |= 0x80
    return bytes(field)


def raw_header(name: bytes, *, sign: bool = True, **fields: int | bytes) -> bytes:
    """One header block with these FIELDS; bytes go in as they are (cut to the field), ints as numbers.

    The checksum is right unless it is given, or `sign` is False (the field is spaces then).
    """
    values: dict[str, int | bytes] = {
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": 0,
        "mtime": 0,
        "typeflag": b"0",
        "magic": USTAR,
        "checksum": b" " * 8,
    }
    block = bytearray(BLOCK)
    for field, value in (values | {"name": name} | fields).items():
        offset, width = FIELDS[field]
        raw = number(value, width) if isinstance(value, int) else value[:width].ljust(width, b"\x00")
        block[offset : offset + width] = raw
    return signed(block) if sign and "checksum" not in fields else bytes(block)


def signed(header: bytes | bytearray) -> bytes:
    """The header block with the checksum it should have."""
    total = sum(header[:148]) + sum(header[156:BLOCK]) + 8 * ord(" ")
    return bytes(header[:148]) + b"%06o\x00 " % total + bytes(header[156:])


def patched(header: bytes, offset: int, data: bytes, *, sign: bool = True) -> bytes:
    """The blocks with `data` put in at `offset` of the first, and its checksum made right again."""
    changed = header[:offset] + data + header[offset + len(data) :]
    return signed(changed[:BLOCK]) + changed[BLOCK:] if sign else changed


def pax_record(key: bytes, value: bytes) -> bytes:
    """One record, "LENGTH KEY=VALUE\\n", whose length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]], typeflag: bytes = b"x") -> bytes:
    """A PAX header: of the next member, or of all that follow with typeflag `g`."""
    pairs = records.items() if isinstance(records, Mapping) else records
    return pax_raw(b"".join(pax_record(key, value) for key, value in pairs), typeflag)


def pax_raw(body: bytes, typeflag: bytes = b"x") -> bytes:
    """A PAX header with this body, right or wrong."""
    return raw_header(b"PaxHeaders.0/x", typeflag=typeflag, size=len(body)) + padded(body)


def gnu_long(value: bytes, typeflag: bytes = b"L") -> bytes:
    """A GNU long name (`L`) or long link target (`K`) for the next member."""
    body = value + b"\x00"
    return raw_header(b"././@LongLink", typeflag=typeflag, size=len(body), magic=GNU) + padded(body)


def member(
    path: bytes,
    typeflag: bytes,
    data: bytes = b"",
    *,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    **attributes: Unpack[Attributes],
) -> bytes:
    """A member of any type, in POSIX format; what does not fit its header stands in a PAX header before."""
    records: dict[bytes, bytes] = {}
    owner = {"uid": attributes.get("uid", 0), "gid": attributes.get("gid", 0)}
    mtime = attributes.get("mtime", 0)
    if len(path) > FIELDS["name"][1]:
        records[b"path"] = path
    if len(link) > FIELDS["link"][1]:
        records[b"linkpath"] = link
    if isinstance(mtime, str) or mtime < 0:
        records[b"mtime"] = str(mtime).encode()
        mtime = 0
    for key, number_ in owner.items():
        if not 0 <= number_ < 8**7:
            records[key.encode()] = b"%d" % number_
            owner[key] = 0
    for name, value in attributes.get("xattrs", {}).items():
        records[b"SCHILY.xattr." + name] = value
    records.update(attributes.get("pax", {}))
    header = raw_header(
        path,
        typeflag=typeflag,
        mode=attributes.get("mode", 0o644),
        uid=owner["uid"],
        gid=owner["gid"],
        size=len(data),
        mtime=mtime,
        link=link,
        major=device[0],
        minor=device[1],
    )
    return (pax(records) if records else b"") + header + padded(data)


def file(path: bytes, data: bytes = b"", **attributes: Unpack[Attributes]) -> bytes:
    """A regular file."""
    return member(path, b"0", data, **attributes)


def directory(path: bytes, **attributes: Unpack[Attributes]) -> bytes:
    """A directory, of mode 0755 unless said; its name ends in "/", as writers do it."""
    attributes.setdefault("mode", 0o755)
    return member(path.rstrip(b"/") + b"/", b"5", **attributes)


def symlink(path: bytes, target: bytes, **attributes: Unpack[Attributes]) -> bytes:
    """A symlink, of mode 0777 unless said."""
    attributes.setdefault("mode", 0o777)
    return member(path, b"2", link=target, **attributes)


def hardlink(path: bytes, target: bytes, **attributes: Unpack[Attributes]) -> bytes:
    """A hard link to the member at path `target`."""
    return member(path, b"1", link=target, **attributes)


def fifo(path: bytes, **attributes: Unpack[Attributes]) -> bytes:
    """A FIFO."""
    return member(path, b"6", **attributes)


def char(path: bytes, major: int, minor: int, **attributes: Unpack[Attributes]) -> bytes:
    """A character device."""
    return member(path, b"3", device=(major, minor), **attributes)


def block(path: bytes, major: int, minor: int, **attributes: Unpack[Attributes]) -> bytes:
    """A block device."""
    return member(path, b"4", device=(major, minor), **attributes)


def whiteout(path: bytes, **attributes: Unpack[Attributes]) -> bytes:
    """The whiteout that hides lower layers' `path`: an empty file ".wh.NAME" beside it."""
    parent, slash, name = path.rpartition(b"/")
    return file(parent + slash + b".wh." + name, **attributes)


def opaque(path: bytes, **attributes: Unpack[Attributes]) -> bytes:
    """The marker that hides all lower children of directory `path` (b"" is the root)."""
    return file((path + b"/" if path else b"") + b".wh..wh..opq", **attributes)


Pieces = Sequence[tuple[int, bytes]]


def gnu_sparse(path: bytes, size: int, pieces: Pieces, *, stored: int | None = None) -> bytes:
    """An old GNU sparse file of `size` bytes: `pieces` are (offset, data). `stored` lies about the body."""
    data = b"".join(piece for _, piece in pieces)
    cells = [number(offset, 12) + number(len(piece), 12) for offset, piece in pieces]
    head = raw_header(path, typeflag=b"S", magic=GNU, size=len(data) if stored is None else stored)
    blocks = [
        patched(
            head, 386, b"".join(cells[:4]).ljust(96, b"\x00") + bytes([len(cells) > 4]) + number(size, 12)
        )
    ]
    for start in range(4, len(cells), 21):
        more = bytes([start + 21 < len(cells)])
        blocks.append(padded(b"".join(cells[start : start + 21]).ljust(504, b"\x00") + more))
    return b"".join(blocks) + padded(data)


def pax_sparse(path: bytes, size: int, pieces: Pieces, version: str = "1.0") -> bytes:
    """A PAX sparse file of `size` bytes in format version 0.0, 0.1 or 1.0: `pieces` are (offset, data)."""
    data = b"".join(piece for _, piece in pieces)
    numbers = [value for offset, piece in pieces for value in (offset, len(piece))]
    records: list[tuple[bytes, bytes]] = []
    if version == "1.0":
        records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", path)]
        records.append((b"GNU.sparse.realsize", b"%d" % size))
        lines = "".join(f"{value}\n" for value in (len(pieces), *numbers))
        data = padded(lines.encode()) + data
    else:
        records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pieces))]
        if version == "0.1":
            records += [(b"GNU.sparse.name", path), (b"GNU.sparse.map", ",".join(map(str, numbers)).encode())]
        else:
            keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            records += [(keys[i % 2], b"%d" % value) for i, value in enumerate(numbers)]
    stored_name = path if version == "0.0" else b"GNUSparseFile.0/sparse"
    return pax(records) + file(stored_name, data)
