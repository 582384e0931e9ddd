"""zlib's inflate by its C interface: with stops at block ends, and entered at any bit.

Python's modules offer neither. The functions come from the zlib-ng that the package zlib-ng brings along,
which inflates twice as fast, else from the system's zlib; what they do, and the stream they share with
their caller, is the same up to the fields used here (zlib manual, "inflate"; zlib-ng.h). They run without
the GIL.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from indexer.errors import FormatError, Unsupported

WINDOW_SIZE: Final = 32 << 10
"""How far back a reference reaches (RFC 1951 section 2)."""

_GZIP_ONLY: Final = 31  # 15 bits of window, + 16: a gzip header and trailer are expected and checked
_RAW: Final = -15
_Z_NO_FLUSH: Final = 0
_Z_BLOCK: Final = 5
_Z_OK: Final = 0
_Z_STREAM_END: Final = 1
_Z_BUF_ERROR: Final = -5

_AT_BLOCK_END: Final = 128
_IN_LAST_BLOCK: Final = 64


class _Stream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


class _Library(NamedTuple):
    """The functions used here. The first argument is a stream's address, except for `init`."""

    init: Callable[[_Stream, int], int]
    inflate: Callable[[int, int], int]
    reset: Callable[[int], int]
    prime: Callable[[int, int, int], int]
    set_dictionary: Callable[[int, bytes, int], int]
    end: Callable[[int], int]


@cache
def _library() -> _Library:
    with suppress(ImportError, OSError, AttributeError):
        spec = find_spec("zlib_ng.zlib_ng")
        if spec is not None and spec.origin is not None:
            return _zlib_ng(ctypes.CDLL(spec.origin))
    try:
        return _zlib(ctypes.CDLL("libz.so.1"))
    except OSError as error:
        raise Unsupported("indexing gzip needs zlib-ng (PyPI) or libz.so.1 (Debian: zlib1g)") from error


def _zlib_ng(library: ctypes.CDLL) -> _Library:
    begin = library.zng_inflateInit2

    def init(stream: _Stream, bits: int) -> int:
        return int(begin(ctypes.byref(stream), bits))

    return _bind(library, "zng_", init)


def _zlib(library: ctypes.CDLL) -> _Library:
    begin, version = library.inflateInit2_, library.zlibVersion
    version.restype = ctypes.c_char_p

    def init(stream: _Stream, bits: int) -> int:
        return int(begin(ctypes.byref(stream), bits, version(), ctypes.sizeof(_Stream)))

    return _bind(library, "", init)


def _bind(library: ctypes.CDLL, prefix: str, init: Callable[[_Stream, int], int]) -> _Library:
    stream, number = ctypes.c_void_p, ctypes.c_int

    def function(name: str, *arguments: type[Any]) -> Callable[..., int]:
        bound = library[prefix + name]
        bound.argtypes = arguments
        return bound

    return _Library(
        init=init,
        inflate=function("inflate", stream, number),
        reset=function("inflateReset", stream),
        prime=function("inflatePrime", stream, number, number),
        set_dictionary=function("inflateSetDictionary", stream, ctypes.c_char_p, ctypes.c_uint),
        end=function("inflateEnd", stream),
    )


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class _Inflater:
    """A stream and the buffer it inflates into."""

    def __init__(self, buffer_size: int, window_bits: int) -> None:
        self._library = _library()
        self._stream = _Stream()
        self._at = ctypes.addressof(self._stream)
        if self._library.init(self._stream, window_bits) != _Z_OK:
            raise MemoryError("zlib cannot be initialised")
        self._buffer = ctypes.create_string_buffer(buffer_size)
        self._buffer_at = ctypes.addressof(self._buffer)
        self.buffer: Final = memoryview(self._buffer).cast("B")

    def __del__(self) -> None:
        if hasattr(self, "_at"):
            self._library.end(self._at)


class BlockInflater(_Inflater):
    """Inflates one gzip member after another, and can stop at a deflate block's end.

    Output goes to `buffer` from `filled` on; the caller empties it by moving `filled` back.
    """

    def __init__(self, buffer_size: int) -> None:
        super().__init__(buffer_size, _GZIP_ONLY)
        self.filled = 0

    def inflate(self, data: bytes, position: int, room: int, *, stop_at_block: bool) -> tuple[int, bool]:
        """Inflate from `data[position:]` until input, `room` bytes of output, or the member end.

        With no room left, blocks without output are passed, up to the next byte of output.

        Args:
            data: compressed bytes.
            position: where in them to go on.
            room: bytes of output at most; the buffer must have as many.
            stop_at_block: stop after this block, too.

        Returns:
            How many bytes were consumed, and whether the member ended (its checksum was right).

        Raises:
            FormatError: not gzip, or damaged. The offset counts from the start of `data`.
        """
        stream = self._stream
        available = len(data) - position
        stream.next_in = _address(data) + position
        stream.avail_in = available
        stream.next_out = self._buffer_at + self.filled
        stream.avail_out = room
        code = self._library.inflate(self._at, _Z_BLOCK if stop_at_block else _Z_NO_FLUSH)
        consumed = available - stream.avail_in
        self.filled += room - stream.avail_out
        if code == _Z_STREAM_END:
            return consumed, True
        if code not in (_Z_OK, _Z_BUF_ERROR):
            reason = (stream.msg or b"damaged").decode("ascii", "replace")
            raise FormatError(f"gzip: {reason}", position + consumed)
        return consumed, False

    @property
    def at_block_start(self) -> bool:
        """Whether the stream stands right before a block that may be entered."""
        return int(self._stream.data_type) & (_AT_BLOCK_END | _IN_LAST_BLOCK) == _AT_BLOCK_END

    @property
    def unused_bits(self) -> int:
        """How many top bits of the last consumed byte belong to the next block."""
        return int(self._stream.data_type) & 7

    def next_member(self) -> None:
        """Make ready for the next member."""
        self._library.reset(self._at)


class RawInflater(_Inflater):
    """Inflates from any bit of a deflate stream, with any window, as far as `buffer` has room."""

    def __init__(self, buffer_size: int) -> None:
        super().__init__(buffer_size, _RAW)

    def resume(self, data: bytes, bits: int, window: bytes) -> int:
        """Fill `buffer` from its start.

        Args:
            data: compressed bytes.
            bits: how many top bits of the first byte count; 0 for all.
            window: the output before, at most 32 KiB.

        Returns:
            How many bytes there were, up to the buffer's size.

        Raises:
            FormatError: this is not deflate, or refers to bytes before the window.
        """
        library, stream, shared = self._library, self._stream, 1 if bits else 0
        library.reset(self._at)
        if bits:
            library.prime(self._at, bits, data[0] >> (8 - bits))
        if window:
            library.set_dictionary(self._at, window, len(window))
        stream.next_in = _address(data) + shared
        stream.avail_in = len(data) - shared
        stream.next_out = self._buffer_at
        stream.avail_out = len(self.buffer)
        if library.inflate(self._at, _Z_NO_FLUSH) not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
            raise FormatError("deflate: damaged")
        return len(self.buffer) - int(stream.avail_out)
