"""Copies a blob out of a source, piece by piece, and sees that it was the right one."""

from collections.abc import Callable
from hashlib import sha256

from indexer.errors import DigestMismatch
from lazyfs.oci.descriptor import Descriptor
from lazyfs.source.base import Blob


class _Refused(Exception):
    """Whoever takes the pieces cannot go on: no matter of the source's, which need not be asked again."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(error)


async def copy_blob(blob: Blob, link: Descriptor, take: Callable[[memoryview], None]) -> None:
    """Give a whole blob to `take`, in a worker thread, in order; what that raises passes through.

    Raises:
        DigestMismatch: something else came; `take` has had it by then.
        NotFound, Unauthorized, Unreachable, FormatError: as for Blob.pull.
    """
    digest = sha256()

    def consume(piece: memoryview) -> None:
        digest.update(piece)
        try:
            take(piece)
        except Exception as error:
            raise _Refused(error) from error

    try:
        await blob.pull(consume)
    except _Refused as refused:
        raise refused.error from refused.error.__cause__
    actual = f"sha256:{digest.hexdigest()}"
    if actual != link.digest:
        raise DigestMismatch("blob", link.digest, actual)
