"""How the data daemon is started, and how that is told to its process."""

import json
import os
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from lazyfs.config import Config, load_config

CONTAINERD_STORE: Final = Path("/var/lib/containerd/io.containerd.content.v1.content")
"""Where containerd keeps its content store, unless it is told otherwise."""

HUNG_AFTER_S: Final = 60.0
LINGER_S: Final = 60.0


class ServiceOptions(Struct, frozen=True):
    """How the daemon is started.

    Attributes:
        root: where its mounts and orders are, without symlinks.
        socket: where it listens.
        content_store: containerd's content store, whose blobs need not be downloaded to be indexed; or None.
        driver: who presents trees: "erofs", "fuse", or "auto" for the first that works here.
        hung_after_s: seconds without a sign of life after which the daemon's process is killed and another
            one started; 0 for never.
        linger_s: seconds for which a mount that nobody uses any more is kept for the next container.
        layer_store: where layers are shown to Podman and CRI-O, without symlinks; None for nowhere.
    """

    root: Path
    socket: Path
    content_store: Path | None = None
    driver: str = "auto"
    hung_after_s: float = HUNG_AFTER_S
    linger_s: float = LINGER_S
    layer_store: Path | None = None

    @property
    def forest(self) -> Path:
        """Where the layers' files are shown."""
        return self.root / "layers"

    @property
    def mounts(self) -> Path:
        """Where chains are mounted."""
        return self.root / "mounts"


def encode_options(options: ServiceOptions, config: Config) -> bytes:
    """Both, for another process of ours."""
    store = options.content_store
    told: dict[str, Any] = {
        "root": str(options.root),
        "socket": str(options.socket),
        "content_store": str(store) if store else None,
        "driver": options.driver,
        "hung_after_s": options.hung_after_s,
        "linger_s": options.linger_s,
        "layer_store": str(options.layer_store) if options.layer_store else None,
        "config": config.as_flags(),
    }
    return json.dumps(told).encode()


def decode_options(data: bytes) -> tuple[ServiceOptions, Config]:
    """What `encode_options` was given."""
    told = json.loads(data)
    store = Path(told["content_store"]) if told["content_store"] else None
    layer_store = Path(told["layer_store"]) if told["layer_store"] else None
    config = load_config({"HOME": "/"}, told["config"], Path(os.devnull))
    options = ServiceOptions(
        root=Path(told["root"]),
        socket=Path(told["socket"]),
        content_store=store,
        driver=str(told["driver"]),
        hung_after_s=float(told["hung_after_s"]),
        linger_s=float(told["linger_s"]),
        layer_store=layer_store,
    )
    return options, config
