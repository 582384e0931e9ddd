"""docs/index-format.md is enough to read a head: this reader was written by that page alone."""

import gzip
import random
import struct
from hashlib import sha256
from typing import Any

import pytest
import zstandard
from blake3 import blake3

from indexer.toc import Toc
from indexer.toc_codec import encode_toc
from tests.support.layers import ENCODINGS, build
from tests.support.tars import char, directory, file, gnu_sparse, hardlink, symlink, tar

_RANDOM = random.Random(17)
TAR = tar(
    directory(b"d", mode=0o1777, mtime="-1.5"),
    *(file(b"d/f%d" % n, _RANDOM.randbytes(30_000) + b"text %d " % n * 5000) for n in range(8)),
    file(b"d/f7x", b"x", xattrs={b"user.a": b"1", b"user.b": b"\0"}, uid=4_000_000_000),
    symlink(b"link", b"../d"),
    hardlink(b"hard", b"d/f1"),
    char(b"null", 1, 3),
    gnu_sparse(b"sparse", 100_000, [(8192, b"x" * 4096), (50_000, b"y" * 100)]),
)


class Columns:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def bytes(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def column(self, n: int, *, signed: bool = False) -> list[int]:
        planes = self.bytes(8 * n)
        return [int.from_bytes(planes[i::n], "little", signed=signed) for i in range(n)]


def read_head(data: bytes) -> dict[str, Any]:
    magic, version, blob, diff_id, windows = struct.unpack_from("<7sB32s32s32s", data)
    layer_size, size, device_size, span_size, compression, space = struct.unpack_from("<QQQIBB2x", data, 104)
    counts = struct.unpack_from("<3Q", data, 136)
    lengths = struct.unpack_from("<6Q", data, 160)
    assert (magic, version) == (b"lazytoc", 3)
    assert sha256(data[:-32]).digest() == data[-32:]
    sections, at = [], 208
    for stored, raw in zip(lengths[::2], lengths[1::2], strict=True):
        sections.append(Columns(zstandard.decompress(data[at : at + stored])))
        assert len(sections[-1].data) == raw
        at += stored
    assert at == len(data) - 32
    head = {
        "header": (blob, diff_id, windows, layer_size, size, device_size, compression, space, span_size),
        "spans": read_spans(sections[0], counts[0]),
        "extents": list(zip(*(sections[1].column(counts[1]) for _ in range(3)), strict=True)),
        "members": read_members(sections[2], counts[2]),
    }
    assert all(section.at == len(section.data) for section in sections)
    return head


def read_spans(c: Columns, n: int) -> list[tuple[Any, ...]]:
    sizes, steps, lengths = c.column(n), c.column(n, signed=True), c.column(n)
    entries, bits = c.bytes(n), c.bytes(n)
    skips, windows, roots = c.column(n), c.column(n), c.bytes(32 * n)
    proofs, paddings = c.bytes(n), c.column(n)
    blake3s = [c.bytes(32) if proof == 0 else b"" for proof in proofs]
    spans, start, compressed, window = [], 0, 0, 0
    for i in range(n):
        compressed += steps[i]
        span = (start, start + sizes[i], compressed, compressed + lengths[i], entries[i], bits[i], skips[i])
        root = roots[32 * i : 32 * i + 32]
        spans.append((*span, window, window + windows[i], root, proofs[i], paddings[i], blake3s[i]))
        start, window = start + sizes[i], window + windows[i]
    return spans


def read_members(c: Columns, n: int) -> list[tuple[Any, ...]]:
    kinds = c.bytes(n)
    modes, uids, gids, sizes = (c.column(n) for _ in range(4))
    seconds, nanos, gaps = c.column(n, signed=True), c.column(n), c.column(n, signed=True)
    majors, minors, sets, shared, more = (c.column(n) for _ in range(5))
    text, paths, path = Columns(c.bytes(sum(more))), [], b""
    for i in range(n):
        path = path[: shared[i]] + text.bytes(more[i])
        paths.append(path)
    links = sum(kind in (2, 3) for kind in kinds)
    link_sizes = c.column(links)
    targets = iter([c.bytes(size) for size in link_sizes])
    (set_count,) = c.column(1)
    pairs = c.column(set_count)
    lengths = c.column(2 * sum(pairs))
    words = iter([c.bytes(length) for length in lengths])
    xattrs = [tuple((next(words), next(words)) for _ in range(count)) for count in pairs]
    members, end = [], 0
    for i in range(n):
        start = 0
        if sizes[i]:
            start = end + gaps[i]
            end = -(-(start + sizes[i]) // 512) * 512
        link = next(targets) if kinds[i] in (2, 3) else b""
        times = seconds[i] * 10**9 + nanos[i]
        facts = (paths[i], kinds[i], modes[i], uids[i], gids[i], times, sizes[i], start, link)
        members.append((*facts, (majors[i], minors[i]), xattrs[sets[i]]))
    return members


def expected(toc: Toc) -> dict[str, Any]:
    h = toc.header
    digests = [bytes.fromhex(digest[7:]) for digest in (h.layer_digest, h.diff_id, h.windows_digest)]
    sizes = (h.layer_size, h.uncompressed_size, h.device_size)
    return {
        "header": (*digests, *sizes, h.compression, h.address_space, h.span_size),
        "spans": [(*span[1:10], span.root, span.proof, span.padding, span.blake3) for span in toc.spans],
        "extents": [tuple(extent) for extent in toc.extents],
        "members": [tuple(member) for member in toc.members],
    }


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_page_tells_how_to_read_a_head(name: str) -> None:
    built = build(ENCODINGS[name](TAR))
    assert read_head(encode_toc(built.toc)) == expected(built.toc)


def test_the_page_tells_what_a_spans_digests_are() -> None:
    built = build(gzip.compress(TAR, mtime=0))
    for span in built.toc.spans:
        content = TAR[span.uncompressed_start : span.uncompressed_end]
        level = [sha256(content[at : at + 4096]).digest() for at in range(0, len(content), 4096)]
        while len(level) > 1:
            pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
            level = [sha256(b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
        assert level == [span.root]
        assert blake3(content).digest() == span.blake3


def test_the_page_tells_what_the_windows_file_is() -> None:
    built = build(gzip.compress(TAR, mtime=0))
    assert sha256(built.windows).hexdigest() == built.toc.header.windows_digest[7:]
    for span in built.toc.spans:
        stored = built.windows[span.window_start : span.window_end]
        window = zstandard.decompress(stored) if stored else b""
        assert len(window) <= 32768
        before = TAR[: span.uncompressed_start][-len(window) :] if window else b""
        assert all(there in (0, true) for there, true in zip(window, before, strict=True))
