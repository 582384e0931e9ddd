"""The service `containerd.services.snapshots.v1.Snapshots` on the wire, and its values as ours.

The fields are those of containerd's `api/services/snapshots/v1/snapshots.proto` and `api/types/mount.proto`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from lazyfs.snapshotter.messages import message_classes
from lazyfs.snapshotter.model import Info, Kind, Mount

SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"

_CALL: Final = {"snapshotter": (1, "string")}
_CREATE: Final = {**_CALL, "key": (2, "string"), "parent": (3, "string"), "labels": (4, "map")}
_KEY: Final = {**_CALL, "key": (2, "string")}
_MOUNTS: Final = {"mounts": (1, "repeated Mount")}
MOUNT: Final = {
    "type": (1, "string"),
    "source": (2, "string"),
    "target": (3, "string"),
    "options": (4, "repeated string"),
}
"""The fields of containerd.types.Mount."""

MESSAGES: Final = message_classes(
    "containerd.services.snapshots.v1",
    {
        "PrepareSnapshotRequest": _CREATE,
        "PrepareSnapshotResponse": _MOUNTS,
        "ViewSnapshotRequest": _CREATE,
        "ViewSnapshotResponse": _MOUNTS,
        "MountsRequest": _KEY,
        "MountsResponse": _MOUNTS,
        "CommitSnapshotRequest": {
            **_CALL,
            "name": (2, "string"),
            "key": (3, "string"),
            "labels": (4, "map"),
            "parent": (5, "string"),
        },
        "RemoveSnapshotRequest": _KEY,
        "StatSnapshotRequest": _KEY,
        "StatSnapshotResponse": {"info": (1, "Info")},
        "UpdateSnapshotRequest": {
            **_CALL,
            "info": (2, "Info"),
            "update_mask": (3, "google.protobuf.FieldMask"),
        },
        "UpdateSnapshotResponse": {"info": (1, "Info")},
        "ListSnapshotsRequest": {**_CALL, "filters": (2, "repeated string")},
        "ListSnapshotsResponse": {"info": (1, "repeated Info")},
        "UsageRequest": _KEY,
        "UsageResponse": {"size": (1, "int64"), "inodes": (2, "int64")},
        "CleanupRequest": _CALL,
        "Empty": {},
        "Info": {
            "name": (1, "string"),
            "parent": (2, "string"),
            "kind": (3, "int32"),
            "created_at": (4, "google.protobuf.Timestamp"),
            "updated_at": (5, "google.protobuf.Timestamp"),
            "labels": (6, "map"),
        },
        "Mount": MOUNT,
    },
)
"""The message classes by name. `Empty` looks on the wire like google.protobuf.Empty."""

METHODS: Final = {
    "Prepare": ("PrepareSnapshotRequest", "PrepareSnapshotResponse"),
    "View": ("ViewSnapshotRequest", "ViewSnapshotResponse"),
    "Mounts": ("MountsRequest", "MountsResponse"),
    "Commit": ("CommitSnapshotRequest", "Empty"),
    "Remove": ("RemoveSnapshotRequest", "Empty"),
    "Stat": ("StatSnapshotRequest", "StatSnapshotResponse"),
    "Update": ("UpdateSnapshotRequest", "UpdateSnapshotResponse"),
    "List": ("ListSnapshotsRequest", "ListSnapshotsResponse"),
    "Usage": ("UsageRequest", "UsageResponse"),
    "Cleanup": ("CleanupRequest", "Empty"),
}
"""The request and the response of each method. List's response is a stream."""

KINDS: Final = {Kind.VIEW: 1, Kind.ACTIVE: 2, Kind.COMMITTED: 3}

_PAGE_ITEMS: Final = 100
_PAGE_BYTES: Final = 1 << 20  # gRPC's clients take messages of 4 MiB


def message_of_info(info: Info) -> Any:
    """An Info message."""
    message = MESSAGES["Info"](
        name=info.name, parent=info.parent, kind=KINDS[info.kind], labels=dict(info.labels)
    )
    for field, moment_ns in ((message.created_at, info.created_ns), (message.updated_at, info.updated_ns)):
        field.seconds, field.nanos = divmod(moment_ns, 10**9)
    return message


def messages_of_mounts(mounts: Iterable[Mount]) -> list[Any]:
    """Mount messages."""
    return [MESSAGES["Mount"](type=one.type, source=one.source, options=one.options) for one in mounts]


def pages(infos: Sequence[Info]) -> Iterator[Any]:
    """The stream of List's responses: each holds at most 100 snapshots, and about 1 MiB."""
    page = MESSAGES["ListSnapshotsResponse"]()
    size = 0
    for info in infos:
        message = message_of_info(info)
        if page.info and (len(page.info) == _PAGE_ITEMS or size + message.ByteSize() > _PAGE_BYTES):
            yield page
            page, size = MESSAGES["ListSnapshotsResponse"](), 0
        page.info.append(message)
        size += message.ByteSize()
    if page.info:
        yield page
