"""Sends blobs into a repository of a registry (distribution-spec, "Pushing blobs").

What is there already is not sent again, and what another repository of the registry has is taken from there.
"""

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote

import trio

from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.base import Blob
from lazyfs.source.copying import copy_blob
from lazyfs.source.http.answers import failure
from lazyfs.source.http.control import Reply
from lazyfs.source.http.urls import redirect_target
from lazyfs.source.registry.host import Host

PUSH: Final = "pull,push"

_CHUNK: Final = 16 << 20  # of a blob that is not in memory as a whole
_ATTEMPTS: Final = 3
# What a registry says of an upload that it has lost, or of which it holds a part from an attempt before.
_BEGIN_ANEW: Final = frozenset({400, 404, 416})
_OCTETS: Final = {"Content-Type": "application/octet-stream"}


class _Again(Exception):
    """An upload has to begin anew."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__()


class BlobUploads:
    """Uploads into one repository.

    Args:
        host: the repository.
        mount_from: another repository of the registry that may hold the same blobs, or "".
    """

    def __init__(self, host: Host, mount_from: str = "") -> None:
        self._host = host
        self._mount_from = mount_from

    async def has(self, path: str, accept: str) -> bool:
        """Whether the repository has what is at a path below it."""
        reply = await self._host.request(
            "HEAD", path, f"{path[1:]} of {self._host.name}", headers={"Accept": accept}, actions=PUSH
        )
        return reply.status == 200

    async def send(self, link: Descriptor, data: bytes | memoryview) -> None:
        """See that the repository has a blob.

        Raises:
            Unauthorized, Unreachable, SourceError: it does not take it.
        """

        async def upload(location: str) -> None:
            await self._put(location, link.digest, bytes(data))

        await self._send(link, upload)

    async def copy(self, link: Descriptor, blob: Blob) -> None:
        """See that the repository has a blob that is somewhere else; little of it is in memory at once.

        Raises:
            Unauthorized, Unreachable, SourceError: the repository does not take it, or nobody gives it.
            IndexerError: what came is something else.
        """

        async def upload(location: str) -> None:
            await self._copy(location, link, blob)

        await self._send(link, upload)

    async def _send(self, link: Descriptor, upload: Callable[[str], Awaitable[None]]) -> None:
        if await self.has(f"/blobs/{link.digest}", "*/*"):
            return
        for attempt in range(_ATTEMPTS):
            location = await self._begin(link.digest)
            if location is None:
                return
            try:
                await upload(location)
            except _Again as again:
                if attempt == _ATTEMPTS - 1:
                    raise failure(again.reply, self._what(link.digest)) from None
            else:
                return

    async def _begin(self, digest: str) -> str | None:
        """Where to send a blob; None if the registry could take it from another repository."""
        path = "/blobs/uploads/"
        if self._mount_from:
            path += f"?mount={quote(digest, safe='')}&from={quote(self._mount_from, safe='')}"
        reply = await self._host.request("POST", path, self._what(digest), actions=PUSH)
        if reply.status == 201:
            return None
        if reply.status != 202:
            raise failure(reply, self._what(digest))
        return redirect_target(reply.url, reply.header("location"))

    async def _copy(self, location: str, link: Descriptor, blob: Blob) -> None:
        """Send a blob in chunks, each as soon as it has come.

        Its bytes come in a thread that outlasts its task's cancellation until it is at rest. So it only hands
        chunks over, and when nobody takes them any more it is told.
        """
        failures: list[Exception] = []  # the first is why there are others
        to_send, chunks = trio.open_memory_channel[bytes](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_bring, blob, link, to_send, failures)
            async with chunks:
                try:
                    sent = 0
                    async for chunk in chunks:
                        location = await self._patch(location, link.digest, sent, chunk)
                        sent += len(chunk)
                except Exception as error:  # noqa: BLE001  # raised below, alone
                    failures.append(error)
                    nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        await self._put(location, link.digest, b"")

    async def _patch(self, location: str, digest: str, sent: int, chunk: bytes) -> str:
        """Send a chunk; where to send the next one."""
        headers = {**_OCTETS, "Content-Range": f"{sent}-{sent + len(chunk) - 1}"}
        what = self._what(digest)
        reply = await self._host.request(
            "PATCH", location, what, headers=headers, content=chunk, actions=PUSH
        )
        if reply.status in _BEGIN_ANEW:
            raise _Again(reply)
        if reply.status != 202:
            raise failure(reply, what)
        return redirect_target(reply.url, reply.header("location"))

    async def _put(self, location: str, digest: str, data: bytes) -> None:
        what = self._what(digest)
        reply = await self._host.request(
            "PUT",
            f"{location}{'&' if '?' in location else '?'}digest={quote(digest, safe='')}",
            what,
            headers=_OCTETS,
            content=data,
            actions=PUSH,
        )
        if reply.status in _BEGIN_ANEW:
            raise _Again(reply)
        if reply.status != 201:
            raise failure(reply, what)

    def _what(self, digest: str) -> str:
        return f"upload of {digest} to {self._host.name}"


async def _bring(
    blob: Blob, link: Descriptor, to_send: trio.MemorySendChannel[bytes], failures: list[Exception]
) -> None:
    """Hand a blob over in chunks."""
    chunk = bytearray()

    def take(piece: memoryview) -> None:
        nonlocal chunk
        chunk += piece
        if len(chunk) >= _CHUNK:
            full, chunk = bytes(chunk), bytearray()
            trio.from_thread.run(to_send.send, full)

    async with to_send:
        try:
            await copy_blob(blob, link, take)
            if chunk:
                await to_send.send(bytes(chunk))
        except Exception as error:  # noqa: BLE001  # raised by who reads them
            failures.append(error)
