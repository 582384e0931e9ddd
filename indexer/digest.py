"""Digests: sha256 of whole things, and of a span BLAKE3 and the Merkle root over its leaves.

A span is cut into leaves of LEAF_SIZE bytes from its start, the last one shorter. A leaf's digest is the
sha256 of its bytes; two neighbours make a parent, sha256(left + right); an odd one out goes up unchanged.
The tree's shape follows from the span's length, which stands in the same signed-for table as the root, so
leaves and parents cannot be taken for each other and need no prefix.

The root proves single leaves. Who has the whole span asks BLAKE3: one call, a sixth of the time, and without
the interpreter's lock, which hashing leaves holds nearly all of its time.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Protocol

from blake3 import blake3

from indexer.errors import FormatError

LEAF_SIZE: Final = 4096
DIGEST_SIZE: Final = 32

# hashlib lets go of the interpreter's lock for 2048 bytes or more. For a leaf, which takes 2 us, getting it
# back among several threads costs more than hashing; so leaves are hashed by parts, whole blocks of sha256.
_PART: Final = 31 * 64

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def sha256_digest(data: bytes | bytearray | memoryview) -> str:
    """The OCI digest of `data`: "sha256:" and 64 hexadecimal digits."""
    return "sha256:" + sha256(data).hexdigest()


def content_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The BLAKE3 digest of one span's bytes, with the function's own length of 32 bytes."""
    return blake3(data).digest()


class Hasher(Protocol):
    """Takes bytes piece by piece and gives the digest of all of them, as those of hashlib do."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """The next bytes."""

    def digest(self) -> bytes:
        """The digest of the bytes so far."""


def content_hasher() -> Hasher:
    """Makes the `content_digest` of one span's bytes."""
    return blake3()


def digest_hex(digest: str) -> str:
    """The hexadecimal part of a sha256 digest, safe as a file name.

    Raises:
        FormatError: this is not a sha256 digest.
    """
    if not _SHA256.fullmatch(digest):
        raise FormatError(f"not a sha256 digest: {digest[:100]!r}")
    return digest[7:]


def leaf_count(size: int) -> int:
    """How many leaves hold `size` bytes."""
    return -(-size // LEAF_SIZE)


def leaf_digests(data: bytes | bytearray | memoryview) -> list[bytes]:
    """The digests of the leaves of one span's bytes, in order."""
    view = memoryview(data)
    return [_leaf_digest(view[start : start + LEAF_SIZE]) for start in range(0, len(view), LEAF_SIZE)]


def _leaf_digest(leaf: memoryview) -> bytes:
    state = sha256(leaf[:_PART])
    state.update(leaf[_PART : 2 * _PART])
    state.update(leaf[2 * _PART :])
    return state.digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf digests; that of no leaves is the sha256 of nothing."""
    if not leaves:
        return sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        parents = [sha256(level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            parents.append(level[-1])
        level = parents
    return level[0]
