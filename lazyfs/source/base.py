"""What every source of images offers."""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import astuple

from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.source.line import Line

T = TypeVar("T")

PIECE_SIZE: Final = 256 << 10  # what `pull` hands over at once, at most


class SourceStatistics(Struct, frozen=True):
    """What a source has cost so far.

    Attributes:
        control_requests: requests for documents, tokens and the like.
        control_bytes: body bytes they brought.
        data_requests: requests for blobs, redirects included.
        data_bytes: body bytes they brought.
        redirects: answers that pointed elsewhere.
        retries: attempts after one that failed.
        token_requests: those of the control requests that asked for a token.
    """

    control_requests: int = 0
    control_bytes: int = 0
    data_requests: int = 0
    data_bytes: int = 0
    redirects: int = 0
    retries: int = 0
    token_requests: int = 0

    def __add__(self, other: "SourceStatistics") -> "SourceStatistics":
        return SourceStatistics(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class Blob(Protocol):
    """One blob of a source. Any number of tasks may use it at once.

    All methods run `consume` in a worker thread, the one that received the bytes, and never after they have
    returned or raised, cancelled or not. What `consume` raises passes through. The memory it is given is good
    until it returns.
    """

    @property
    def size(self) -> int:
        """Bytes of the blob, as its descriptor says and the source has to keep."""

    @property
    def line(self) -> Line | None:
        """What it comes over; None where it is on this machine."""

    async def fetch(self, start: int, end: int, consume: Callable[[memoryview], T]) -> T:
        """What `consume` makes of bytes [start, end), which it gets at once, checked for nothing.

        Raises:
            RangeRefused: the range is outside the blob, or the source cannot serve it; `pull` may work.
            NotFound: the source has no such blob.
            Unauthorized: it wants other credentials.
            Unreachable: it did not answer, after retries.
            FormatError: the blob there is not of this size.
        """

    async def stream(self, start: int, end: int, consume: Callable[[memoryview], None]) -> None:
        """Give bytes [start, end) to `consume`, in order, each once, in pieces of at most PIECE_SIZE.

        Unlike with `fetch`, bytes that `consume` refuses are not asked for anywhere else.

        Raises:
            RangeRefused, NotFound, Unauthorized, Unreachable, FormatError: as for `fetch`.
        """

    async def pull(self, consume: Callable[[memoryview], None]) -> None:
        """Give the whole blob to `consume`, in order, each byte once, in pieces of at most PIECE_SIZE.

        The number of bytes is checked, the digest is left to the caller.

        Raises:
            NotFound, Unauthorized, Unreachable, FormatError: as for `fetch`.
        """


class Source(Protocol):
    """One image, or one repository of them, somewhere."""

    async def resolve(self, *, probe: bool = False, patient: bool = True) -> Descriptor:
        """The manifest or index that the image's name stands for.

        A name with a digest costs nothing and gives a descriptor without type and size. A tag costs one
        request that also brings the document; it is kept for `document`. With `probe` only the descriptor is
        asked for, which registries do not count against pull limits. Without `patient` nobody is waited for
        where nobody listens.

        Raises:
            NotFound, Unauthorized, Unreachable: there is none, or it cannot be had.
            FormatError, Unsupported: what is there is no manifest.
        """

    async def document(self, descriptor: Descriptor, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """The exact bytes of a manifest, index, configuration or another small blob.

        Raises:
            DigestMismatch: it is something else.
            FormatError: its size is not the descriptor's.
            LimitExceeded: it is larger than `max_bytes`.
            NotFound, Unauthorized, Unreachable: it cannot be had.
        """

    async def prepare(self, connections: int) -> None:
        """Open connections for blobs that will be asked for soon, all at once; who asks sees what fails."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """The blob that `descriptor` links to; nothing is asked yet.

        Raises:
            Unsupported: its digest is not sha256.
        """

    def statistics(self) -> SourceStatistics:
        """What this source has cost so far."""
