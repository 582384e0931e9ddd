"""Answers the questions of `lazyfs.service.protocol`."""

import os
from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict

from lazyfs.cache.cache import Cache
from lazyfs.errors import BadReference
from lazyfs.image.explain import slowest_facts, traffic_facts, waits_facts
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.chains import Chains
from lazyfs.service.content import Content
from lazyfs.service.explaining import Explainer
from lazyfs.service.indexing import IndexQueue
from lazyfs.service.protocol import is_name, parse_order
from lazyfs.service.pulls import PullCredentials


class Desk:
    """Answers questions.

    Args:
        content: what is read.
        chains: what is mounted of it.
        queue: what is to be indexed.
        pulls: takes the credentials of pulls.
        cache: where layers are kept.
    """

    def __init__(
        self, content: Content, chains: Chains, queue: IndexQueue, pulls: PullCredentials, cache: Cache
    ) -> None:
        self._content = content
        self._chains = chains
        self._queue = queue
        self._pulls = pulls
        self._explainer = Explainer(content, chains, cache)

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a question.

        Raises:
            BadReference: it is none.
            IndexerError, LazyfsError: what was ordered cannot be done.
        """
        match question:
            case {"do": "assess", "order": fields}:
                return await self._assess(parse_order(fields))
            case {"do": "mount", "order": fields}:
                mounted = await self._chains.mount(parse_order(fields))
                return {"name": mounted.name, "path": str(mounted.path), "driver": mounted.driver}
            case {"do": "release", "name": str(name)}:
                await self._chains.release(name)
                return {}
            case {"do": "keep", "names": list(names)} if all(map(is_name, names)):
                return {"released": await self._chains.keep(names)}
            case {"do": "index", "order": fields}:
                return {"queued": self._queue.add(parse_order(fields))}
            case {"do": "log_in", "image": str(image), "entry": dict(entry), "proved": bool(proved)}:
                return {"new": self._pulls.log_in(image, entry, proved=proved)}
            case {"do": "log_out", "image": str(image), "entry": dict(entry)}:
                self._pulls.log_out(image, entry)
                return {}
            case {"do": "list"}:
                return {"mounts": self._chains.listed()}
            case {"do": "stats"}:
                return self.statistics()
            case {"do": "explain", "image": str(image), "paths": list(paths)}:
                return {"images": await self._explainer.explain(image, [str(path) for path in paths])}
        raise BadReference(f"no such question: {str(question.get('do'))[:200]}")  # the rest may be secret

    async def _assess(self, order: ChainOrder) -> dict[str, Any]:
        why = await self._content.images.assess(order)
        if why:
            return {"lazy": False, "why": why}
        self._content.starts.foresee(order)
        return {"lazy": True}

    def statistics(self) -> dict[str, Any]:
        """What was read, fetched and waited for so far."""
        images, layers, traffic = self._content.images, self._content.layers, self._content.traffic
        files, trees = layers.saved(), self._content.fuse.saved()
        return {
            "pid": os.getpid(),
            "mounts": len(self._chains.listed()),
            "images": len(images.open_images()),
            "layers": len(layers.open_layers()),
            "in_use": {"files": sum(file.opens > 0 for file in files), "trees": len(trees)},
            "indexing": self._queue.statistics()._asdict(),
            "reads": layers.reads()._asdict(),
            "traffic": traffic_facts(traffic),
            "waits": waits_facts(traffic),
            "slowest": slowest_facts(traffic),
            "source": asdict(images.statistics()),
            "sources": [asdict(image.workshop.statistics()) for image in images.open_images()],
        }
