"""zTOCs as Tocs: what they say is what the tar says, by the compressed bytes they promise."""

import random
import struct
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256

import flatbuffers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.foreign.facts import MAX_SPAN, BlobFacts
from indexer.foreign.flatbuffer import FlatBuffer
from indexer.foreign.gzip_zinfo import parse_zinfo
from indexer.foreign.soci import Ztoc, read_ztoc
from indexer.spans.scan import Limits
from indexer.toc import AddressSpace, Compression, Entry, Proof
from indexer.toc_codec import decode_head, decompress_window, encode_toc
from tests.support.foreign_layers import MIXED
from tests.support.foreign_soci import Draft, draft, gzip_points, gzip_zinfo, raw_zinfo, with_file
from tests.support.layers import gzip_layer, gzip_members, gzip_stored
from tests.support.spans import read_span
from tests.support.tar_reading import parse
from tests.support.tars import file, tar

_RANDOM = random.Random(7)
_WORDS = [_RANDOM.randbytes(5) for _ in range(500)]
NOISE = tar(
    *(file(b"n%d" % n, b" ".join(_RANDOM.choices(_WORDS, k=20_000))) for n in range(5)),
    file(b"z", bytes(90_000)),
)
LAYERS = {
    "gzip": gzip_layer(NOISE),
    "gzip -1": gzip_layer(NOISE, 1),
    "gzip mixed blocks": gzip_stored(NOISE),
    "gzip members": gzip_members(NOISE),
    "plain": NOISE,
}


def facts_of(blob: bytes) -> BlobFacts:
    return BlobFacts("sha256:" + sha256(blob).hexdigest(), len(blob))


def read(said: Draft | bytes, blob: bytes, limits: Limits | None = None) -> Ztoc:
    data = said if isinstance(said, bytes) else said.encode()
    return read_ztoc(data, facts_of(blob), limits or Limits())


def span_bytes(ztoc: Ztoc, number: int, blob: bytes) -> bytes:
    span = ztoc.built.toc.spans[number]
    window = decompress_window(ztoc.built.windows[span.window_start : span.window_end])
    return read_span(span, blob[span.compressed_start : span.compressed_end], window)


@pytest.mark.parametrize("name", LAYERS)
def test_every_span_reads_as_the_stream_says(name):
    blob = LAYERS[name]
    ztoc = read(draft(NOISE, blob), blob)
    toc = ztoc.built.toc
    assert len(toc.spans) > 5
    assert b"".join(span_bytes(ztoc, n, blob) for n in range(len(toc.spans))) == NOISE
    assert toc.members == parse(NOISE).members
    assert toc.header.address_space is AddressSpace.TAR
    assert decode_head(encode_toc(toc)).toc() == toc
    plain = name == "plain"
    assert {span.proof for span in toc.spans} == {Proof.CONTENT if plain else Proof.COMPRESSED}
    assert toc.header.compression is (Compression.NONE if plain else Compression.GZIP)
    assert not ztoc.assumes_plain_header


def test_members_of_all_kinds_are_those_of_the_tar():
    blob = gzip_layer(MIXED)
    assert read(draft(MIXED, blob), blob).built.toc.members == parse(MIXED).members


def test_an_old_ztoc_takes_the_first_header_for_granted():
    blob = LAYERS["gzip"]
    ztoc = read(draft(NOISE, blob, old=True), blob)
    assert ztoc.assumes_plain_header
    assert ztoc.built.toc.spans == read(draft(NOISE, blob), blob).built.toc.spans


@pytest.mark.parametrize("name", LAYERS)
def test_compressed_bytes_that_are_not_the_promised_ones_are_refused(name):
    blob = bytearray(LAYERS[name])
    ztoc = read(draft(NOISE, bytes(blob)), bytes(blob))
    blob[ztoc.built.toc.spans[3].compressed_start + 5] ^= 1
    with pytest.raises(DigestMismatch):
        span_bytes(ztoc, 3, bytes(blob))


def test_zeros_behind_the_tar_are_no_content():
    """The tool tells where its tar reader stood at the end."""
    blob = gzip_layer(NOISE + bytes(50_000))
    points = gzip_points(NOISE + bytes(50_000), blob, 64 << 10)
    said = replace(draft(NOISE + bytes(50_000), blob), uncompressed_size=len(NOISE))
    assert points[-1].uncompressed < len(NOISE)
    ztoc = read(said, blob)
    assert ztoc.built.toc.spans.uncompressed_size == len(NOISE)
    assert span_bytes(ztoc, len(points) - 1, blob) == NOISE[points[-1].uncompressed :]


BLOB = LAYERS["gzip"]
GOOD = draft(NOISE, BLOB)
POINTS = gzip_points(NOISE, BLOB, 64 << 10)


def _zinfo(number: int, **changes: object) -> bytes:
    points = list(POINTS)
    points[number] = replace(points[number], **changes)  # type: ignore[arg-type]
    return gzip_zinfo(points, 64 << 10)


BAD = {
    "another layer": (replace(GOOD, compressed_size=7), FormatError),
    "a negative size": (replace(GOOD, uncompressed_size=-1), FormatError),
    "too short for its spans": (replace(GOOD, uncompressed_size=100), FormatError),
    "an unknown compression": (replace(GOOD, algorithm=3), Unsupported),
    "digests too few": (replace(GOOD, digests=GOOD.digests[:-1]), FormatError),
    "digests too many": (replace(GOOD, digests=(*GOOD.digests, GOOD.digests[0])), FormatError),
    "a wrong number of spans": (replace(GOOD, max_span_id=3), FormatError),
    "a digest of another kind": (replace(GOOD, digests=(b"md5:00", *GOOD.digests[1:])), FormatError),
    "no checkpoints": (replace(GOOD, checkpoints=b""), FormatError),
    "checkpoints cut short": (replace(GOOD, checkpoints=GOOD.checkpoints[:-1]), FormatError),
    "checkpoints of no number": (replace(GOOD, checkpoints=struct.pack("<iq", 0, 1)), LimitExceeded),
    "checkpoints without end": (replace(GOOD, checkpoints=struct.pack("<iq", 2**31 - 1, 1)), LimitExceeded),
    "checkpoints out of order": (replace(GOOD, checkpoints=_zinfo(1, compressed=10**6)), FormatError),
    "output out of order": (replace(GOOD, checkpoints=_zinfo(2, uncompressed=1)), FormatError),
    "a negative checkpoint": (replace(GOOD, checkpoints=_zinfo(0, compressed=-1)), FormatError),
    "a start that is none": (replace(GOOD, checkpoints=_zinfo(0, uncompressed=1)), FormatError),
    "nine bits": (replace(GOOD, checkpoints=_zinfo(1, bits=9)), FormatError),
    "a checkpoint behind the layer": (replace(GOOD, checkpoints=_zinfo(-1, compressed=10**9)), FormatError),
    "a type that is none": (with_file(GOOD, 0, type=b"door"), FormatError),
    "parents": (with_file(GOOD, 0, name=b"../x"), FormatError),
    "no such user": (with_file(GOOD, 0, uid=2**32 - 1), FormatError),
    "no time": (with_file(GOOD, 0, time=b"noon"), FormatError),
    "a time that is no text": (with_file(GOOD, 0, time=b"\xff"), FormatError),
    "content off its block": (with_file(GOOD, 0, offset=513), FormatError),
    "content before its header": (with_file(GOOD, 0, offset=0), FormatError),
    "content that overlaps": (with_file(GOOD, 1, offset=512), FormatError),
    "content without a header": (with_file(GOOD, 0, size=130_000), FormatError),
    "content behind the end": (with_file(GOOD, -1, size=10**7), FormatError),
    "a negative size of a file": (with_file(GOOD, 0, size=-1), FormatError),
    "a sparse file": (with_file(GOOD, 0, records=((b"GNU.sparse.major", b"1"),)), Unsupported),
    "too many records": (with_file(GOOD, 0, records=((b"a", b"b"),) * 5000), LimitExceeded),
    "an xattr without name": (with_file(GOOD, 0, records=((b"SCHILY.xattr.", b"1"),)), FormatError),
}


@pytest.mark.parametrize("case", BAD)
def test_a_ztoc_that_cannot_be_is_refused(case):
    said, error = BAD[case]
    with pytest.raises(error):
        read(said, BLOB)


def test_a_span_too_large_to_be_checked_is_refused():
    data = tar(file(b"z", bytes(MAX_SPAN + 1)))
    blob = gzip_layer(data, 9)
    first = gzip_zinfo(gzip_points(data, blob, 1 << 40), 1 << 40)
    said = replace(draft(NOISE, BLOB), compressed_size=len(blob), uncompressed_size=len(data), files=())
    with pytest.raises(Unsupported):
        read(replace(said, digests=GOOD.digests[:1], checkpoints=first), blob, Limits(max_ratio=2000))
    with pytest.raises(LimitExceeded, match="bomb"):
        read(replace(said, digests=GOOD.digests[:1], checkpoints=first), blob, Limits(ratio_floor=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoints": raw_zinfo(0, len(NOISE))},
        {"checkpoints": raw_zinfo(-5, len(NOISE))},
        {"checkpoints": raw_zinfo(64 << 10, 5)},
        {"checkpoints": raw_zinfo(1 << 10, len(NOISE))},
        {"checkpoints": b"\0" * 12},
        {"uncompressed_size": len(NOISE) + 1},
    ],
)
def test_a_ztoc_of_a_plain_layer_that_cannot_be_is_refused(changes):
    with pytest.raises(FormatError):
        read(replace(draft(NOISE, NOISE), **changes), NOISE)


def test_strings_that_are_used_again_and_again_are_too_much():
    """Offsets may lead to one place from many: a small file must not become a large one."""
    builder = flatbuffers.Builder(0)
    name = builder.CreateString(b"x" * 5000)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    table = builder.EndObject()
    builder.StartVector(4, 4000, 4)
    for _ in range(4000):
        builder.PrependUOffsetTRelative(table)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    root = FlatBuffer(bytes(builder.Output())).root()
    with pytest.raises(LimitExceeded, match="again and again"):
        [entry.string(0) for entry in root.tables(0, 10_000)]
    with pytest.raises(LimitExceeded, match="list of 4000"):
        next(root.tables(0, 3999))


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_ztoc_gives_a_toc_or_our_error(data):
    small = draft(MIXED, _SMALL, span_size=64 << 10)
    encoded = bytearray(replace(small, checkpoints=gzip_zinfo([POINTS[0]], 1)).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(encoded) - 4))
        encoded[at : at + 4] = data.draw(
            st.one_of(
                st.binary(min_size=4, max_size=4), st.integers(0, 9).map(lambda n: struct.pack("<I", n))
            )
        )
    cut = data.draw(st.one_of(st.just(len(encoded)), st.integers(0, len(encoded))))
    try:
        toc = read(bytes(encoded[:cut]), _SMALL).built.toc
    except IndexerError:
        return
    assert decode_head(encode_toc(toc)).toc() == toc


_SMALL_NUMBERS = st.integers(0, 9).map(lambda number: struct.pack("<I", number))
_SMALL = gzip_layer(tar(file(b"f", b"x" * 40_000)))


@given(st.binary(max_size=300))
def test_any_bytes_give_our_errors_only(data):
    for reader in (lambda: read(data, b""), lambda: parse_zinfo(data)):
        with suppress(IndexerError):
            reader()


def test_entries_are_deflate_streams_at_a_bit():
    spans = read(GOOD, BLOB).built.toc.spans
    assert {span.entry for span in spans} == {Entry.DEFLATE}
    assert any(span.bits for span in spans)
    for span, later in zip(spans, list(spans)[1:], strict=False):
        assert later.compressed_start == span.compressed_end - bool(later.bits)
