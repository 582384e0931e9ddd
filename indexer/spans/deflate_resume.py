"""Inflate from any bit of a deflate stream, without inflatePrime.

The checkpoint's first `bits` bits are the top bits of a byte whose lower bits belong to the block before. A
prefix of empty, non-final blocks, `8 - bits` bits long modulo 8, brings the stream to that bit: its last,
unfinished byte takes the top bits of the checkpoint's first byte (RFC 1951 section 3.2 on block bits). Moving
the whole stream by some bits instead would be wrong: stored blocks realign to bytes.
"""

import re
from contextlib import suppress
from typing import Final

from isal.igzip_lib import DECOMP_DEFLATE, DECOMP_GZIP, IgzipDecompressor, IsalError

from indexer.errors import FormatError

_TRAILER_SIZE: Final = 8
_LEAST_STEP: Final = 4096
_ZEROS: Final = re.compile(rb"\0*")


def _bits(value: int, count: int) -> list[int]:
    return [value >> i & 1 for i in range(count)]


def _code(code: int, count: int) -> list[int]:
    """A Huffman code: most significant bit first (RFC 1951 section 3.1.1)."""
    return [code >> i & 1 for i in range(count - 1, -1, -1)]


def _empty_fixed_block() -> list[int]:
    return [*_bits(0, 1), *_bits(1, 2), *_code(0, 7)]


def _empty_dynamic_block() -> list[int]:
    """An empty block with tables of its own, 93 bits: with it odd lengths can be reached."""
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    code_lengths = {18: 1, 0: 2, 1: 2}
    head = [*_bits(0, 1), *_bits(2, 2), *_bits(0, 5), *_bits(0, 5), *_bits(15, 4)]
    lengths = [bit for symbol in order for bit in _bits(code_lengths.get(symbol, 0), 3)]
    # 256 unused literals as two runs of zeros (138 + 118), then end-of-block of length 1, then no distance.
    runs = [*_code(0b0, 1), *_bits(138 - 11, 7), *_code(0b0, 1), *_bits(118 - 11, 7)]
    return [*head, *lengths, *runs, *_code(0b11, 2), *_code(0b10, 2), *_code(0, 1)]


def _prefixes() -> tuple[tuple[int, int], ...]:
    """For each number of borrowed bits 0-7: the prefix as (value, length in bits)."""
    found: dict[int, list[int]] = {}
    for fixed in range(4):
        for dynamic in (0, 1):
            block = _empty_dynamic_block() * dynamic + _empty_fixed_block() * fixed
            found.setdefault(len(block) % 8, block)
    by_bits = [found[(8 - bits) % 8] for bits in range(8)]
    return tuple((sum(bit << i for i, bit in enumerate(block)), len(block)) for block in by_bits)


_PREFIXES: Final = _prefixes()


def lead_in(first: int, bits: int) -> bytes:
    """The beginning of a stream that starts within a byte: empty blocks, then what of the byte belongs to it.

    Args:
        first: the checkpoint's first byte.
        bits: how many of its top bits belong to the stream, 1 to 7.
    """
    value, length = _PREFIXES[bits]
    value |= (first >> (8 - bits)) << length
    return value.to_bytes((length + bits) // 8, "little")


def resume_members(data: bytes | memoryview, bits: int, window: bytes, size: int) -> bytes:
    """Exactly `size` bytes from a checkpoint inside a deflate stream, going on into later gzip members.

    Raises:
        FormatError: damaged, or too short.
    """
    inflater = IgzipDecompressor(DECOMP_DEFLATE, zdict=window)
    rest = memoryview(data)
    if bits:
        try:
            inflater.decompress(lead_in(data[0], bits), 1)  # too short for a byte of output
        except IsalError as error:  # of a kind of block that there is not
            raise FormatError(f"deflate: {error}") from error
        rest = rest[1:]
    head, end = _inflate(inflater, rest, size)
    if len(head) == size:
        return head
    return head + read_members(rest[end + _TRAILER_SIZE :], size - len(head))


def read_members(data: bytes | memoryview, size: int) -> bytes:
    """Exactly `size` bytes from gzip members that begin at the start of `data`.

    Raises:
        FormatError: damaged, or too short.
    """
    pieces = []
    rest = memoryview(data)
    step = len(rest)
    while size:
        padding = _ZEROS.match(rest)
        assert padding is not None
        rest = rest[padding.end() :]
        if not rest:
            raise FormatError(f"gzip ends {size} bytes before the span does")
        piece, end = _inflate_member(rest, size, step)
        pieces.append(piece)
        size -= len(piece)
        rest, step = rest[end:], max(2 * end, _LEAST_STEP)  # the next one may be of the same size
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _inflate_member(data: memoryview, size: int, step: int) -> tuple[bytes, int]:
    """As `_inflate` says, of a member that `data` begins with.

    What is handed over beyond a stream's end gets copied, and members may be a few bytes long: so it is tried
    with `step` bytes, then with more, and always from the start, as igzip does not read all headers in parts.
    """
    while step < len(data):
        with suppress(FormatError):  # what is cut off looks like damage
            return _inflate(IgzipDecompressor(DECOMP_GZIP), data[:step], size)
        step *= 4
    return _inflate(IgzipDecompressor(DECOMP_GZIP), data, size)


def _inflate(inflater: IgzipDecompressor, data: memoryview, size: int) -> tuple[bytes, int]:
    """Up to `size` bytes, fewer only where the stream ends, and how many bytes of `data` they took then."""
    pieces = []
    left, rest = size, data
    try:
        while left and not inflater.eof:
            pieces.append(inflater.decompress(rest, left))
            left -= len(pieces[-1])
            rest = data[:0]  # it keeps what it has not used
            if left and inflater.needs_input:
                raise FormatError(f"deflate ends {left} bytes before the span does")
    except IsalError as error:
        raise FormatError(f"deflate: {error}") from error
    used = len(data) - len(inflater.unused_data) if inflater.eof else len(data)
    return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), used
