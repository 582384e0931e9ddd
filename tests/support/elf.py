"""Programs and libraries with nothing in them but what they need, of either class and byte order."""

import struct
from collections.abc import Sequence

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NULL, _NEEDED, _STRTAB, _RPATH, _RUNPATH = 0, 1, 5, 15, 29


def elf(
    needed: Sequence[bytes] = (),
    *,
    interpreter: bytes = b"",
    runpath: bytes = b"",
    rpath: bytes = b"",
    bits: int = 64,
    order: str = "<",
    padding: bytes = b"",
    base: int = 0x400000,
) -> bytes:
    """An ELF file (System V gABI, chapters 4 and 5), loaded at `base`; `padding` stands before the end.

    The strings stand at the front, the dynamic section at the end, as linkers put them.
    """
    strings = b"\0" + b"".join(name + b"\0" for name in (*needed, runpath, rpath))
    places = []
    at = 1
    for name in (*needed, runpath, rpath):
        places.append(at)
        at += len(name) + 1
    header_size, segment_size, entry = (64, 56, "qQ") if bits == 64 else (52, 32, "iI")
    front = header_size + 3 * segment_size
    strings_at = front + len(interpreter) + 1
    dynamic_at = strings_at + len(strings) + len(padding)
    entries = [(_NEEDED, place) for place in places[:-2]]
    entries += [(_RUNPATH, places[-2])] if runpath else []
    entries += [(_RPATH, places[-1])] if rpath else []
    entries += [(_STRTAB, base + strings_at), (_NULL, 0), (_NEEDED, 1 << 20)]  # after the end, nothing counts
    dynamic = b"".join(struct.pack(order + entry, *pair) for pair in entries)
    end = dynamic_at + len(dynamic)
    segments = [(_LOAD, 0, end), (_DYNAMIC, dynamic_at, len(dynamic))]
    segments.append((_INTERP if interpreter else 0, front, len(interpreter) + 1))
    table = b"".join(_segment(bits, order, base, *segment) for segment in segments)
    ident = b"\x7fELF" + bytes([bits // 32, "<>".index(order) + 1, 1]) + bytes(9)
    word = "Q" if bits == 64 else "I"
    rest = struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        *(3, 0, 1, 0, header_size, 0, 0, header_size, segment_size, 3, 0, 0, 0),
    )
    return ident + rest + table + interpreter + b"\0" + strings + padding + dynamic


def _segment(bits: int, order: str, base: int, kind: int, offset: int, length: int) -> bytes:
    address = base + offset
    if bits == 64:
        return struct.pack(order + "IIQQQQQQ", kind, 5, offset, address, address, length, length, 4096)
    return struct.pack(order + "8I", kind, offset, address, address, length, length, 5, 4096)
