"""The audit: whether a table of contents says what its layer holds.

A span's digest shows that what was fetched is what the table promised. Only when the whole layer has passed
by can be shown that the table promised the truth: the stream has the diffID that the image's configuration
names, its tar holds the members that the table lists, and where a span has two digests, of which readers look
at the one or the other, both are of its bytes. What does not hold then is a lie.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final

from msgspec import Struct

from indexer.digest import LEAF_SIZE, content_hasher, merkle_root
from indexer.errors import IndexerError, LimitExceeded
from indexer.tar.stream import TarParser
from indexer.toc import Extent, Member, Proof, Span, SpanTable
from indexer.toc_codec import TocHead

_MOST_FINDINGS: Final = 20
_SECOND: Final = 1_000_000_000


class Audit(Struct, frozen=True):
    """What an audit found.

    Attributes:
        lies: what the table says and what is true; empty if it passed.
        wrong_spans: numbers of spans whose bytes have none of their digests: the cache that they come from
            has been damaged, and of the table is known no more than `lies` says.
    """

    lies: tuple[str, ...] = ()
    wrong_spans: tuple[int, ...] = ()


def audit_stream(head: TocHead, diff_id: str, pieces: Iterable[bytes]) -> Audit:
    """Compare a table whose address space is the tar stream with that stream.

    Args:
        head: the table.
        diff_id: what the stream should hash to, by the image's configuration.
        pieces: the stream, cut anywhere.

    Raises:
        LimitExceeded: the stream, which is the layer's, is no tar that is read here.
        IndexerError: the table itself is damaged.
    """
    check = DigestCheck(head.spans())
    digest = sha256()
    parser = TarParser()
    tar_error: IndexerError | None = None
    for piece in pieces:
        digest.update(piece)
        check.feed(piece)
        if tar_error is None:
            tar_error = _error_of(partial(parser.feed, piece))
    tar_error = tar_error or _error_of(parser.close)
    check.close()
    lies = [f"the digests of span {number} are of different bytes" for number in check.torn]
    if check.wrong:  # what else is not as it should be may come of that
        return Audit(tuple(lies[:_MOST_FINDINGS]), tuple(check.wrong))
    if f"sha256:{digest.hexdigest()}" != diff_id:
        lies.append(f"the layer's content is sha256:{digest.hexdigest()}; its diffID is {diff_id}")
    if isinstance(tar_error, LimitExceeded) and not lies:
        raise tar_error
    if tar_error:
        lies.append(f"the layer's content is no tar that can be read: {tar_error}")
    else:
        lies += compare_tables(head, parser.members, parser.extents, parser.device_size)
    return Audit(tuple(lies[:_MOST_FINDINGS]))


def _error_of(work: Callable[[], None]) -> IndexerError | None:
    try:
        work()
    except IndexerError as error:
        return error
    return None


class DigestCheck:
    """Hashes an address space that passes by, and compares it with the digests of its spans.

    Spans that are proved by their compressed bytes are passed by.

    Args:
        spans: the table.

    Attributes:
        wrong: numbers of spans that are something else than their digests say, or did not pass by whole.
        torn: numbers of spans that are what one of their two digests says, and not what the other does. No
            damage makes such bytes: the table lies.
    """

    def __init__(self, spans: SpanTable) -> None:
        self.wrong: list[int] = []
        self.torn: list[int] = []
        self._spans = iter(spans)
        self._span: Span | None = next(self._spans, None)
        self._left = self._span.size if self._span else 0
        self._leaves: list[bytes] = []
        self._partial = b""
        self._content = sha256()
        self._blake3 = content_hasher()

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere; those after the last span are passed by."""
        view = memoryview(data)
        while view and self._span is not None:
            piece = view[: self._left]
            view = view[len(piece) :]
            self._left -= len(piece)
            self._hash(self._span, piece)
            if not self._left:
                self._end(self._span)

    def close(self) -> None:
        """There is no more."""
        while self._span is not None:
            self.wrong.append(self._span.number)
            self._span = next(self._spans, None)

    def _hash(self, span: Span, piece: memoryview) -> None:
        if span.proof is Proof.CONTENT:
            self._content.update(piece)
        elif span.proof is Proof.MERKLE:
            self._blake3.update(piece)
            held = self._partial + piece if self._partial else piece
            whole = len(held) if not self._left else len(held) // LEAF_SIZE * LEAF_SIZE
            for start in range(0, whole, LEAF_SIZE):
                self._leaves.append(sha256(held[start : min(start + LEAF_SIZE, whole)]).digest())
            self._partial = bytes(held[whole:])

    def _end(self, span: Span) -> None:
        right = [True]
        if span.proof is Proof.CONTENT:
            right = [self._content.digest() == span.root]
        elif span.proof is Proof.MERKLE:
            right = [merkle_root(self._leaves) == span.root, self._blake3.digest() == span.blake3]
        if not any(right):
            self.wrong.append(span.number)
        elif not all(right):
            self.torn.append(span.number)
        self._leaves = []
        self._content = sha256()
        self._blake3 = content_hasher()
        self._span = next(self._spans, None)
        self._left = self._span.size if self._span else 0


def compare_tables(
    head: TocHead, members: Sequence[Member], extents: Sequence[Extent], device_size: int
) -> list[str]:
    """How a table differs from what the layer's tar holds; nothing if it does not.

    Args:
        head: the table.
        members: of the tar, in its order.
        extents: of its sparse members.
        device_size: of its address space with the tail.

    Raises:
        IndexerError: the table is damaged.
    """
    said = head.members()
    if not head.header.span_size:
        said, members = whole_seconds(said), whole_seconds(members)
    lies = compare_members(said, members)
    if tuple(extents) != head.extents():
        lies.append("the tail of sparse members is another than the index says")
    if device_size != head.header.device_size:
        lies.append(f"the index speaks of {head.header.device_size} bytes, the layer has {device_size}")
    return lies


def whole_seconds(members: Iterable[Member]) -> list[Member]:
    """Members as indexes of other tools can know them: most keep no parts of seconds."""
    return [m._replace(mtime_ns=m.mtime_ns // _SECOND * _SECOND) for m in members]


def compare_members(said: Sequence[Member], actual: Sequence[Member]) -> list[str]:
    """How members differ, in few lines; nothing if they do not."""
    if list(said) == list(actual):
        return []
    missing, invented = Counter(actual), Counter(said)
    missing, invented = missing - invented, invented - missing
    if not missing and not invented:
        return ["the index lists the members in another order than the layer"]
    lies = []
    by_path: dict[bytes, list[Member]] = {}
    for member in invented.elements():
        by_path.setdefault(member.path, []).append(member)
    for member in missing.elements():
        others = by_path.get(member.path)
        if others:
            lies.append(f"{_shown(member.path)}: {_difference(others.pop(0), member)}")
        else:
            lies.append(f"{_shown(member.path)}: in the layer, and not in the index")
    for others in by_path.values():
        lies += [f"{_shown(member.path)}: in the index, and not in the layer" for member in others]
    more = len(lies) - _MOST_FINDINGS
    return lies if more <= 0 else [*lies[:_MOST_FINDINGS], f"and {more} more members"]


def _difference(said: Member, actual: Member) -> str:
    """The first field that differs."""
    for name, one, other in zip(Member._fields, said, actual, strict=True):
        if one != other:
            return f"{name} is {_value(one)} in the index, {_value(other)} in the layer"
    return "stands there more than once"


def _value(value: Any) -> str:
    return _shown(value) if isinstance(value, bytes) else str(value)[:200]


def _shown(path: bytes) -> str:
    return repr(path[:300].decode("utf-8", "backslashreplace"))
