"""What a live mount tells of itself."""

from collections import Counter
from typing import Any

import trio
from msgspec.structs import asdict

from lazyfs.assembly import Workshop
from lazyfs.image.auditing.auditor import Auditor
from lazyfs.image.boot.trace import Tracer
from lazyfs.image.explain import explanation, traffic_facts, waits_facts
from lazyfs.image.image import Image
from lazyfs.image.reading.reads import reads_of, sum_of
from lazyfs.mount_states import MountFacts


async def answers(
    ask: str, facts: MountFacts, workshop: Workshop, image: Image, auditor: Auditor, tracer: Tracer
) -> dict[str, Any]:
    """The answer to a question about a live mount."""
    if ask == "trace":
        return await trio.to_thread.run_sync(lambda: tracer.trace().as_json())
    if ask == "explain":
        return {**asdict(facts), **explanation(image), "cache_dir": str(workshop.cache.root)}
    if ask != "stats":
        raise ValueError(ask)
    return {**asdict(facts), **statistics(workshop, image), "audit": asdict(auditor.statistics())}


def statistics(workshop: Workshop, image: Image) -> dict[str, Any]:
    """What an open image has cost and given so far."""
    source = workshop.statistics()
    return {
        "requests": source.control_requests + source.data_requests,
        "bytes": source.control_bytes + source.data_bytes,
        "source": asdict(source),
        "reads": sum_of(map(reads_of, image.by_names.values()))._asdict(),
        "boot": asdict(image.boot.statistics()) if image.boot else None,
        "traffic": traffic_facts(image.traffic),
        "waits": waits_facts(image.traffic),
        "indexes": Counter(index.kind.value for index in image.indexed),
        "image_bytes": sum(layer.descriptor.size for layer in image.resolved.layers),
    }


async def tell_metrics(
    address: str, workshop: Workshop, image: Image, *, task_status: trio.TaskStatus[int]
) -> None:
    """Serve the mount's metrics at "HOST:PORT", until cancelled."""
    from lazyfs.metrics import serve_mount_metrics  # noqa: PLC0415  # seldom wanted

    def facts() -> dict[str, Any]:
        return {**statistics(workshop, image), "mounts": 1}

    await serve_mount_metrics(address, facts, workshop.cache, task_status=task_status)
