"""Hostile foreign indexes: `python -m tests.fuzz.foreign [CASES [SEED]]`.

Good tables, places and zTOCs are changed at random, as text, as values and as bytes. What comes out is a Toc
that keeps its rules, or an IndexerError; anything else ends the run and shows the seed that repeats it. The
process may take 4 GiB: more is a bomb that was not noticed.
"""

import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from indexer.errors import IndexerError
from indexer.foreign.embedded import TAIL_SIZE, Promise, find_toc, read_toc
from indexer.foreign.facts import BlobFacts
from indexer.foreign.soci import read_ztoc
from indexer.foreign.zstd_chunked import place_from_annotation
from indexer.spans.by_compression import read_spans
from indexer.spans.scan import Limits
from indexer.toc import Toc
from indexer.toc_codec import decode_head, decompress_window, encode_toc
from tests.support.foreign_layers import DIALECTS, LIVING, MIXED, write_layer
from tests.support.foreign_soci import draft
from tests.support.layers import gzip_layer, gzip_members

MEMORY: Final = 4 << 30
LIMITS: Final = Limits(max_members=10_000, ratio_floor=1 << 24)
DIGEST: Final = "sha256:" + "0" * 64

_VALUES: Final[Sequence[Any]] = (
    *(0, 1, -1, 511, 512, 4096, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64, 10**40, 0.5),
    *("", "/", "..", "a/../b", "\0", "\ufffd", "\ud800", "chunk", "reg", "zeros", DIGEST, "x" * 5000),
    *(None, True, [], {}, {"user.a": "AA=="}, {"a": 1}, ["x"]),
)
_KEYS: Final = (
    *("name", "type", "size", "offset", "innerOffset", "endOffset", "chunkSize", "chunkOffset", "chunkType"),
    *("chunkDigest", "digest", "mode", "uid", "modtime", "linkName", "xattrs", "devMajor"),
)


def run(cases: int, seed: int) -> dict[str, int]:
    """So many cases of each kind; how many were read and how many refused.

    Raises:
        AssertionError: (or whatever a reader raised) a case broke the rules; its note tells the seed.
    """
    counts = {"read": 0, "refused": 0}
    for number in range(cases):
        for target in (_table, _place, _ztoc):
            dice = random.Random(f"{target.__name__} {seed} {number}")
            try:
                counts["read" if target(dice) else "refused"] += 1
            except BaseException as error:
                error.add_note(f"{target.__name__}, seed {seed}, case {number}")
                raise
    return counts


def _table(dice: random.Random) -> bool:
    """A table changed as a value, then maybe as text, in a blob that is right otherwise."""
    layer = dice.choice(_LAYERS)
    table = json.loads(layer.json)
    for _ in range(dice.randint(1, 4)):
        _change(dice, table["entries"])
    text = json.dumps(table).encode()
    if dice.random() < 0.3:
        text = _mutated(dice, text)
    place = find_toc(layer.blob[-TAIL_SIZE:], len(layer.blob))
    assert place
    finish = DIALECTS["estargz" if layer.blob[:1] == b"\x1f" else "stargz zstd"].finish
    blob = finish(layer.blob[: place.payload_end], text).blob
    return _read(lambda: _embedded(blob), blob)


def _place(dice: random.Random) -> bool:
    """Damage behind the contents: footers, frames, compressed bytes."""
    blob = dice.choice(_LAYERS).blob
    start = dice.randrange(len(blob))
    with suppress(IndexerError):
        place_from_annotation(":".join(str(dice.choice(_VALUES)) for _ in range(4)), len(blob))
    damaged = blob[:start] + _mutated(dice, blob[start:])
    return _read(lambda: _embedded(damaged), damaged)


def _ztoc(dice: random.Random) -> bool:
    """A zTOC with other words and bytes."""
    blob, data = dice.choice(_ZTOCS)
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(0, min(len(changed) - 8, 8000))
        word = dice.choice([dice.randrange(1 << 32), dice.randrange(64), 2**31, 2**32 - 1, len(data) - at])
        changed[at : at + 4] = struct.pack("<I", word & 0xFFFFFFFF)
    if dice.random() < 0.2:
        changed = bytearray(_mutated(dice, bytes(changed)))
    windows = b""

    def read() -> Toc:
        nonlocal windows
        built = read_ztoc(bytes(changed), BlobFacts(DIGEST, len(blob)), LIMITS).built
        windows = built.windows
        return built.toc

    return _read(read, blob, lambda: windows)


def _embedded(blob: bytes) -> Toc | None:
    place = find_toc(blob[-TAIL_SIZE:], len(blob))
    if place is None:
        return None
    return read_toc(blob[place.start : place.end], place, Promise(), BlobFacts(DIGEST, len(blob)), LIMITS)


def _read(make: Callable[[], Toc | None], blob: bytes, windows: Callable[[], bytes] = lambda: b"") -> bool:
    """Whether a Toc was made; what it says is then used up to its last span."""
    try:
        toc = make()
    except IndexerError:
        return False
    if toc is None:
        return False
    head = decode_head(encode_toc(toc))
    assert head.toc() == toc
    for span in toc.spans:
        window = windows()[span.window_start : span.window_end]
        with suppress(IndexerError):
            compressed = blob[span.compressed_start : span.compressed_end]
            (output,) = read_spans((span,), compressed, decompress_window(window))
            assert len(output) == span.size
    return True


def _change(dice: random.Random, entries: list[Any]) -> None:
    what = dice.random()
    number = dice.randrange(len(entries))
    if what < 0.6:
        entry = entries[number]
        key = dice.choice([*entry, *_KEYS])
        other = dice.choice(entries).get(key)
        entry[key] = dice.choice([*_VALUES, other, dice.randrange(10_000)])
    elif what < 0.8:
        entries.insert(dice.randrange(len(entries)), dict(entries[number]))
    elif what < 0.9 and len(entries) > 1:
        del entries[number]
    else:
        dice.shuffle(entries)


def _mutated(dice: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(changed))
        end = min(len(changed), start + dice.choice([0, 1, 1, 4, 100]))
        changed[start:end] = dice.choice(
            [dice.randbytes(dice.randint(0, 6)), bytes(changed[end:start:-1]), b"\0" * (end - start)]
        )
    return bytes(changed)


_LAYERS: Final = [
    write_layer(MIXED, name, chunk_size=size, min_chunk=least)
    for name in LIVING
    for size, least in ((1 << 20, 0), (700, 0), (2000, 9000))
]
_ZTOCS: Final = [
    (blob, draft(MIXED, blob, span_size=64 << 10, old=old).encode())
    for blob, old in ((gzip_layer(MIXED), False), (gzip_members(MIXED), True), (MIXED, False))
]


def main() -> None:
    """Read the command line and run."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(f"{cases} cases of each kind, seed {seed}", flush=True)
    print(run(cases, seed))


if __name__ == "__main__":
    main()
