"""What all kinds of foreign indexes share: bounds, and members made of what they tell."""

from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

from indexer.digest import sha256_digest
from indexer.errors import FormatError, LimitExceeded
from indexer.tar.header import MAX_PATH, clean_path
from indexer.toc import Kind, Member

MAX_SPAN: Final = 64 << 20
"""Bytes of the largest span, compressed or not, that is taken over: to be checked it is in memory at once."""

NO_WINDOWS: Final = sha256_digest(b"")
"""Digest of the window file of indexes that need none."""

KINDS: Final[Mapping[str, Kind]] = {
    "reg": Kind.REGULAR,
    "dir": Kind.DIRECTORY,
    "symlink": Kind.SYMLINK,
    "hardlink": Kind.HARDLINK,
    "char": Kind.CHARACTER,
    "block": Kind.BLOCK,
    "fifo": Kind.FIFO,
}
"""What the types are called, in eStargz, zstd:chunked and zTOCs alike."""

_MAX_ID: Final = 2**32 - 2
_MAX_FILE: Final = 1 << 62
_make: Final = partial(tuple.__new__, Member)


class BlobFacts(NamedTuple):
    """The layer an index speaks of, as the manifest describes it.

    Attributes:
        digest: of the blob, "sha256:…".
        size: its compressed bytes.
    """

    digest: str
    size: int


def kind_of(text: str) -> Kind:
    """The kind of member that a type's name means.

    Raises:
        FormatError: none.
    """
    kind = KINDS.get(text)
    if kind is None:
        raise FormatError(f"an index with a member of type {text[:100]!r}")
    return kind


def make_member(
    kind: Kind,
    name: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    size: int,
    data_start: int,
    link: bytes,
    device: tuple[int, int],
    xattrs: tuple[tuple[bytes, bytes], ...],
) -> Member:
    """A member as the tar parser would make it of the same header.

    Sizes of what has no content, links of what is none and numbers of what is no device are dropped.

    Raises:
        FormatError: no such member can be.
        LimitExceeded: a path or link is too long.
    """
    path = clean_path(name)
    if not path and kind is not Kind.DIRECTORY:
        raise FormatError("an index with a root that is no directory")
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise FormatError(f"no user or group has number {uid}:{gid}")
    if kind is not Kind.REGULAR:
        size = 0
    if not 0 <= size < _MAX_FILE:
        raise FormatError(f"a file of {size} bytes: {path[:200]!r}")
    mode = 0o777 if kind is Kind.SYMLINK else mode & 0o7777
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        if not (0 <= device[0] < 1 << 12 and 0 <= device[1] < 1 << 20):
            raise FormatError(f"no device has number {device[0]}:{device[1]}")
    else:
        device = (0, 0)
    start = data_start if size else 0
    target = _target(kind, path, link)
    return _make((path, kind, mode, uid, gid, mtime_ns, size, start, target, device, xattrs))


def _target(kind: Kind, path: bytes, link: bytes) -> bytes:
    if kind is Kind.HARDLINK:
        target = clean_path(link)
        if not target:
            raise FormatError(f"a hard link to the root: {path[:200]!r}")
        return target
    if kind is not Kind.SYMLINK:
        return b""
    if not link or b"\0" in link:
        raise FormatError(f"a symlink to nowhere: {path[:200]!r}")
    if len(link) > MAX_PATH:
        raise LimitExceeded(f"a symlink of {len(link)} bytes; at most {MAX_PATH} are read")
    return link
