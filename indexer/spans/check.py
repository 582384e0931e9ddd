"""Whether what came is what a span promises."""

from hashlib import sha256

from indexer.digest import content_digest
from indexer.errors import DigestMismatch
from indexer.toc import Proof, Span


def check_compressed(span: Span, data: bytes | memoryview) -> None:
    """The compressed bytes of a span are those it promises, if it promises any.

    Args:
        span: the span.
        data: its bytes [compressed_start, compressed_end).

    Raises:
        DigestMismatch: they are others.
    """
    if span.proof is Proof.COMPRESSED:
        _compare(span, span.root, sha256(data).digest())


def checked_content(span: Span, content: bytes) -> bytes:
    """A span's bytes, padding included, which are those it promises.

    Of a span whose leaves can be proved alone that says its BLAKE3 digest. Its root is not looked at: that
    both are of the same bytes, the audit tells.

    Args:
        span: the span.
        content: its uncompressed bytes without padding.

    Raises:
        DigestMismatch: they are others.
    """
    if not span.padding:
        check_content(span, content)
        return content
    output = content + bytes(span.padding)
    check_content(span, content if span.proof is Proof.CONTENT else output)
    return output


def check_content(span: Span, content: bytes | memoryview) -> None:
    """The bytes of a span that has no padding are those it promises.

    Raises:
        DigestMismatch: they are others.
    """
    if span.proof is Proof.CONTENT:
        _compare(span, span.root, sha256(content).digest())
    elif span.proof is Proof.MERKLE:
        _compare(span, span.blake3, content_digest(content))


def _compare(span: Span, expected: bytes, actual: bytes) -> None:
    if actual != expected:
        raise DigestMismatch(f"span {span.number}", expected.hex(), actual.hex())
