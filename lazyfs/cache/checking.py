"""Re-hashing what layer entries hold against the digests of their tables of contents."""

import os
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from msgspec import Struct

from indexer.digest import Hasher, content_hasher
from indexer.toc import Proof, Span, SpanTable
from lazyfs.cache.layer_entry import LayerEntry

_PIECE: Final = 1 << 20


class EntryCheck(Struct, frozen=True):
    """What re-hashing one entry found; spans by number.

    Attributes:
        layer_digest: digest of the layer's blob.
        toc_digest: digest of the table of contents.
        right: how many spans are wholly here and match.
        wrong: spans that are wholly here and do not match.
        unverifiable: spans that are here in part, of which a digest cannot be had; and those whose digest is
            that of their compressed bytes, which are not kept.
        without_toc: its table of contents is not here, so nothing could be compared.
        repaired: spans found wrong or unverifiable were forgotten.
    """

    layer_digest: str
    toc_digest: str
    right: int = 0
    wrong: tuple[int, ...] = ()
    unverifiable: tuple[int, ...] = ()
    without_toc: bool = False
    repaired: bool = False


def check_entry(
    entry: LayerEntry, spans: SpanTable, layer_digest: str, toc_digest: str, *, repair: bool
) -> EntryCheck:
    """Re-hashes every span that is here; with `repair`, forgets those that do not match or cannot be checked.

    Readers may be under way, in any process, and evictors.

    Raises:
        CacheError: the disk fails.
    """
    # What the page cache still knows would hide what the disk has made of it.
    os.posix_fadvise(entry.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    right = 0
    wrong: list[Span] = []
    unverifiable: list[Span] = []
    for span, present in _spans_here(entry, spans):
        if present < span.end_leaf - span.first_leaf or span.proof is Proof.COMPRESSED:
            unverifiable.append(span)
        else:
            verdict = _verdict(entry, span)
            right += verdict is True
            wrong += [span] if verdict is False else []
    doomed = wrong + unverifiable
    if repair and doomed:
        entry.evict(doomed)
    return EntryCheck(
        layer_digest=layer_digest,
        toc_digest=toc_digest,
        right=right,
        wrong=tuple(span.number for span in wrong),
        unverifiable=tuple(span.number for span in unverifiable),
        repaired=repair and bool(doomed),
    )


def _spans_here(entry: LayerEntry, spans: SpanTable) -> Iterator[tuple[Span, int]]:
    for span in spans:
        present = entry.present(span.first_leaf, span.end_leaf)
        if present:
            yield span, present


def _verdict(entry: LayerEntry, span: Span) -> bool | None:
    """Whether a span that is wholly here matches; None if it was evicted before that was known."""
    while entry.has(span.first_leaf, span.end_leaf):
        evictions = entry.evictions
        if _matches(entry, span):
            return True
        if entry.evictions == evictions and entry.has(span.first_leaf, span.end_leaf):
            return False
    return None


def _matches(entry: LayerEntry, span: Span) -> bool:
    """Whether a span's bytes are those it promises; they are read in pieces: it may be a whole layer."""
    if span.proof is Proof.MERKLE:
        return _digest(content_hasher(), entry, span.uncompressed_start, span.uncompressed_end) == span.blake3
    content_end = span.uncompressed_end - span.padding
    padding = _pieces(entry, content_end, span.uncompressed_end)
    right = _digest(sha256(), entry, span.uncompressed_start, content_end) == span.root
    return right and not any(piece.strip(b"\0") for piece in padding)


def _digest(hasher: Hasher, entry: LayerEntry, start: int, end: int) -> bytes:
    for piece in _pieces(entry, start, end):
        hasher.update(piece)
    return hasher.digest()


def _pieces(entry: LayerEntry, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, _PIECE):
        yield entry.read(at, min(_PIECE, end - at))
