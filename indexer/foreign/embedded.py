"""The one door to tables of contents that lie in the blob they speak of."""

from hashlib import sha256
from typing import Final, NamedTuple

from indexer.errors import DigestMismatch
from indexer.foreign import estargz, zstd_chunked
from indexer.foreign.facts import BlobFacts
from indexer.foreign.json_listing import LANDMARKS, read_listing
from indexer.foreign.packed import packed_toc
from indexer.foreign.place import Form, TocPlace
from indexer.spans.scan import Limits
from indexer.toc import Compression, Toc

TAIL_SIZE: Final = max(estargz.FOOTER_SIZE, zstd_chunked.FOOTER_SIZE)
"""How many bytes of a blob's end `find_toc` wants to see, where it has as many."""

_COMPRESSIONS: Final = {Form.ESTARGZ: Compression.GZIP, Form.ZSTD_CHUNKED: Compression.ZSTD}


class Promise(NamedTuple):
    """Digests of a table of contents that somebody vouches for; "" where nobody does.

    Attributes:
        json: of the JSON, "sha256:…"; what eStargz annotations hold.
        stored: of its compressed bytes, "sha256:…"; what zstd:chunked annotations hold.
    """

    json: str = ""
    stored: str = ""


def find_toc(tail: bytes, blob_size: int) -> TocPlace | None:
    """Where a blob that ends with `tail` says its table of contents is; None if it says nothing.

    Raises:
        IndexerError: it says so, but there is no place that could be read.
    """
    return estargz.find_toc(tail, blob_size) or zstd_chunked.find_toc(tail, blob_size)


def read_toc(
    region: bytes | memoryview, place: TocPlace, promise: Promise, facts: BlobFacts, limits: Limits
) -> Toc:
    """The Toc that the bytes of a table's place make.

    Args:
        region: these bytes.
        place: the place.
        promise: what they must be, as far as somebody vouches for it.
        facts: the layer.
        limits: bounds against bombs.

    Raises:
        DigestMismatch: they are others.
        FormatError: they break their own rules.
        LimitExceeded: what they list is too much.
        Unsupported: the table cannot be used, by a rule of ours.
    """
    if promise.stored:
        _compare(region, promise.stored)
    in_zstd = place.form is Form.ZSTD_CHUNKED
    data = zstd_chunked.extract_toc(region, place.size) if in_zstd else estargz.extract_toc(region)
    if promise.json:
        _compare(data, promise.json)
    # Only stargz writers add landmarks, and only they promise a digest of the JSON.
    by_stargz = not in_zstd or bool(promise.json)
    listing = read_listing(data, limits.max_members, LANDMARKS if by_stargz else ())
    return packed_toc(listing, facts, _COMPRESSIONS[place.form], place.payload_end, limits)


def _compare(data: bytes | memoryview, expected: str) -> None:
    actual = "sha256:" + sha256(data).hexdigest()
    if actual != expected:
        raise DigestMismatch("table of contents in the layer", expected, actual)
