"""Parse a tar in given cuts, and read what a member holds through the tail."""

from collections.abc import Iterable
from itertools import pairwise

from indexer.tar.stream import TarParser
from indexer.toc import Member


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` cut at these offsets."""
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def parse(data: bytes, cuts: Iterable[int] = ()) -> TarParser:
    """A closed parser that was fed `data`, cut at these offsets."""
    parser = TarParser()
    for piece in pieces_of(data, cuts):
        parser.feed(piece)
    parser.close()
    return parser


def content(data: bytes, parser: TarParser, member: Member) -> bytes:
    """The member's bytes, from the stream `data` or by the extents of its tail."""
    start, end = member.data_start, member.data_start + member.size
    assert end <= parser.device_size
    if end <= len(data):
        return data[start:end]
    expanded = bytearray(member.size)
    for extent in parser.extents:
        if start <= extent.start < end:
            assert extent.start + extent.length <= end
            at = extent.start - start
            expanded[at : at + extent.length] = data[extent.tar_start : extent.tar_start + extent.length]
    return bytes(expanded)
