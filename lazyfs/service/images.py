"""What the daemon knows of images: which can be shown lazily, and those that are open.

An image is asked for once, however many of its layers are asked about, and by however many at once; what was
found is remembered. That an image cannot be shown lazily is remembered for a short time only: somebody may
publish its index.
"""

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple, Self

import trio
from msgspec import Struct
from msgspec.structs import replace

from indexer.errors import IndexerError
from lazyfs.assembly import Workshop, source_settings
from lazyfs.cache.cache import Cache
from lazyfs.config import Config
from lazyfs.errors import LazyfsError, NotFound, Unreachable
from lazyfs.exit_codes import message_of
from lazyfs.image.boot.packs import BootPacks
from lazyfs.image.boot.start import Boot, begin
from lazyfs.image.indexes.gathering import find_indexes, made_here
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.reading.traffic import Traffic
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import background_tasks
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.config import chain_ids
from lazyfs.oci.reference import parse_reference
from lazyfs.service.ordered import open_ordered, resolve_ordered
from lazyfs.service.pool import Pool
from lazyfs.source.auth.credentials import CredentialsProvider
from lazyfs.source.base import SourceStatistics
from lazyfs.source.http.routes import Routes

LOOK_UP_S: Final = 30.0
"""How long a question may take."""

_IDLE_S: Final = 60.0
_REMEMBERED: Final = 4096
_UNKNOWN_FOR_S: Final = 300.0  # a missing index
_FAILURE_FOR_S: Final = 20.0  # a registry that did not answer


class ImageKey(NamedTuple):
    """What makes an image another one, for us.

    Attributes:
        repository: where it is.
        tag: by which it was asked for; "" where that does not matter, as its manifest is known.
        manifest: its manifest's digest; "" if only the tag is known.
        pinned: whether the user named it by digest.
    """

    repository: str
    tag: str
    manifest: str
    pinned: bool

    @classmethod
    def of(cls, order: ChainOrder) -> Self:
        """That of the ordered image.

        Raises:
            BadReference: there can be none.
        """
        reference = parse_reference(order.image)
        tag = "" if order.manifest else reference.tag
        return cls(reference.name, tag, order.manifest or reference.digest, bool(reference.digest))


class OpenImage(Struct, frozen=True):
    """An image whose repository is open.

    Attributes:
        workshop: what works on it.
        resolved: what it is.
        indexed: the indexes that are to be had, by layer digest.
        key: that of its manifest, whatever it was asked for by.
        opened_at: when, in seconds of trio's clock.
        packs: knows of its boot packs; None where none are wanted.
        boot: its start, begun while its indexes were looked for, if it was opened because it may start soon.
    """

    workshop: Workshop
    resolved: ResolvedImage
    indexed: Mapping[str, IndexedLayer]
    key: ImageKey
    opened_at: float
    packs: BootPacks | None
    boot: Boot | None = None

    @property
    def missing(self) -> list[str]:
        """Digests of layers without an index."""
        layers = dict.fromkeys(layer.descriptor.digest for layer in self.resolved.layers)
        return [digest for digest in layers if digest not in self.indexed]

    def pinned(self, order: ChainOrder) -> ChainOrder:
        """The order, for this manifest whatever becomes of its tag."""
        return replace(order, manifest=self.resolved.descriptor.digest)

    def lowest(self, order: ChainOrder) -> ResolvedImage:
        """The image made of the ordered layers only.

        Raises:
            NotFound: these are no layers of it.
        """
        layers = self.resolved.layers
        check_layer(order, [layer.descriptor.digest for layer in layers])
        return replace(self.resolved, layers=layers[: order.layers])


def check_layer(order: ChainOrder, digests: Sequence[str]) -> None:
    """See that the ordered layer stands where the order says.

    Raises:
        NotFound: it does not.
    """
    if not (order.layers <= len(digests) and digests[order.layers - 1] == order.layer):
        there = f"{order.image}, which has {len(digests)}"
        raise NotFound(f"{order.layer} is not layer {order.layers} of {there}")


class Verdict(Struct, frozen=True):
    """What is remembered of an image.

    Attributes:
        why: why it cannot be shown lazily, in words; "" if it can.
        digests: of its layers.
        chain_ids: the chainIDs of its layers, as far as its indexes tell, else as its configuration claims.
        until: when it is to be looked at again, in seconds of trio's clock.
    """

    why: str
    digests: tuple[str, ...] = ()
    chain_ids: tuple[str, ...] = ()
    until: float = math.inf

    def why_not(self, order: ChainOrder) -> str:
        """Why an order for layers of this image cannot be shown lazily; "" if it can."""
        if self.why:
            return self.why
        try:
            check_layer(order, self.digests)
        except NotFound as error:
            return str(error)
        chain_id = self.chain_ids[order.layers - 1]
        if order.chain_id not in {"", chain_id}:
            return f"the chainID of its {order.layers} layers is {chain_id}, expected was {order.chain_id}"
        return ""


class Images:
    """Images by order. They share their connections.

    Args:
        nursery: where open ones live.
        config: the configuration.
        cache: the cache.
        traffic: where their boot packs take turns with other requests.
        given: credentials that go before the configured ones.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        config: Config,
        cache: Cache,
        traffic: Traffic,
        given: CredentialsProvider | None = None,
    ) -> None:
        self._config = config
        self._cache = cache
        self._traffic = traffic
        self._routes = Routes(source_settings(config, given))
        self._open: Pool[ImageKey, OpenImage] = Pool(nursery, _IDLE_S, attrgetter("key"))
        self._verdicts: OrderedDict[ImageKey, Verdict] = OrderedDict()
        self._looks = 0
        self._workshops: list[Workshop] = []
        self._past = SourceStatistics()  # of images that are closed

    def __repr__(self) -> str:
        return f"<Images {self._open!r}, {len(self._verdicts)} known, {self._looks} looked for>"

    def open_images(self) -> list[OpenImage]:
        """Those that are open now."""
        return self._open.open_values()

    def refusals(self) -> dict[ImageKey, str]:
        """Why images cannot be shown lazily, as far as that is remembered and holds still.

        By the key of the manifest, where that is known.
        """
        now = trio.current_time()
        found = {}
        for key, verdict in self._verdicts.items():
            if verdict.why and now <= verdict.until:
                opened = self._open.get(key)
                found[opened.key if opened is not None else key] = verdict.why
        return found

    def statistics(self) -> SourceStatistics:
        """What all images have cost so far, also those that are closed."""
        return sum((workshop.statistics() for workshop in self._workshops), start=self._past)

    async def assess(self, order: ChainOrder) -> str:
        """Why the ordered image cannot be shown lazily, in words; "" if it can.

        Asks whoever may have indexes at most once for each image, and never for longer than LOOK_UP_S.
        """
        try:
            key = ImageKey.of(order)
            verdict = self._verdicts.get(key)
            if verdict is not None and verdict.until < trio.current_time():
                self.forget(order)
                verdict = None
            if verdict is None:
                verdict = await self._look(key, order)
            return verdict.why_not(order)
        except (IndexerError, LazyfsError) as error:
            return message_of(error)

    def forget(self, order: ChainOrder) -> None:
        """Look at an image again when it is asked for next: something was done about its indexes."""
        key = ImageKey.of(order)
        self._verdicts.pop(key, None)
        self._open.renew(key)

    def lease(self, order: ChainOrder) -> AbstractAsyncContextManager[OpenImage]:
        """The ordered image, open.

        Raises:
            IndexerError: (on entry) something of it is damaged.
            LazyfsError: (on entry) something of it cannot be had.
        """
        key = ImageKey.of(order)
        return self._open.lease(key, partial(self._opened, order))

    async def _look(self, key: ImageKey, order: ChainOrder) -> Verdict:
        verdict = Verdict(f"no answer within {LOOK_UP_S:g} s", until=trio.current_time() + _FAILURE_FOR_S)
        with trio.move_on_after(LOOK_UP_S):
            try:
                async with self._newly_open(key, order) as image:
                    verdict = _verdict(image)
                    if image.boot is not None and verdict.why_not(order):
                        await _start_no_more(image, image.boot)
                if not key.manifest:  # its tag may move
                    verdict = replace(verdict, until=trio.current_time() + _UNKNOWN_FOR_S)
            except (IndexerError, LazyfsError) as error:
                verdict = Verdict(message_of(error), until=trio.current_time() + _FAILURE_FOR_S)
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > _REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict

    @asynccontextmanager
    async def _newly_open(self, key: ImageKey, order: ChainOrder) -> AsyncIterator[OpenImage]:
        """As `lease`, of an image that may start soon; what its tag meant long ago does not count."""
        opener = partial(self._opened, order, starting=True)
        if not key.manifest:
            async with self._open.lease(key, opener) as image:
                age_s = trio.current_time() - image.opened_at
            if age_s > _IDLE_S:
                self._open.renew(key)
        async with self._open.lease(key, opener) as image:
            yield image

    @asynccontextmanager
    async def _opened(self, order: ChainOrder, *, starting: bool = False) -> AsyncIterator[OpenImage]:
        self._looks += 1
        async with (
            open_ordered(order, self._config, self._cache, self._routes) as workshop,
            background_tasks() as nursery,
        ):
            packs = workshop.boot_packs if self._config.boot_pack else None
            boot: Boot | None = None
            try:
                with trio.fail_after(LOOK_UP_S):
                    async with workshop.foreseeing(order.manifest, order.layer) as seen:
                        resolved = await resolve_ordered(order, workshop, seen)
                        here = made_here(resolved, workshop.indexer)
                        if starting and packs is not None:
                            boot = begin(nursery, packs, resolved, self._traffic, here)
                        indexed = await find_indexes(resolved, workshop.indexer, workshop.finders, here)
            except trio.TooSlowError:
                raise Unreachable(f"{order.image}: no answer within {LOOK_UP_S:g} s") from None
            self._workshops.append(workshop)
            try:
                key = ImageKey.of(replace(order, manifest=resolved.descriptor.digest))
                yield OpenImage(workshop, resolved, indexed, key, trio.current_time(), packs, boot)
            finally:
                self._workshops.remove(workshop)
                self._past += workshop.statistics()


async def _start_no_more(image: OpenImage, boot: Boot) -> None:
    """No container of this image starts lazily now; one that does later may have a pack by then."""
    await boot.end()
    if image.packs is not None:
        await trio.to_thread.run_sync(image.packs.forget_absence, image.resolved)


def _verdict(image: OpenImage) -> Verdict:
    layers = image.resolved.layers
    digests = tuple(layer.descriptor.digest for layer in layers)
    missing = image.missing
    if missing:
        why = f"no index that may be used of {len(missing)} of {len(set(digests))} layers"
        return Verdict(why, until=trio.current_time() + _UNKNOWN_FOR_S)
    known = [image.indexed[digest].head.header.diff_id for digest in digests]
    diff_ids = [found or layer.diff_id for found, layer in zip(known, layers, strict=True)]
    return Verdict("", digests, tuple(chain_ids(diff_ids)))
