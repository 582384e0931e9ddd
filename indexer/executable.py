"""What has to be loaded before a program runs: its interpreter and its libraries, as its file names them.

Sources: System V gABI, chapters 4 ("ELF Header") and 5 ("Program Header", "Dynamic Section"); execve(2),
"Interpreter scripts".

The parser asks for bytes and is sent them, so that it can look into files which are mostly not here:

    parser = needs_of(size)
    wanted = next(parser)
    while True:  # ends with StopIteration, whose value are the Needs
        wanted = parser.send(data[wanted.start : wanted.stop])
"""

import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from indexer.errors import FormatError

_HEAD: Final = 4096
_SCRIPT_LINE: Final = 256  # the kernel's BINPRM_BUF_SIZE
_MOST_SEGMENTS: Final = 256
_MOST_DYNAMIC: Final = 64 << 10
_MOST_LIBRARIES: Final = 256
_MOST_TEXT: Final = 4096

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29


class Needs(NamedTuple):
    """What a file names.

    Attributes:
        programs: what runs it: a path, and of `#!/usr/bin/env NAME` the name, too.
        libraries: names or, with a slash, paths of shared libraries.
        search: directories to look for these first; "$ORIGIN" is that of the file.
    """

    programs: tuple[bytes, ...] = ()
    libraries: tuple[bytes, ...] = ()
    search: tuple[bytes, ...] = ()


Parser = Generator[range, bytes, Needs]
"""Gives the place of the bytes that it wants next, which lies in the file, and is sent them."""

_Bytes = Generator[range, bytes, bytes]


def needs_of(size: int) -> Parser:
    """Parse a file of `size` bytes; what is neither a script nor ELF needs nothing.

    Raises:
        FormatError: it breaks the rules of ELF.
    """
    head = yield range(min(size, _HEAD))
    if head.startswith(b"#!"):
        return Needs(programs=_interpreter(head))
    if not head.startswith(b"\x7fELF"):
        return Needs()
    try:
        return (yield from _elf(head, size))
    except struct.error:
        raise FormatError("an ELF file that is cut short") from None


def _interpreter(head: bytes) -> tuple[bytes, ...]:
    words = head[2:_SCRIPT_LINE].split(b"\n", 1)[0].split()
    names = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
    through_env = words and words[0].endswith(b"/env")
    return (*words[:1], *(names[:1] if through_env else ()))


class _Shape(NamedTuple):
    """How numbers lie in a file of one class.

    Attributes:
        header_at: where e_phoff stands.
        header: format from there to e_phnum.
        segment: format of a program header.
        places: of p_type, p_offset, p_vaddr and p_filesz in it.
        entry: format of one of the dynamic section.
    """

    header_at: int
    header: str
    segment: str
    places: tuple[int, int, int, int]
    entry: str


_SHAPES: Final = {
    1: _Shape(28, "IIIHHH", "8I", (0, 1, 2, 4), "iI"),
    2: _Shape(32, "QQIHHH", "IIQQQQQQ", (0, 2, 3, 5), "qQ"),
}
_ORDERS: Final = {1: "<", 2: ">"}


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    length: int


def _elf(head: bytes, size: int) -> Parser:
    kind, byte_order = struct.unpack_from("BB", head, 4)
    shape, order = _SHAPES.get(kind), _ORDERS.get(byte_order)
    if shape is None or order is None:
        raise FormatError("an ELF file of an unknown class or byte order")
    at, _, _, _, each, count = struct.unpack_from(order + shape.header, head, shape.header_at)
    if each != struct.calcsize(order + shape.segment) or count > _MOST_SEGMENTS:
        raise FormatError(f"an ELF file with {count} program headers of {each} bytes")
    table = yield from _within(at, each * count, size)
    segments = [
        _Segment(*(numbers[place] for place in shape.places))
        for numbers in struct.iter_unpack(order + shape.segment, table)
    ]
    programs: tuple[bytes, ...] = ()
    entries: tuple[tuple[int, int], ...] = ()
    for segment in segments:
        if segment.kind == _PT_INTERP:
            path = yield from _within(segment.offset, min(segment.length, _MOST_TEXT), size)
            programs = (path.split(b"\0", 1)[0],)
        elif segment.kind == _PT_DYNAMIC:
            if segment.length > _MOST_DYNAMIC:
                raise FormatError(f"an ELF file with a dynamic section of {segment.length} bytes")
            section = yield from _within(segment.offset, segment.length, size)
            entries = tuple(_until_null(struct.iter_unpack(order + shape.entry, section)))
    libraries, search = yield from _names(entries, segments, size)
    return Needs(programs, libraries, search)


def _until_null(entries: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for tag, value in entries:
        if not tag:
            return
        yield tag, value


def _names(
    entries: Sequence[tuple[int, int]], segments: Sequence[_Segment], size: int
) -> Generator[range, bytes, tuple[tuple[bytes, ...], tuple[bytes, ...]]]:
    """Libraries, and directories for them, by the entries of a dynamic section."""
    values = dict(entries)
    needed = [value for tag, value in entries if tag == _DT_NEEDED]
    if len(needed) > _MOST_LIBRARIES:
        raise FormatError(f"an ELF file that needs {len(needed)} libraries")
    path = values.get(_DT_RUNPATH, values.get(_DT_RPATH))
    if not needed and path is None:
        return (), ()
    strings = _offset(values.get(_DT_STRTAB), segments)
    libraries = []
    for place in needed:
        libraries.append((yield from _text(strings + place, size)))  # noqa: PERF401  # yields in between
    search = () if path is None else (yield from _text(strings + path, size)).split(b":")
    return tuple(libraries), tuple(filter(None, search))


def _offset(address: int | None, segments: Sequence[_Segment]) -> int:
    """Where in the file the byte lies that is loaded at an address."""
    for segment in segments:
        if address is not None and segment.kind == _PT_LOAD:
            place = address - segment.address
            if 0 <= place < segment.length:
                return segment.offset + place
    raise FormatError("an ELF file whose strings are nowhere")


def _text(start: int, size: int) -> _Bytes:
    """The string at `start`."""
    if start >= size:
        raise FormatError("an ELF file with a string past its end")
    found = yield range(start, min(start + _MOST_TEXT, size))
    text, end, _ = found.partition(b"\0")
    if not end:
        raise FormatError("an ELF file with a string without end")
    return text


def _within(start: int, length: int, size: int) -> _Bytes:
    """The bytes at `start`, all of them."""
    if start + length > size:
        raise FormatError("an ELF file that is cut short")
    return (yield range(start, start + length)) if length else b""
