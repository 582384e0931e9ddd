"""Artifacts that others attached to images: indexes, signatures. Found in a registry or an OCI layout."""

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from indexer.errors import IndexerError
from lazyfs.errors import SourceError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.image_name import ImageName, LayoutImage, RegistryImage
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.oci.manifest import Index, Manifest, parse_document
from lazyfs.oci.media_types import MANIFEST_TYPES
from lazyfs.source.base import Blob, Source, SourceStatistics
from lazyfs.source.http.answers import failure
from lazyfs.source.http.routes import Routes
from lazyfs.source.http.settings import Capability, SourceSettings
from lazyfs.source.local.layout import Directory, read_layout_index
from lazyfs.source.local.source import REF_NAME, LocalSource
from lazyfs.source.once import Once
from lazyfs.source.open import open_registry
from lazyfs.source.registry.host import Host
from lazyfs.source.registry.referrers import Listing, list_referrers
from lazyfs.source.registry.source import ACCEPT, RegistrySource

MAX_CANDIDATES: Final = 64  # manifests of a layout that are opened to see what they refer to


class Attachments(Protocol):
    """One repository, asked for what is attached to images rather than for an image."""

    async def referrers(self, digest: str, *artifact_types: str) -> Sequence[Descriptor]:
        """Links to the artifacts of some types that refer to a manifest, type after type; none is no error.

        Raises:
            Unauthorized, Unreachable, SourceError: the repository does not tell.
            FormatError, LimitExceeded: what it tells makes no sense.
        """

    async def tagged(self, tag: str) -> bytes | None:
        """The manifest under a tag, whatever it is; None if there is none.

        Raises:
            Unauthorized, Unreachable, SourceError: the repository does not tell.
        """

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """As Source.document says."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """As Source.blob says."""

    async def prepare(self, connections: int) -> None:
        """As Source.prepare says."""

    def statistics(self) -> SourceStatistics:
        """As Source.statistics says."""


class RegistryAttachments:
    """Attachments in a repository of a registry. Each host is asked once what refers to a manifest.

    Args:
        source: the repository.
    """

    def __init__(self, source: RegistrySource) -> None:
        self._source = source
        self._listings: dict[tuple[Host, str], Once[Listing]] = {}
        self.document = source.document
        self.blob = source.blob
        self.prepare = source.prepare
        self.statistics = source.statistics

    async def referrers(self, digest: str, *artifact_types: str) -> Sequence[Descriptor]:
        """As Attachments.referrers says. A mirror that has none, or fails, leaves it to the registry."""
        *mirrors, registry = self._source.hosts
        for host in filter(lambda host: host.can(Capability.REFERRERS), mirrors):
            try:
                found = await self._listed(host, digest, artifact_types)
            except (SourceError, IndexerError):
                continue
            if found:
                return found
        return await self._listed(registry, digest, artifact_types)

    async def _listed(self, host: Host, digest: str, artifact_types: Sequence[str]) -> Sequence[Descriptor]:
        """What a host lists of some types. All types come by one request: more than one is wanted."""
        if (host, digest) not in self._listings:
            self._listings[host, digest] = Once(partial(list_referrers, host, digest, ""))
        listing = await self._listings[host, digest].get()
        return _of_types(listing.entries, artifact_types)

    async def tagged(self, tag: str) -> bytes | None:
        """As Attachments.tagged says."""
        host = self._source.hosts[-1]
        what = f"tag {tag!r} of {host.name}"
        reply = await host.request(
            "GET", f"/manifests/{tag}", what, headers={"Accept": ACCEPT}, max_bytes=MAX_DOCUMENT_BYTES
        )
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise failure(reply, what)
        return reply.body


class LocalAttachments:
    """Attachments in an OCI layout: manifests listed in `index.json`, as oras lists them.

    Args:
        index: what `index.json` says.
        directory: the layout.
    """

    def __init__(self, index: Index, directory: Directory) -> None:
        self._index = index
        source = LocalSource(Descriptor("", "", 0), directory)  # of no image: it is never resolved
        self.document = source.document
        self.blob = source.blob
        self.prepare = source.prepare
        self.statistics = source.statistics

    async def referrers(self, digest: str, *artifact_types: str) -> Sequence[Descriptor]:
        """As Attachments.referrers says; what cannot be read refers to nothing."""
        found = []
        for entry in _of_types(self._index.manifests, artifact_types)[:MAX_CANDIDATES]:
            try:
                manifest = parse_document(await self.document(entry), entry.media_type)
            except (IndexerError, SourceError):
                continue
            if isinstance(manifest, Manifest) and manifest.subject and manifest.subject.digest == digest:
                found.append(entry)
        return found

    async def tagged(self, tag: str) -> bytes | None:
        """As Attachments.tagged says."""
        for entry in self._index.manifests:
            if entry.annotations.get(REF_NAME) == tag and entry.media_type in MANIFEST_TYPES:
                return await self.document(entry)
        return None


def _of_types(entries: Sequence[Descriptor], artifact_types: Sequence[str]) -> tuple[Descriptor, ...]:
    return tuple(e for kind in artifact_types for e in entries if e.artifact_type == kind)


@asynccontextmanager
async def open_attachments(
    name: ImageName, settings: SourceSettings, source: Source | None = None, routes: Routes | None = None
) -> AsyncIterator[Attachments | None]:
    """What is attached to images in the repository of `name`; None where nothing can be, as in an archive.

    Args:
        name: an image there, of which tag and digest do not matter, or a layout.
        settings: how to reach registries.
        source: of that image, if it is open: its connections are used, not new ones.
        routes: as for `open_source`.

    Raises:
        NotFound: there is no such layout.
        FormatError, Unsupported: it is no layout that can be read.
        ConfigError: a certificate or key cannot be used.
    """
    match name:
        case RegistryImage() if isinstance(source, RegistrySource):
            yield RegistryAttachments(source)
        case RegistryImage(reference):
            async with open_registry(reference, settings, routes=routes) as opened:
                yield RegistryAttachments(opened)
        case LayoutImage(directory):
            with ExitStack() as stack:
                yield await trio.to_thread.run_sync(_open_layout, directory, stack)
        case _:
            yield None


def _open_layout(path: Path, stack: ExitStack) -> LocalAttachments:
    directory = stack.enter_context(Directory(path))
    index = read_layout_index(directory.read("oci-layout"), directory.read("index.json"))
    return LocalAttachments(index, directory)
