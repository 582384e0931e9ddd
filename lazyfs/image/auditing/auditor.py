"""Audits open layers as they become complete, beside its readers and after them.

The work is done by a process of its own, at the lowest priority. A thread would not do: it would hold the
interpreter's lock now and then, and readers would wait until the scheduler let it go on.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio
from msgspec import Struct

from indexer.errors import IndexerError
from indexer.toc import AddressSpace
from indexer.toc_codec import TocHead
from lazyfs.cache.cache import Cache
from lazyfs.cache.layer_entry import LayerEntry
from lazyfs.cache.quarantine import Note
from lazyfs.errors import CacheError, LazyfsError
from lazyfs.image.auditing.audit import Audit
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import IndexedLayer
from lazyfs.image.indexes.kept import KeptTocs
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.oci.config import ImageLayer

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 60.0  # other processes fill the cache, and audit, without telling us


class AuditStatistics(Struct, frozen=True):
    """A snapshot.

    Attributes:
        layers: how many layers there are, each counted once.
        audited: of how many of them the table is known to be true.
        lying: digests of those whose table was found to lie.
    """

    layers: int
    audited: int
    lying: tuple[str, ...]


class Case(Struct, frozen=True):
    """A layer to be audited.

    Attributes:
        layer: what its image says of it.
        indexed: its index.
        lazy: the layer, open.
    """

    layer: ImageLayer
    indexed: IndexedLayer
    lazy: LazyLayer


def cases_of(image: Image) -> list[Case]:
    """The layers of an open image, for an auditor."""
    layers = zip(image.resolved.layers, image.indexed, image.layers, strict=True)
    return [Case(layer, indexed, lazy) for layer, indexed, lazy in layers]


class Auditor:
    """Watches over open layers whose tables were not made here.

    Args:
        cases: the layers, which may repeat.
        cache: where they are.
    """

    def __init__(self, cases: Iterable[Case], cache: Cache) -> None:
        self._cache = cache
        self._one_at_a_time = trio.Lock()
        self._cases = {case.layer.descriptor.digest: case for case in cases}
        self._audited = {digest for digest, case in self._cases.items() if case.indexed.audited}
        self._lying: list[str] = []

    def __repr__(self) -> str:
        return f"<Auditor {self.statistics()}>"

    def statistics(self) -> AuditStatistics:
        """What is known so far."""
        return AuditStatistics(len(self._cases), len(self._audited), tuple(self._lying))

    async def run(self) -> None:
        """Audit each layer once it is complete; ends when there is nothing left to audit."""
        async with trio.open_nursery() as nursery:
            for digest, case in self._cases.items():
                # Of contents packed one after the other no stream is left to hash.
                if digest not in self._audited and case.indexed.head.header.address_space is AddressSpace.TAR:
                    nursery.start_soon(self._watch, digest, case)

    async def _watch(self, digest: str, case: Case) -> None:
        try:
            landed = case.lazy.landed
            while not await self._settled(digest, case):
                with trio.move_on_after(_LOOK_AGAIN_S):
                    await landed.wait()
                landed = case.lazy.landed  # what lands while it is looked at counts too
        except LazyfsError as error:
            _log.warning("layer %s cannot be audited: %s", digest, error)

    async def _settled(self, digest: str, case: Case) -> bool:
        """Whether it is known by now if the table of a layer tells the truth."""
        toc_digest = case.indexed.head.digest
        note = await trio.to_thread.run_sync(self._cache.quarantine.find, digest, toc_digest)
        if note is not None:
            self._condemn(digest, case, note.findings)
        elif case.lazy.entry.audited:
            self._audited.add(digest)
        elif case.lazy.entry.complete:
            async with self._one_at_a_time, self._cache.named_lock(f"audit-{digest[7:]}-{toc_digest[7:23]}"):
                if not case.lazy.entry.audited:
                    await self._audit(digest, case)
        return digest in self._audited or digest in self._lying

    async def _audit(self, digest: str, case: Case) -> None:
        head, entry = case.indexed.head, case.lazy.entry
        data = await trio.to_thread.run_sync(self._encoded, head)
        evictions = entry.evictions
        if not entry.complete:
            return
        audit = await audit_apart(data, head, case.layer.diff_id, entry)
        if entry.evictions != evictions:
            return  # what was evicted meanwhile read as zeros: that says nothing of the table
        if audit.wrong_spans:
            spans = head.spans()
            damaged = [(spans[n].first_leaf, spans[n].end_leaf) for n in audit.wrong_spans]
            _log.warning(
                "%d spans of layer %s were damaged in the cache; they are fetched again", len(damaged), digest
            )
            await trio.to_thread.run_sync(entry.clear, damaged)
        elif audit.lies:
            note = Note(digest, head.digest, audit.lies, time.time())
            self._condemn(digest, case, audit.lies)
            await trio.to_thread.run_sync(self._cache.quarantine.add, note)
        else:
            await self._keep_windows(case.indexed)
            await trio.to_thread.run_sync(entry.record_audit)
            self._audited.add(digest)
            _log.info("the index of layer %s was audited: it tells the truth", digest)

    async def _keep_windows(self, indexed: IndexedLayer) -> None:
        """Have the windows here before the index counts for every image with this layer.

        Another image is of another repository, which may not have them; and once something was evicted,
        they are wanted again.
        """
        remote, kept = indexed.remote_windows, KeptTocs(self._cache)
        if remote is None or await trio.to_thread.run_sync(kept.has_windows, indexed.head):
            return
        try:
            await trio.to_thread.run_sync(remote.keep, await remote.fetch_whole())
        except (LazyfsError, IndexerError) as error:
            _log.info("the windows of an audited index stay where they are: %s", error)

    def _encoded(self, head: TocHead) -> bytes:
        """The bytes of a table, from wherever the cache has them."""
        layer_digest = head.header.layer_digest
        for name in self._cache.tocs.names(layer_digest):
            data = self._cache.tocs.load(layer_digest, name, head.digest)
            if data is not None:
                return data
        raise CacheError(f"the table {head.digest} is not in the cache")

    def _condemn(self, digest: str, case: Case, lies: Iterable[str]) -> None:
        self._lying.append(digest)
        reason = f"the index {case.indexed.head.digest} of layer {digest} lies: {'; '.join(lies)}"
        _log.error("%s", reason)
        case.lazy.condemn(reason)


async def audit_apart(data: bytes, head: TocHead, diff_id: str, entry: LayerEntry) -> Audit:
    """The audit of a complete entry, by a process of its own. Cancelling ends that.

    Args:
        data: the head's bytes.
        head: the table.
        diff_id: what the layer should hash to.
        entry: where the layer is.

    Raises:
        LazyfsError: the process failed.
    """
    descriptor = entry.fileno()
    facts = (str(descriptor), str(head.header.uncompressed_size), diff_id, head.digest)
    # -P: modules come from where we are installed, not from wherever the mount was made.
    command = [sys.executable, "-P", "-m", "lazyfs.image.auditing.audit_child", *facts]
    run = partial(trio.run_process, stdin=data, capture_stdout=True, capture_stderr=True, check=False)
    try:
        done = await run(command, pass_fds=(descriptor,))
    except OSError as error:
        raise LazyfsError(f"no process for an audit: {error.strerror}") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise LazyfsError(f"the audit ended with {done.returncode}: {' '.join(last)[:300]}")
    found = json.loads(done.stdout)
    return Audit(tuple(found["lies"]), tuple(found["wrong_spans"]))
