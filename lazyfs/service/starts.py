"""The starts of images, hastened from the moment when it is known that they can be lazy.

Who asks whether an image can be shown lazily most often starts a container of it next, some 0.1 to 0.5 s
later. By then its tree is compiled, and its boot pack is here or on its way: once for all who mount it.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import LazyfsError
from lazyfs.exit_codes import message_of
from lazyfs.image.boot.foresight import Process, foresee
from lazyfs.image.boot.start import Boot, booting, ending
from lazyfs.image.boot.unasked import bring_prioritised
from lazyfs.image.image import map_metadata
from lazyfs.image.indexes.compiling import compiled, compiled_alone
from lazyfs.image.reading.traffic import Traffic
from lazyfs.image.tasks import background_tasks
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.images import ImageKey, Images, OpenImage
from lazyfs.service.layers import Layers
from lazyfs.service.pool import Pool

_IDLE_S: Final = 10.0
_FIRST_S: Final = 0.05
"""For how long a boot pack goes first: once a tree is being compiled, asking for it takes longer."""

_log = logging.getLogger(__name__)


class Starts:
    """Starts by image.

    Args:
        nursery: where they live.
        images: what is started.
        layers: where their content goes.
        cache: where their trees are kept.
        traffic: where requests take turns.
    """

    def __init__(
        self, nursery: trio.Nursery, images: Images, layers: Layers, cache: Cache, traffic: Traffic
    ) -> None:
        self._nursery = nursery
        self._images = images
        self._layers = layers
        self._cache = cache
        self._traffic = traffic
        self._boots: Pool[ImageKey, Boot | None] = Pool(nursery, _IDLE_S)

    def __repr__(self) -> str:
        return f"<Starts {self._boots!r}>"

    def foresee(self, order: ChainOrder) -> None:
        """A container of the ordered image, which can be shown lazily, is about to start.

        Args:
            order: for the image; for a layer alone, if each of its layers is to be mounted.
        """
        if not order.manifest or ImageKey.of(order) not in self._boots:
            self._nursery.start_soon(self._start, order)

    def boot(self, key: ImageKey) -> Boot | None:
        """The start of an image, if its layers are open and a boot pack is of use."""
        return self._boots.get(key)

    def lease(self, order: ChainOrder) -> AbstractAsyncContextManager[Boot | None]:
        """The start of the whole ordered image, its layers open; None if no boot pack is wanted or of use.

        Args:
            order: of the image by its manifest.

        Raises:
            IndexerError: (on entry) something of the image is damaged.
            LazyfsError: (on entry) something of it cannot be had.
        """
        return self._boots.lease(ImageKey.of(order), partial(self._booting, order))

    async def _start(self, order: ChainOrder) -> None:
        try:
            async with self._images.lease(order) as image:
                if not (image.missing or image.key in self._boots):  # its tag may have moved
                    await self._start_open(image, image.pinned(order))
        except (IndexerError, LazyfsError) as error:
            _log.info("the start of %s is not foreseen: %s", order.image, message_of(error))
        except Exception:  # noqa: BLE001  # a bug here must not end the daemon; the mount does the same again
            _log.exception("a bug while the start of %s was foreseen", order.image)

    async def _start_open(self, image: OpenImage, order: ChainOrder) -> None:
        async with self.lease(order) as boot:
            if boot is not None:
                with trio.move_on_after(_FIRST_S):
                    await boot.find()
            compile_mounted = compiled_alone if order.alone else compiled
            tree = await compile_mounted(image.resolved, image.indexed, self._cache)
            if boot is not None:
                if await boot.find() is None:
                    if order.alone:
                        tree = await compiled(image.resolved, image.indexed, self._cache)
                    await self._bring_needed(image, order, tree)
                await boot.wait_over()
                if boot.statistics().state in {"none", "failed"}:  # who mounts it tries again
                    self._boots.renew(ImageKey.of(order))

    async def _bring_needed(self, image: OpenImage, order: ChainOrder, metadata_file: Path) -> None:
        """Bring what the image's own process needs; a container may have another, but that is not known."""
        config, tree = image.resolved.config, map_metadata(metadata_file)
        process = Process((*config.entrypoint, *config.cmd), config.env, config.working_dir)
        async with self._layers.lease_all(order, image.resolved.layers, image.indexed) as shown:
            await foresee(process, tree, [layer.lazy for layer in shown])

    @asynccontextmanager
    async def _booting(self, order: ChainOrder) -> AsyncIterator[Boot | None]:
        async with self._images.lease(order) as image:
            if image.packs is None or image.missing:
                yield None
                return
            resolved, indexed = image.resolved, image.indexed
            here = {digest for digest, index in indexed.items() if index.audited}
            begun = ending(image.boot) if image.boot is not None and not image.boot.is_over else None
            async with (
                begun or booting(image.packs, resolved, self._traffic, here) as boot,
                self._layers.lease_all(order, resolved.layers, indexed) as shown,
                background_tasks() as tasks,
                ending(boot),
            ):
                boot.attach({layer.names: layer.lazy for layer in shown})
                known = [(indexed[layer.names.layer_digest].head, layer.lazy) for layer in shown]
                tasks.start_soon(bring_prioritised, known, boot)
                yield boot
