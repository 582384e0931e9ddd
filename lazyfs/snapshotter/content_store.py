"""Blobs that are put into containerd's content store, through its socket.

Sources: containerd's `api/services/content/v1/content.proto`, `api/services/leases/v1/leases.proto`; its
garbage collection takes what nothing refers to (`docs/garbage-collection.md`).
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final

import grpc

from lazyfs.errors import LazyfsError
from lazyfs.snapshotter.messages import message_classes

_CONTENT: Final = "containerd.services.content.v1"
_LEASES: Final = "containerd.services.leases.v1"
_NAMESPACE: Final = "containerd-namespace"
_LEASE: Final = "containerd-lease"
_WRITE: Final = 1
_COMMIT: Final = 2
_PIECE: Final = 1 << 20
_KEPT: Final = timedelta(hours=1)
"""For how long a blob is safe that nothing refers to yet: containerd does not hand its caller's lease on."""

_INFO: Final = {"digest": (1, "string"), "labels": (5, "map")}
_MESSAGES: Final = message_classes(
    _CONTENT,
    {
        "WriteContentRequest": {
            "action": (1, "int32"),
            "ref": (2, "string"),
            "total": (3, "int64"),
            "expected": (4, "string"),
            "offset": (5, "int64"),
            "data": (6, "bytes"),
            "labels": (7, "map"),
        },
        "WriteContentResponse": {"offset": (4, "int64"), "digest": (6, "string")},
        "UpdateRequest": {"info": (1, "Info"), "update_mask": (2, "google.protobuf.FieldMask")},
        "UpdateResponse": {"info": (1, "Info")},
        "AbortRequest": {"ref": (1, "string")},
        "AbortResponse": {},
        "Info": _INFO,
    },
) | message_classes(
    _LEASES,
    {
        "CreateRequest": {"id": (1, "string"), "labels": (3, "map")},
        "CreateResponse": {"lease": (1, "Lease")},
        "Lease": {"id": (1, "string")},
        "DeleteRequest": {"id": (1, "string")},
        "DeleteResponse": {},
    },
)


class ContentRefused(LazyfsError):
    """containerd does not take a blob.

    Args:
        code: its status.
        details: why.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


class ContentStore:
    """The content store of one namespace.

    Args:
        channel: to containerd.
        namespace: whose.
    """

    def __init__(self, channel: grpc.Channel, namespace: str) -> None:
        self._channel = channel
        self._namespace = namespace

    def put(self, file: BinaryIO, digest: str, size: int, labels: Mapping[str, str]) -> None:
        """Put a blob there, and labels on it; where it is there already, these are added.

        It stays for an hour; then it goes, unless something refers to it by then.

        Args:
            file: its bytes, from the current position on.
            digest: of them.
            size: how many there are.
            labels: by name.

        Raises:
            ContentRefused: it is not taken.
        """
        name = f"lazyfs-{secrets.token_hex(8)}"
        self._lease(name)
        try:
            self._write(_requests(name, file, digest, size, labels), name)
        except ContentRefused as error:
            if error.code is grpc.StatusCode.ALREADY_EXISTS:
                return self._label(digest, labels)
            self._forget(name)
            raise

    def _write(self, requests: Iterator[Any], lease: str) -> None:
        write = self._channel.stream_stream(
            f"/{_CONTENT}.Content/Write",
            request_serializer=_MESSAGES["WriteContentRequest"].SerializeToString,
            response_deserializer=_MESSAGES["WriteContentResponse"].FromString,
        )
        call = write(requests, metadata=(self._where, (_LEASE, lease)))
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            raise ContentRefused(call.code(), call.details() or "") from error

    def _forget(self, name: str) -> None:
        """What was sent of a blob goes at once: the disk may be full. If it cannot, with its lease."""
        with suppress(ContentRefused):
            self._ask(f"{_CONTENT}.Content/Abort", "Abort", ref=name)
            self._ask(f"{_LEASES}.Leases/Delete", "Delete", id=name)

    def _label(self, digest: str, labels: Mapping[str, str]) -> None:
        info = _MESSAGES["Info"](digest=digest, labels=labels)
        mask = {"paths": [f"labels.{name}" for name in labels]}
        self._ask(f"{_CONTENT}.Content/Update", "Update", info=info, update_mask=mask)

    def _lease(self, name: str) -> None:
        expire = (datetime.now(UTC) + _KEPT).strftime("%Y-%m-%dT%H:%M:%SZ")
        labels = {"containerd.io/gc.expire": expire}
        self._ask(f"{_LEASES}.Leases/Create", "Create", id=name, labels=labels)

    def _ask(self, path: str, kind: str, **fields: Any) -> Any:
        ask = self._channel.unary_unary(
            f"/{path}",
            request_serializer=_MESSAGES[f"{kind}Request"].SerializeToString,
            response_deserializer=_MESSAGES[f"{kind}Response"].FromString,
        )
        call = ask.future(_MESSAGES[f"{kind}Request"](**fields), metadata=(self._where,))
        try:
            return call.result()
        except grpc.RpcError as error:
            raise ContentRefused(call.code(), call.details() or "") from error

    @property
    def _where(self) -> tuple[str, str]:
        return _NAMESPACE, self._namespace


def _requests(name: str, file: BinaryIO, digest: str, size: int, labels: Mapping[str, str]) -> Iterator[Any]:
    """All of a blob in pieces, then its commit."""
    fields = {"ref": name, "total": size, "expected": digest}
    request = _MESSAGES["WriteContentRequest"]
    offset = 0
    while piece := file.read(_PIECE):
        yield request(action=_WRITE, offset=offset, data=piece, **fields)
        offset += len(piece)
    yield request(action=_COMMIT, offset=offset, labels=labels, **fields)
