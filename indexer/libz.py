"""zlib's inflate with stops at block ends, which Python's zlib module does not offer.

Only what a checkpoint needs is bound: inflate with Z_BLOCK and the counters beside it (zlib manual,
"inflate"). Reading from a checkpoint later needs none of this, see `gzip_spans`.
"""

import ctypes
from functools import cache
from typing import Final

from indexer.errors import FormatError, Unsupported

_GZIP_ONLY: Final = 31  # 15 bits of window, + 16: a gzip header and trailer are expected and checked
_Z_BLOCK: Final = 5
_Z_OK: Final = 0
_Z_STREAM_END: Final = 1
_Z_BUF_ERROR: Final = -5

_AT_BLOCK_END: Final = 128
_IN_LAST_BLOCK: Final = 64


class _ZStream(ctypes.Structure):
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


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libz.so.1")
    except OSError as error:
        raise Unsupported("indexing gzip needs libz.so.1 (Debian: zlib1g)") from error
    library.zlibVersion.restype = ctypes.c_char_p
    return library


class BlockInflater:
    """Inflates one gzip member after another, stopping at each deflate block's end.

    Output goes to `buffer` from `filled` on; the caller empties it by moving `filled` back.
    """

    def __init__(self, buffer_size: int) -> None:
        self._library = _library()
        self._stream = _ZStream()
        self._reference = ctypes.byref(self._stream)
        code = self._library.inflateInit2_(
            self._reference, _GZIP_ONLY, self._library.zlibVersion(), ctypes.sizeof(_ZStream)
        )
        if code != _Z_OK:
            raise MemoryError("zlib cannot be initialised")
        self._buffer = ctypes.create_string_buffer(buffer_size)
        self._address = ctypes.addressof(self._buffer)
        self.buffer: Final = memoryview(self._buffer).cast("B")
        self.filled = 0

    def inflate(self, data: bytes, position: int) -> tuple[int, bool]:
        """Inflate from `data[position:]` to a block end, the member's end, or until input or room ends.

        Returns:
            How many bytes were consumed, and whether the member ended (its checksum was right).

        Raises:
            FormatError: not gzip, or damaged. The offset counts from the start of `data`.
        """
        stream = self._stream
        source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        available = len(data) - position
        room = len(self.buffer) - self.filled
        stream.next_in = source + position
        stream.avail_in = available
        stream.next_out = self._address + self.filled
        stream.avail_out = room
        code = self._library.inflate(self._reference, _Z_BLOCK)
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
        return bool(self._stream.data_type & _AT_BLOCK_END) and not self._stream.data_type & _IN_LAST_BLOCK

    @property
    def unused_bits(self) -> int:
        """How many top bits of the last consumed byte belong to the next block."""
        return int(self._stream.data_type) & 7

    def next_member(self) -> None:
        """Make ready for the next member."""
        self._library.inflateReset(self._reference)

    def __del__(self) -> None:
        if hasattr(self, "_reference"):
            self._library.inflateEnd(self._reference)
