"""Snapshots as values, and what can go wrong with them: containerd's words, without its wire."""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct, field

from lazyfs.errors import LazyfsError


class SnapshotError(LazyfsError):
    """A call on a snapshot cannot be done; each kind is one gRPC status."""


class NoSnapshot(SnapshotError):
    """The key, name or parent is not known."""


class SnapshotExists(SnapshotError):
    """The key or name is taken; or the layer that was to be prepared is here already."""


class SnapshotInUse(SnapshotError):
    """The snapshot is of another kind than the call needs, or others stand on it."""


class BadSnapshotCall(SnapshotError):
    """An argument that cannot be meant."""


class DiskRefused(SnapshotError):
    """What is kept of snapshots cannot be written, or a directory cannot be made or removed."""


class ChainAway(SnapshotError):
    """The lazy mount below the snapshot cannot be had now; the same call may succeed later."""


class Kind(Enum):
    """What a snapshot is; the values are those of containerd's filters."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class Info(Struct, frozen=True):
    """What is told of a snapshot.

    Attributes:
        name: its key while active or a view, its name once committed.
        parent: name of the committed snapshot below; "" for none.
        kind: active, view or committed.
        created_ns: nanoseconds of Unix time; for a committed snapshot, of its commit.
        updated_ns: the same, of the last change.
        labels: none of them has an empty value.
    """

    name: str
    parent: str
    kind: Kind
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Usage(Struct, frozen=True):
    """What a snapshot takes by itself, without its parents: bytes of allocated blocks, and inodes."""

    size: int = 0
    inodes: int = 0


class Mount(Struct, frozen=True):
    """One mount(2) that the client is to make; the target is its business."""

    type: str
    source: str
    options: tuple[str, ...]
