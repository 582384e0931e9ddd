"""What is said between the data daemon and those who ask it: one JSON line each way, one per connection.

    {"do": "assess", "order": {...}}   {"lazy": true} or {"lazy": false, "why": "..."}
    {"do": "mount", "order": {...}}    {"name": "...", "path": "/...", "driver": "erofs"}
    {"do": "release", "name": "..."}   {}
    {"do": "keep", "names": [...]}     {"released": [...]}    layers alone are kept anyway: they are others'
    {"do": "index", "order": {...}}    {"queued": true}
    {"do": "log_in", "image": "...", "entry": {...}, "proved": true}    {"new": true}    an entry of `auths`
    {"do": "log_out", "image": "...", "entry": {...}}   {}
    {"do": "list"}                     {"mounts": [{...}]}
    {"do": "stats"}                    {...}
    {"do": "explain", "image": "...", "paths": [...]}         {"images": [{...}]}    of all if both are empty
    any failure                        {"error": "one line", "code": 75}   a code of `lazyfs.exit_codes`

Each may be asked again when no answer came: none does anything twice.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import asdict

from indexer.errors import IndexerError
from lazyfs.errors import BadReference
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.descriptor import readable_digest

MAX_LINE: Final = 1 << 20
MAX_TEXT: Final = 4096
MAX_LAYERS: Final = 10_000

_NAME: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def is_name(text: object) -> bool:
    """Whether something can be a mount's name."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as its line."""
    return json.dumps(message).encode() + b"\n"


def decoded(line: bytes) -> dict[str, Any]:
    """The message of a line.

    Raises:
        BadReference: it is none.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise BadReference("a message is one line with a JSON object")
    return message


def order_fields(order: ChainOrder) -> dict[str, Any]:
    """An order as messages and files hold it."""
    return asdict(order)


def parse_order(fields: object) -> ChainOrder:
    """An order from a message or a file; digests have their form, nothing else is known of it.

    Raises:
        BadReference: it is none.
    """
    told = {"manifest": "", "chain_id": "", "alone": False, **fields} if isinstance(fields, dict) else {}
    match told:
        case {
            "image": str(image),
            "manifest": str(manifest),
            "layers": int(layers),
            "layer": str(layer),
            "chain_id": str(chain_id),
            "alone": bool(alone),
            **others,
        } if not (others or isinstance(layers, bool) or len(image) > MAX_TEXT):
            pass
        case _:
            raise BadReference(
                "an order has an image, a manifest, layers, a layer, a chain_id and alone, and no more"
            )
    if not 1 <= layers <= MAX_LAYERS:
        raise BadReference(f"an order for {layers} layers")
    for digest in (layer, manifest, chain_id):
        _check_digest(digest)
    if not layer:
        raise BadReference("an order without a layer")
    return ChainOrder(image, manifest, layers, layer, chain_id, alone)


def _check_digest(text: str) -> None:
    try:
        if text:
            readable_digest(text)
    except IndexerError:
        raise BadReference(f"not a digest: {text[:100]!r}") from None
