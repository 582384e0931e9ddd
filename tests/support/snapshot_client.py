"""The snapshots service as a client sees it: containerd's calls over the socket, in Python's words."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lazyfs.snapshotter.protocol import MESSAGES, METHODS, SERVICE

TIMEOUT_S = 120


class SnapshotClient:
    """One channel to a snapshotter. Errors are `grpc.RpcError`, with containerd's status codes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._calls: dict[str, Any] = {}
        for name, (request, response) in METHODS.items():
            kind = channel.unary_stream if name == "List" else channel.unary_unary
            self._calls[name] = kind(
                f"/{SERVICE}/{name}",
                request_serializer=MESSAGES[request].SerializeToString,
                response_deserializer=MESSAGES[response].FromString,
            )

    def call(self, method: str, **fields: Any) -> Any:
        request = MESSAGES[METHODS[method][0]](snapshotter="lazyfs", **fields)
        return self._calls[method](request, timeout=TIMEOUT_S, wait_for_ready=True)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Any]:
        return list(self.call("Prepare", key=key, parent=parent, labels=dict(labels or {})).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Any]:
        return list(self.call("View", key=key, parent=parent, labels=dict(labels or {})).mounts)

    def mounts(self, key: str) -> list[Any]:
        return list(self.call("Mounts", key=key).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        self.call("Commit", name=name, key=key, labels=dict(labels or {}), parent=parent)

    def remove(self, key: str) -> None:
        self.call("Remove", key=key)

    def stat(self, key: str) -> Any:
        return self.call("Stat", key=key).info

    def update(self, name: str, labels: Mapping[str, str], *paths: str, **immutable: Any) -> Any:
        info = MESSAGES["Info"](name=name, labels=dict(labels), **immutable)
        return self.call("Update", info=info, update_mask={"paths": paths}).info

    def usage(self, key: str) -> Any:
        return self.call("Usage", key=key)

    def cleanup(self) -> None:
        self.call("Cleanup")

    def pages(self, *filters: str) -> list[list[Any]]:
        return [list(page.info) for page in self.call("List", filters=filters)]

    def list(self, *filters: str) -> list[Any]:
        return [info for page in self.pages(*filters) for info in page]

    def names(self, *filters: str) -> Sequence[str]:
        return sorted(info.name for info in self.list(*filters))


@contextmanager
def connected(socket: Path) -> Iterator[SnapshotClient]:
    """A client of the snapshotter at a socket, which may come later."""
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        yield SnapshotClient(channel)


@contextmanager
def status(code: str) -> Iterator[list[str]]:
    """The block's call ends with this status; its message is put into the list."""
    said: list[str] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield said
    error: Any = caught.value  # grpc's are calls as well, which their type does not say
    assert error.code().name == code, f"{error.code().name}: {error.details()}"
    said.append(str(error.details()))
