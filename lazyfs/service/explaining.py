"""How the daemon's images are read, and what that has cost: told of each, from what is known here.

Layers are counted one by one; what belongs to several images counts for each of them. Nobody is asked, and
nothing is opened.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import trio
from msgspec import Struct, field
from msgspec.structs import replace

from indexer.boot_pack import PackLayer
from indexer.errors import IndexerError
from lazyfs.cache.cache import Cache
from lazyfs.errors import NotFound
from lazyfs.image.boot.start import Boot
from lazyfs.image.explain import boot_facts, layer_facts, slowest_facts, traffic_facts, unread_facts
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.reading.traffic import Purpose, Tally, WaitTally
from lazyfs.oci.image_name import RegistryImage, parse_image
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.service.chains import Chains
from lazyfs.service.content import Content
from lazyfs.service.images import ImageKey, OpenImage
from lazyfs.service.ledger import Entry

_SLOWEST: Final = 10  # of each image

Row = dict[str, Any]


class _Subject(Struct, eq=False):
    """An image to be told of.

    Attributes:
        repository: where it is.
        manifest: its manifest's digest; "" if it was never seen.
        keys: by which it is known.
        names: by which it was asked for, as far as they are remembered.
        mounts: what is told of its mounts.
        layers: those that its mounts read.
        opened: the image, if it is open.
        why: why it cannot be shown lazily; "" if it can.
    """

    repository: str
    manifest: str
    keys: set[ImageKey] = field(default_factory=set)
    names: dict[Reference, None] = field(default_factory=dict)
    mounts: list[Row] = field(default_factory=list)
    layers: dict[PackLayer, None] = field(default_factory=dict)
    opened: OpenImage | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        return str(next(iter(self.names), self.repository))

    def call(self, reference: Reference) -> None:
        """It was asked for by this name."""
        if reference.tag:
            self.names.setdefault(replace(reference, digest=""))

    def is_called(self, reference: Reference) -> bool:
        """Whether a name is one of this image's, as far as its tags are known."""
        if reference.name != self.repository:
            return False
        if reference.digest:
            return reference.digest == self.manifest
        tags = {name.tag for name in self.names}
        return not tags or reference.tag in tags

    def all_layers(self) -> Iterator[PackLayer]:
        """Those that its mounts read, and those that the image has besides, the lowest first.

        Where no table is known, it is "".
        """
        found = self.opened.resolved.layers if self.opened is not None else ()
        read = [names.layer_digest for names in self.layers]
        for digest in dict.fromkeys([*(layer.descriptor.digest for layer in found), *read]):
            index = self.index_of(digest)
            known = PackLayer(digest, index.head.digest if index is not None else "")
            yield from [names for names in self.layers if names.layer_digest == digest] or [known]

    def index_of(self, digest: str) -> IndexedLayer | None:
        """The index of a layer, if the image is open and has it."""
        return self.opened.indexed.get(digest) if self.opened is not None else None

    def size_of(self, digest: str) -> int:
        """Compressed bytes of a layer; 0 if that is not known."""
        layers = self.opened.resolved.layers if self.opened is not None else ()
        found = [layer.descriptor.size for layer in layers if layer.descriptor.digest == digest]
        return next(iter(found), 0)


class Explainer:
    """Tells of images.

    Args:
        content: what is read, and by which images.
        chains: what is mounted of it.
        cache: where layers are kept that are not open.
    """

    def __init__(self, content: Content, chains: Chains, cache: Cache) -> None:
        self._images = content.images
        self._starts = content.starts
        self._layers = content.layers
        self._fuse = content.fuse
        self._chains = chains
        self._cache = cache

    async def explain(self, image: str = "", paths: Collection[str] = ()) -> list[Row]:
        """What there is to tell of each image.

        Args:
            image: of those with this name or manifest's digest only.
            paths: of those that are mounted at one of these only.

        Raises:
            BadReference: `image` can be no name.
            NotFound: there is no such image here.
        """
        told = []
        for subject in self._chosen(image, paths):
            told.append((subject, self._of_open(subject)))
            await trio.lowlevel.checkpoint()  # readers first
        rows = [row for _, facts in told for row in facts["layers"] if row["toc"] and not row["leaves"]]
        await trio.to_thread.run_sync(_look_up, rows, self._cache)
        return [_judged(subject, facts) for subject, facts in told]

    def _chosen(self, image: str, paths: Collection[str]) -> list[_Subject]:
        subjects = sorted(self._subjects(), key=lambda subject: (subject.name, subject.manifest))
        if image:
            reference = None if image.startswith("sha256:") else parse_reference(image)
            found = [
                each
                for each in subjects
                if (each.manifest == image if reference is None else each.is_called(reference))
            ]
            if not found:
                raise NotFound(f"the daemon has neither mounted nor lately opened {image}")
            return found
        if paths:
            at = set(paths)
            found = [each for each in subjects if any(mount["path"] in at for mount in each.mounts)]
            if not found:
                raise NotFound("the daemon has nothing mounted there")
            return found
        return subjects

    def _subjects(self) -> Iterable[_Subject]:
        subjects: dict[tuple[str, str], _Subject] = {}

        def subject(key: ImageKey) -> _Subject:
            found = subjects.setdefault(
                (key.repository, key.manifest), _Subject(key.repository, key.manifest)
            )
            found.keys.add(key)
            return found

        entries = {entry.name: entry for entry in (*self._chains.entries(), *self._chains.idle())}
        read_by = self._read_by(entries.values())
        for listed in self._chains.listed():
            entry = entries.get(listed["name"])
            if entry is not None:
                about = subject(ImageKey.of(entry.order))
                about.call(parse_reference(entry.order.image))
                about.mounts.append(_mount(listed))
                about.layers |= dict.fromkeys(read_by.get(entry.name, ()))
        for opened in self._images.open_images():
            about = subject(opened.key)
            about.opened = opened
            name = parse_image(opened.resolved.name)
            if isinstance(name, RegistryImage):
                about.call(name.reference)
        for key, why in self._images.refusals().items():
            about = subject(key)
            about.why = "" if about.mounts else why
            if key.tag:
                about.call(parse_reference(f"{key.repository}:{key.tag}"))
        return subjects.values()

    def _read_by(self, entries: Iterable[Entry]) -> dict[str, list[PackLayer]]:
        """The layers that mounts read, by their names; of what is to be mounted again, none."""
        files = {file.inode: PackLayer(file.layer, file.toc) for file in self._layers.saved() if file.layer}
        found = {
            entry.name: [files[number] for number in entry.devices if number in files]
            for entry in entries
            if entry.name in self._chains
        }
        for tree in self._fuse.saved():
            found.setdefault(tree.name, []).extend(PackLayer(*pair) for pair in tree.layers)
        return found

    def _of_open(self, subject: _Subject) -> Row:
        """What is known of what is open now."""
        tally, waits = Tally(), WaitTally()
        rows: list[Row] = []
        for names in subject.all_layers():
            digest, layer = names.layer_digest, self._layers.shown(names)
            if layer is None:
                index = subject.index_of(digest)
                known = index if index is not None and index.head.digest == names.toc_digest else None
                facts = unread_facts(names.toc_digest, known)
                rows.append({"digest": digest, "size": subject.size_of(digest), **facts})
                continue
            size = layer.indexed.head.header.layer_size
            rows.append({"digest": digest, "size": size, **layer_facts(layer.indexed, layer.lazy)})
            for purpose, count in layer.lazy.statistics().fetched.asked.items():
                tally.count(purpose, count.bytes, requests=count.requests)
            for read in layer.waits.slowest():
                waits.waited(read)
        boot = self._boot(subject)
        if boot is not None:
            tally.count(Purpose.PACK, boot.asked.bytes, requests=boot.asked.requests)
        return {
            "layers": rows,
            "boot": _boot_told(subject, boot),
            "traffic": traffic_facts(tally),
            "slowest": slowest_facts(waits)[:_SLOWEST],
            "cache_dir": str(self._cache.root),
        }

    def _boot(self, subject: _Subject) -> Boot | None:
        found = [boot for boot in map(self._starts.boot, subject.keys) if boot is not None]
        return next(iter(found), subject.opened.boot if subject.opened is not None else None)


def _mount(listed: Mapping[str, Any]) -> Row:
    place = {name: listed[name] for name in ("path", "driver", "state", "layers", "alone")}
    return {**place, "why": listed.get("why", "")}


def _boot_told(subject: _Subject, boot: Boot | None) -> Row | None:
    if boot is not None:
        return boot_facts(boot)
    if subject.opened is not None and subject.opened.packs is None:
        return None
    why = "mounted by a daemon before this one" if subject.mounts else "not mounted"
    return {"state": "unknown", "why": why, "leaves": 0}


def _look_up(rows: Iterable[Row], cache: Cache) -> None:
    """Add how much of layers is here that nobody reads. Blocks for the disk."""
    for row in rows:
        with suppress(IndexerError):
            info = cache.info(row["digest"], row["toc"])
            if info is not None:
                whole = info.present == info.leaves
                row.update(present=info.present, leaves=info.leaves, complete=whole)


def _judged(subject: _Subject, facts: Row) -> Row:
    """All that is told of an image."""
    layers = facts["layers"]
    complete = bool(layers) and all(layer["complete"] for layer in layers)
    return {
        "image": subject.name,
        "digest": subject.manifest,
        "lazy": not (subject.why or complete),
        "why_not": subject.why,
        "mounts": subject.mounts,
        **facts,
    }
