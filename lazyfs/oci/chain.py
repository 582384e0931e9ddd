"""The layers below a point of an image, counted from the bottom: what containerd calls a chain."""

from collections.abc import Sequence
from hashlib import sha256

from msgspec import Struct


class ChainOrder(Struct, frozen=True):
    """A question about the lowest `layers` layers of one image, as containerd's clients put it in labels.

    Nothing of it has been checked: labels are what a stranger's client says.

    Attributes:
        image: the pull reference as the client gave it, with a tag, a digest or both.
        manifest: digest of the platform's manifest; "" where the client does not tell.
        layers: how many layers of the manifest, from the bottom; at least 1.
        layer: digest of the topmost of them, compressed.
        chain_id: the chainID of these layers that containerd expects (OCI image specification, config.md,
            "Layer ChainID"); "" where unknown.
        alone: whether of these layers only the topmost is wanted, as a lower directory of overlayfs.
    """

    image: str
    manifest: str
    layers: int
    layer: str
    chain_id: str
    alone: bool = False


def chain_name(layers: Sequence[str], *, alone: bool = False) -> str:
    """The name of the mount of a chain, by which the snapshotter and the daemon mean the same: 32 hex digits.

    Args:
        layers: the layers' digests, compressed, the lowest first.
        alone: as ChainOrder.alone says.
    """
    text = "\n".join([*layers, "alone"] if alone else layers)
    return sha256(text.encode()).hexdigest()[:32]
