"""The service `containerd.services.diff.v1.Diff` on the wire: what a container changed, as a layer.

The fields are those of containerd's `api/services/diff/v1/diff.proto`. Whatever is not for us is answered
UNIMPLEMENTED, and so is Apply: containerd then asks the next differ of its list.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import trio

from lazyfs.cache.files import NO_ROOM
from lazyfs.errors import ContainerError
from lazyfs.snapshotter.content_store import ContentRefused, ContentStore
from lazyfs.snapshotter.differ import NotOurs, changed_directory, compression_of, make_layer, see_trusted
from lazyfs.snapshotter.messages import message_classes
from lazyfs.snapshotter.model import Mount, NoSnapshot
from lazyfs.snapshotter.mounts import overlay_options
from lazyfs.snapshotter.protocol import MOUNT
from lazyfs.snapshotter.server import address_of

SERVICE: Final = "containerd.services.diff.v1.Diff"
UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""The label that names a layer's diffID."""

_NS: Final = 10**9

MESSAGES: Final = message_classes(
    "containerd.services.diff.v1",
    {
        "DiffRequest": {
            "left": (1, "repeated Mount"),
            "right": (2, "repeated Mount"),
            "media_type": (3, "string"),
            "ref": (4, "string"),
            "labels": (5, "map"),
            "source_date_epoch": (6, "google.protobuf.Timestamp"),
        },
        "DiffResponse": {"diff": (3, "Descriptor")},
        "Mount": MOUNT,
        "Descriptor": {"media_type": (1, "string"), "digest": (2, "string"), "size": (3, "int64")},
    },
)

_log = logging.getLogger(__name__)


@contextmanager
def differ_of(
    root: Path, containerd: Path, namespace_of: Callable[[int], str]
) -> Iterator[grpc.GenericRpcHandler]:
    """The service, good as long as the block lasts.

    Args:
        root: the snapshotter's.
        containerd: its socket, where layers go.
        namespace_of: containerd's namespace of the snapshot with this id, or NoSnapshot; for a worker thread.

    Raises:
        ConfigError: there can be no such socket.
    """
    with grpc.insecure_channel(address_of(containerd)) as channel:
        yield _Service(root, channel, namespace_of)


class _Service(grpc.GenericRpcHandler):
    def __init__(self, root: Path, channel: grpc.Channel, namespace_of: Callable[[int], str]) -> None:
        self._root = root
        self._channel = channel
        self._namespace_of = namespace_of
        self._user_marks = overlay_options().user_xattrs

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler for a method; None if there is no such method."""
        if handler_call_details.method != f"/{SERVICE}/Diff":
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._diff,
            request_deserializer=MESSAGES["DiffRequest"].FromString,
            response_serializer=MESSAGES["DiffResponse"].SerializeToString,
        )

    def _diff(self, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return self._made(request, context)
        except (NotOurs, NoSnapshot, ContainerError) as error:
            _log.info("Diff: left to containerd: %s", error)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except OSError as error:
            if error.errno in NO_ROOM:  # what containerd's differ would fetch of the image needs more
                _log.info("Diff: %s", error)
                why = f"cannot write the layer to {self._root}: {error.strerror}"
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
            _log.warning("Diff: left to containerd: %s", error)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except ContentRefused as error:
            _log.warning("Diff: the layer goes nowhere: %s", error)
            away = error.code is grpc.StatusCode.UNAVAILABLE  # whoever asks us is there: we look elsewhere
            context.abort(grpc.StatusCode.UNIMPLEMENTED if away else error.code, error.details)
        except (trio.RunFinishedError, trio.Cancelled):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the snapshotter is ending")
        except Exception as error:  # noqa: BLE001  # a bug fails no commit: containerd can do it
            _log.exception("a bug in Diff")
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"a bug: {type(error).__name__}: {error}")
        raise AssertionError  # abort raises

    def _made(self, request: Any, context: grpc.ServicerContext) -> Any:
        compression = compression_of(request.media_type)
        snapshots = self._root / "snapshots"
        number, directory = changed_directory(_mounts(request.left), _mounts(request.right), snapshots)
        if not self._user_marks:
            see_trusted()
        store = ContentStore(self._channel, self._namespace_of(number))
        latest = request.source_date_epoch if request.HasField("source_date_epoch") else None
        latest_ns = None if latest is None else latest.seconds * _NS + latest.nanos
        with tempfile.TemporaryFile(dir=self._root) as file:
            layer = make_layer(
                directory,
                file.fileno(),
                compression,
                latest_ns,
                partial(_see_wanted, context),
                user_marks=self._user_marks,
            )
            file.seek(0)
            labels = {**request.labels, UNCOMPRESSED: layer.diff_id}
            store.put(file, layer.digest, layer.size, labels)
        diff = MESSAGES["Descriptor"](media_type=layer.media_type, digest=layer.digest, size=layer.size)
        return MESSAGES["DiffResponse"](diff=diff)


def _see_wanted(context: grpc.ServicerContext) -> None:
    """Who asked may have gone, or we may have to end.

    Raises:
        ContentRefused: nobody waits for the layer any more.
    """
    if not context.is_active():
        raise ContentRefused(grpc.StatusCode.CANCELLED, "nobody waits for the layer")


def _mounts(messages: Sequence[Any]) -> list[Mount]:
    return [Mount(one.type, one.source, tuple(one.options)) for one in messages]
