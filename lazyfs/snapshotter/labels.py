"""What containerd's clients say of a layer in labels, as an order for its chain.

CRI, the transfer service and soci rpull send `containerd.io/snapshot/cri.` with `image-ref`,
`manifest-digest`, `layer-digest` and `image-layers`; ctr-remote rpull sends
`containerd.io/snapshot/remote/stargz.` with `reference`, `digest` and `layers`.

All clients also pass on whatever annotations with that prefix the image's manifest has, so any label here may
have been written by the image's author. A client's own values replace an annotation of the same name, never
one of the other set: where both sets are there and disagree, neither is believed. Labels that would weaken
checks, or choose an index or a server (`stargz.skipverify`, `toc.digest`, `soci.index.digest`,
`remote/urls`), are not looked at.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from lazyfs.oci.chain import ChainOrder

REF: Final = "containerd.io/snapshot.ref"
"""The chainID that the snapshot is to stand for once it is committed."""

_CRI: Final = "containerd.io/snapshot/cri."
_STARGZ: Final = "containerd.io/snapshot/remote/stargz."
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class _Said(Struct, frozen=True):
    image: str
    manifest: str
    layer: str
    above: str


def order_of(labels: Mapping[str, str], depth: int) -> ChainOrder | None:
    """The order for the chain that ends with the layer which the labels name; None if they do not name one.

    Args:
        labels: those of a Prepare call.
        depth: how many layers the chain has: one more than the parent's.
    """
    said = _said(labels)
    chain_id = labels.get(REF, "")
    if said is None or not said.image or not _DIGEST.fullmatch(said.layer) or not _DIGEST.fullmatch(chain_id):
        return None
    if said.manifest and not _DIGEST.fullmatch(said.manifest):
        return None
    return ChainOrder(said.image, said.manifest, depth, said.layer, chain_id)


def is_top(labels: Mapping[str, str]) -> bool:
    """Whether no layer of the image stands above this one: the client lists this layer and those above."""
    said = _said(labels)
    return said is not None and said.above == said.layer


def _said(labels: Mapping[str, str]) -> _Said | None:
    cri = _Said(
        labels.get(_CRI + "image-ref", ""),
        labels.get(_CRI + "manifest-digest", ""),
        labels.get(_CRI + "layer-digest", ""),
        labels.get(_CRI + "image-layers", ""),
    )
    stargz = _Said(
        labels.get(_STARGZ + "reference", ""),
        "",
        labels.get(_STARGZ + "digest", ""),
        labels.get(_STARGZ + "layers", ""),
    )
    if not stargz.image or not cri.image:
        return cri if cri.image else stargz if stargz.image else None
    agree = (cri.image, cri.layer) == (stargz.image, stargz.layer)
    return cri if agree else None
