"""What can be done about what readers of an image wait for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lazyfs.image.indexes.indexing import IndexKind
from lazyfs.image.reading.traffic import Cause

_WORTH_S: Final = 0.1  # waits that are shorter are no matter


def advice(told: Mapping[str, Any]) -> list[str]:
    """What to do, in a line each.

    Args:
        told: what `lazyfs explain` prints of an image as JSON.
    """
    return list(_advice(told))


def _advice(told: Mapping[str, Any]) -> Iterator[str]:
    image = told["image"]
    if told.get("why_not") and any(not layer["toc"] for layer in told["layers"]):
        yield (
            f"publish indexes of its layers: lazyfs index --push {image}; "
            "for an image named by digest they must be signed (docs/trust.md)"
        )
    slow = [read for read in told["slowest"] if read["wait_s"] >= _WORTH_S]
    if any(not read["came"] for read in slow):
        yield "reads were answered with errors, or given up: the log says what the source did"
    waits: Counter[str] = Counter()
    for read in slow:
        waits[read["cause"]] += read["wait_s"]
    if waits:
        yield from _against(Cause(max(waits, key=waits.__getitem__)), told)


def _against(cause: Cause, told: Mapping[str, Any]) -> Iterator[str]:
    """What to do about the cause that most was waited for."""
    image = told["image"]
    foreign = any(layer["index"] not in {None, IndexKind.LAZYFS.value} for layer in told["layers"])
    match cause:
        case Cause.NETWORK if foreign:
            yield (
                "indexes of other tools have no boot packs: lazyfs index --push and optimize --push "
                f"make both of {image}"
            )
        case Cause.NETWORK:
            yield from _by_pack(told["boot"], image)
        case Cause.QUEUE:
            yield "requests waited for their turn: raise max_connections, or limit_rate_kib where it is set"
        case Cause.UNPACK if foreign:
            yield f"an index of lazyfs has smaller spans, which unpack sooner: lazyfs index --push {image}"
        case Cause.UNPACK:
            yield "unpacking took longer than fetching: this machine's processors are busy, or few"
        case Cause.PACK:
            yield (
                "this start reads in another order than its boot pack has: "
                f"lazyfs optimize --push --replace {image} COMMAND"
            )


def _by_pack(boot: Mapping[str, Any] | None, image: str) -> Iterator[str]:
    """What to do where the network was waited for."""
    if boot is None:
        yield "boot packs bring what a start reads at once: boot_pack = true in the configuration"
        return
    match boot["state"]:
        case "none":
            yield f"a boot pack brings what a start reads at once: lazyfs optimize --push {image} COMMAND"
        case "done":
            yield (
                "its boot pack lacks what was waited for: "
                f"lazyfs optimize --push {image} COMMAND adds what COMMAND reads"
            )
        case "failed" | "not used":
            yield f"its boot pack was of no use: lazyfs optimize --push --replace {image} COMMAND"
    yield 'background = "idle" in the configuration brings the rest while nobody waits'
