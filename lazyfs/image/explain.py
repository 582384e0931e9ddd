"""Am I lazy, and what did it cost: how an open image is read, in values that people and programs are told."""

from typing import Any, Final

from lazyfs.image.boot.start import Boot
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import IndexedLayer, IndexKind, Voucher
from lazyfs.image.reading.histogram import BOUNDS_S
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import Purpose, Tally, Traffic, WaitTally

_KINDS: Final = {
    IndexKind.LAZYFS: "an index of lazyfs",
    IndexKind.ESTARGZ: "the table that eStargz writes into the layer",
    IndexKind.ZSTD_CHUNKED: "the table that zstd:chunked writes into the layer",
    IndexKind.SOCI: "a SOCI index beside the image",
}


def explanation(image: Image) -> dict[str, Any]:
    """How an image is read, and what that has cost so far."""
    layers = {
        names.layer_digest: layer_facts(image.indexed[list(image.layers).index(layer)], layer)
        for names, layer in image.by_names.items()
    }
    sizes = {layer.descriptor.digest: layer.descriptor.size for layer in image.resolved.layers}
    return {
        "lazy": not all(layer["complete"] for layer in layers.values()),
        "layers": [{"digest": digest, "size": sizes[digest], **layers[digest]} for digest in layers],
        "boot": boot_facts(image.boot),
        "traffic": traffic_facts(image.traffic),
        "slowest": slowest_facts(image.traffic),
    }


def boot_facts(boot: Boot | None) -> dict[str, Any] | None:
    """What became of a boot pack; None where there is to be none."""
    if boot is None:
        return None
    statistics = boot.statistics()
    return {"state": statistics.state, "why": statistics.why, "leaves": statistics.leaves}


def layer_facts(index: IndexedLayer, layer: LazyLayer) -> dict[str, Any]:
    """By what an open layer is read, how much of it is here, and what that has cost so far."""
    statistics = layer.statistics()
    entry = layer.entry.statistics()
    return {
        "toc": index.head.digest,
        "index": index.kind.value,
        "why": why_lazy(index),
        "present": entry.present,
        "leaves": entry.leaves,
        "complete": entry.present == entry.leaves,
        "read_whole": layer.much_read.is_set(),
        "hits": statistics.hits,
        "misses": statistics.misses,
        "fetched": statistics.fetched.bytes_fetched,
    }


def unread_facts(toc: str, index: IndexedLayer | None) -> dict[str, Any]:
    """The same of a layer that nobody reads now; how much of it is here has to be looked for.

    Args:
        toc: digest of its table; "" if there is none.
        index: its index, if it is open.
    """
    why = "a table that is not open now" if toc else "no index that may be used"
    return {
        "toc": toc,
        "index": index.kind.value if index is not None else None,
        "why": why_lazy(index) if index is not None else why,
        "present": 0,
        "leaves": 0,
        "complete": False,
        "read_whole": False,
        "hits": 0,
        "misses": 0,
        "fetched": 0,
    }


def why_lazy(index: IndexedLayer) -> str:
    """By what a layer is read, and who vouches for that, in words."""
    if index.kind is IndexKind.LAZYFS and index.audited:
        return "an index of lazyfs that was made or audited here"
    vouched = ", which the manifest vouches for" if index.vouched_by is Voucher.MANIFEST else ""
    where = " that was found" if index.kind is IndexKind.LAZYFS else ""
    return f"{_KINDS[index.kind]}{where}{vouched}"


def traffic_facts(traffic: Traffic | Tally) -> dict[str, Any]:
    """What was asked for whom."""
    counts = traffic.counts()
    return {
        purpose.value: {"requests": counts[purpose].requests, "bytes": counts[purpose].bytes}
        for purpose in Purpose
    }


def waits_facts(traffic: Traffic) -> dict[str, Any]:
    """How long reads waited, by what for: a histogram whose last count is that of all."""
    return {cause.value: {"bounds": BOUNDS_S, **seen._asdict()} for cause, seen in traffic.waits().items()}


def slowest_facts(traffic: Traffic | WaitTally) -> list[dict[str, Any]]:
    """The reads that waited longest."""
    return [
        {
            "wait_s": round(read.wait_s, 6),
            "at_s": round(read.at_s, 6),
            "layer": read.layer.layer_digest,
            "toc": read.layer.toc_digest,
            "start": read.start,
            "size": read.size,
            "cause": read.cause.value,
            "came": read.came,
        }
        for read in traffic.slowest()
    ]
