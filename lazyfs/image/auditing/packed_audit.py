"""The audit of an index with contents packed one after the other, which knows nothing of the tar around them.

Its members must be the layer's as far as it describes them, and the content that it shows under each name
must be the content that the layer's tar has there. Where it leads is looked at, not which way it goes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final

from indexer.build import LayerBuilder
from indexer.foreign.json_listing import LANDMARKS
from indexer.spans.scan import Limits
from indexer.toc import Kind, Member
from indexer.toc_codec import TocHead
from lazyfs.image.auditing.audit import Audit, compare_members, whole_seconds
from lazyfs.image.auditing.span_stream import Check, span_stream
from lazyfs.oci.config import ImageLayer

_PIECE: Final = 1 << 20


def audit_packed(
    head: TocHead,
    layer: ImageLayer,
    blob: int,
    stream: Callable[[], Iterable[bytes]],
    check: Check,
    limits: Limits,
) -> Audit:
    """Compare a table whose address space is packed with a layer.

    Args:
        head: the table.
        layer: what the image's documents say of the layer.
        blob: descriptor of a file with all of the layer's blob, which has its digest.
        stream: gives the table's whole address space.
        check: called now and then; what it raises ends the work.
        limits: bounds against bombs.

    Raises:
        LimitExceeded: the layer is too large.
        FormatError: (or another IndexerError) the layer is none, or the table leads nowhere.
    """
    with LayerBuilder(layer.descriptor.size, layer.descriptor.digest, limits=limits) as builder:
        for piece in _pieces(blob, layer.descriptor.size, check):
            builder.feed(piece)
        built = builder.finish()
    if built.toc.header.diff_id != layer.diff_id:
        actual = built.toc.header.diff_id
        return Audit((f"the layer's content is {actual}; its diffID is {layer.diff_id}",))
    said, actual_members = head.members(), built.toc.members
    lies = compare_members(_described(said), _described(actual_members))
    if not lies:
        tar = span_stream(built.toc.spans, blob, layer.descriptor.size, built.windows, check)
        lies = _compare_contents(_contents(said), stream(), _contents(actual_members), tar)
    return Audit(tuple(lies))


def _pieces(blob: int, size: int, check: Check) -> Iterator[bytes]:
    for start in range(0, size, _PIECE):
        check()
        yield os.pread(blob, min(_PIECE, size - start), start)


def _described(members: Sequence[Member]) -> list[Member]:
    """Members without what a packed address space cannot tell: where in the tar their content lies."""
    described = [m._replace(data_start=0) for m in members if m.path not in LANDMARKS]
    return whole_seconds(described)


def _contents(members: Sequence[Member]) -> list[Member]:
    return [m for m in members if m.kind is Kind.REGULAR and m.size and m.path not in LANDMARKS]


def _compare_contents(
    said: Sequence[Member], packed: Iterable[bytes], actual: Sequence[Member], tar: Iterable[bytes]
) -> list[str]:
    ours, theirs = _digests(actual, tar), _digests(said, packed)
    return [
        f"{member.path[:300].decode('utf-8', 'backslashreplace')!r}: the index leads to other content"
        for member, one, other in zip(actual, ours, theirs, strict=True)
        if one != other
    ]


def _digests(members: Sequence[Member], stream: Iterable[bytes]) -> list[bytes]:
    """The digests of members' contents, in the members' order, from an address space that passes by."""
    order = sorted(range(len(members)), key=lambda number: members[number].data_start)
    found = [b""] * len(members)
    position, state = 0, sha256()
    waiting = iter(order)
    number = next(waiting, None)
    for piece in stream:
        end = position + len(piece)
        while number is not None and members[number].data_start < end:
            member = members[number]
            stop = member.data_start + member.size
            state.update(piece[max(member.data_start - position, 0) : stop - position])
            if stop > end:
                break
            found[number], state = state.digest(), sha256()
            number = next(waiting, None)
        position = end
    return found
