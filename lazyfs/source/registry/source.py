"""An image in a registry, as a Source."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, FormatError, LimitExceeded
from lazyfs.errors import ConfigError
from lazyfs.oci.descriptor import UNKNOWN_SIZE, Descriptor, checked_digest, readable_digest
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.oci.manifest import parse_document
from lazyfs.oci.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCUMENT_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    essence,
)
from lazyfs.oci.reference import Reference
from lazyfs.source.base import SourceStatistics
from lazyfs.source.checks import check_document
from lazyfs.source.counters import Counters
from lazyfs.source.http.answers import failure
from lazyfs.source.http.control import Reply
from lazyfs.source.http.pool import RangeClient
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.settings import Capability
from lazyfs.source.registry.blob import RegistryBlob
from lazyfs.source.registry.host import Host
from lazyfs.source.registry.locator import Locator
from lazyfs.source.registry.places import ask_in_turn

T = TypeVar("T")

ACCEPT: Final = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}"


class RegistrySource:
    """A `base.Source`: one reference, and the hosts that may serve it, tried in order.

    Args:
        reference: the image.
        hosts: mirrors and the registry itself, at least one.
        ranges: for URLs that descriptors name themselves.
        policy: how patient to be with such URLs.
        counters: of everything this source does.
    """

    def __init__(
        self,
        reference: Reference,
        hosts: Sequence[Host],
        ranges: RangeClient,
        policy: RetryPolicy,
        counters: Counters,
    ) -> None:
        self._reference = reference
        self._hosts = tuple(hosts)
        self._ranges = ranges
        self._policy = policy
        self._counters = counters
        self._kept: tuple[str, bytes] | None = None
        self._blobs: dict[tuple[str, int], RegistryBlob] = {}

    def __repr__(self) -> str:
        return f"<RegistrySource {self._reference} {self.statistics()}>"

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Who serves this repository, for requests beyond those of a Source."""
        return self._hosts

    def statistics(self) -> SourceStatistics:
        """What this source has cost so far."""
        return self._counters.snapshot()

    async def prepare(self, connections: int) -> None:
        """As Source.prepare says."""
        host = next((host for host in self._hosts if host.can(Capability.PULL)), None)
        if host is not None:
            await host.prepare(connections)

    async def resolve(self, *, probe: bool = False, patient: bool = True) -> Descriptor:
        """As Source.resolve says."""
        if self._reference.digest:
            return Descriptor("", readable_digest(self._reference.digest), UNKNOWN_SIZE)
        return await self._first(Capability.RESOLVE, partial(self._resolve_at, probe=probe, patient=patient))

    async def _resolve_at(self, host: Host, *, probe: bool, patient: bool) -> Descriptor:
        what = f"tag {self._reference.tag!r} of {host.name}"
        path = f"/manifests/{self._reference.tag}"
        if probe:
            head = await host.request("HEAD", path, what, headers={"Accept": ACCEPT}, patient=patient)
            found = _descriptor_of_head(head)
            if found:
                return found
        reply = await host.request(
            "GET", path, what, headers={"Accept": ACCEPT}, max_bytes=MAX_DOCUMENT_BYTES, patient=patient
        )
        if reply.status != 200:
            raise failure(reply, what)
        digest = sha256_digest(reply.body)
        promised = reply.header("docker-content-digest")
        if promised.startswith("sha256:") and promised != digest:
            raise DigestMismatch(what, promised, digest)
        document = parse_document(reply.body, reply.header("content-type"))
        self._kept = (digest, reply.body)
        return Descriptor(document.media_type, digest, len(reply.body))

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """As Source.document says."""
        digest = readable_digest(descriptor.digest)
        if descriptor.size > max_bytes:
            raise LimitExceeded(f"document {digest}: {descriptor.size} bytes, more than {max_bytes}")
        if self._kept and self._kept[0] == digest:
            return check_document(self._kept[1], descriptor)
        if descriptor.media_type and descriptor.media_type not in DOCUMENT_TYPES:
            return check_document(await self.blob(descriptor).fetch(0, descriptor.size, bytes), descriptor)
        return await self._first(Capability.PULL, lambda host: self._manifest_at(host, descriptor, max_bytes))

    async def _manifest_at(self, host: Host, descriptor: Descriptor, max_bytes: int) -> bytes:
        what = f"manifest {descriptor.digest} of {host.name}"
        reply = await host.request(
            "GET", f"/manifests/{descriptor.digest}", what, headers={"Accept": ACCEPT}, max_bytes=max_bytes
        )
        if reply.status != 200:
            raise failure(reply, what)
        return check_document(reply.body, descriptor)

    def blob(self, descriptor: Descriptor) -> RegistryBlob:
        """As Source.blob says; the same blob for the same descriptor, so that its readers share its place."""
        key = (readable_digest(descriptor.digest), descriptor.size)
        if key not in self._blobs:
            self._blobs[key] = self._new_blob(descriptor)
        return self._blobs[key]

    def _new_blob(self, descriptor: Descriptor) -> RegistryBlob:
        locators = []
        for host in self._able(Capability.PULL):
            what = f"blob {descriptor.digest} of {host.name}"
            url = host.url(f"/blobs/{descriptor.digest}")
            locators.append(Locator(url, what, host.get_range, host.policy, self._counters, host.rest))
        home = locators[-1]
        for url in descriptor.urls:
            what = f"blob {descriptor.digest} at its own URL"
            locators.append(Locator(url, what, self._ranges.get, self._policy, self._counters))
        what = f"blob {descriptor.digest} of {self._reference.name}"
        return RegistryBlob(descriptor.size, what, locators, home, self._counters)

    def _able(self, capability: Capability) -> list[Host]:
        """The hosts to ask, the registry itself last."""
        able = [host for host in self._hosts if host.can(capability)]
        if not able:
            raise ConfigError(
                f"{self._reference.registry}: no host in its hosts.toml is said to {capability}"
            )
        return able

    async def _first(self, capability: Capability, ask: Callable[[Host], Awaitable[T]]) -> T:
        """What the first host gives that has it; the last host is the registry, whose error counts."""
        able = self._able(capability)
        return await ask_in_turn(able, able[-1], ask)


def _descriptor_of_head(reply: Reply) -> Descriptor | None:
    """What a HEAD told, or None where it was refused or left something out."""
    media_type = essence(reply.header("content-type"))
    length = reply.header("content-length")
    try:
        digest = checked_digest(reply.header("docker-content-digest"), "Docker-Content-Digest")
    except FormatError:
        return None
    if reply.status != 200 or media_type not in DOCUMENT_TYPES or not digest.startswith("sha256:"):
        return None
    if not (length.isascii() and length.isdigit() and int(length[:19]) <= MAX_DOCUMENT_BYTES):
        return None
    return Descriptor(media_type, digest, int(length))
