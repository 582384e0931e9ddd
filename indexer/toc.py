"""The table of contents of one layer: its members, its spans, and how to enter them.

Offsets live in one of two spaces. *Compressed* offsets count the bytes of the blob as the registry stores
it; *uncompressed* offsets count the layer's address space, which is the tar stream itself or, for indexes
that know nothing of the tar around the contents, the contents packed one after the other on 512-byte
boundaries. All ranges are half-open.

Sparse members have no single extent of the tar. Their expanded contents lie in the *tail*: addresses from
the first 512-byte boundary after the stream on, where extents say which tar bytes stand where; everything
between extents is zeros. The tail costs nothing: no byte of it is stored or fetched.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, overload

from msgspec import Struct

from indexer.digest import DIGEST_SIZE, LEAF_SIZE, leaf_count
from indexer.errors import FormatError

BLOCK_SIZE = 512


class Kind(IntEnum):
    """What a member is. Values are those of the encoded form."""

    REGULAR = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6


# In Python 3.11 an enum's attribute is found by a call; these are for what is done for each member.
REGULAR: Final = Kind.REGULAR
DIRECTORY: Final = Kind.DIRECTORY
SYMLINK: Final = Kind.SYMLINK
HARDLINK: Final = Kind.HARDLINK


class AddressSpace(IntEnum):
    """What uncompressed offsets count."""

    TAR = 0
    PACKED = 1


class Compression(IntEnum):
    """How the layer's blob is compressed."""

    NONE = 0
    GZIP = 1
    ZSTD = 2


class Entry(IntEnum):
    """How decompression begins at a span."""

    RAW = 0  # the bytes are the content
    GZIP_MEMBER = 1  # at a gzip header
    DEFLATE = 2  # inside a deflate stream, at a bit, with a window
    ZSTD_FRAME = 3  # at a zstd frame


class Proof(IntEnum):
    """What a span's `root` is the digest of."""

    MERKLE = 0  # its uncompressed bytes, as a tree over leaves: one leaf can be proved alone; `blake3` all
    CONTENT = 1  # its uncompressed bytes without padding, as one sha256
    COMPRESSED = 2  # its compressed bytes, as one sha256; what they become follows from entry and window


# Half the cost of Entry(number).
_ENTRIES: Final = tuple(Entry)
_PROOFS: Final = tuple(Proof)

_NO_DIGEST: Final = bytes(DIGEST_SIZE)


class Member(NamedTuple):
    """One entry of the layer's tar, in tar order, as written: whiteouts are regular files here.

    Attributes:
        path: components joined by "/", without "." and empty ones; b"" is the root.
        kind: what it is.
        mode: permission, setuid, setgid and sticky bits (at most 0o7777).
        uid: numeric owner.
        gid: numeric group.
        mtime_ns: modification time, nanoseconds since 1970, may be negative.
        size: bytes of content; 0 for anything but a regular file.
        data_start: uncompressed offset of the content; 0 where size is 0.
        link: a symlink's target as written; a hard link's target cleaned like `path`; else b"".
        device: (major, minor) of a device; else (0, 0).
        xattrs: sorted pairs of name and value.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    data_start: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Extent(NamedTuple):
    """Bytes [tar_start, tar_start + length) of the stream, shown again at `start` in the tail."""

    start: int
    tar_start: int
    length: int


class Span(NamedTuple):
    """What is fetched, decompressed and verified at once.

    Attributes:
        number: position in the table.
        uncompressed_start: first byte of the span in the address space.
        uncompressed_end: end of the span.
        compressed_start: first compressed byte needed to produce the span from its entry.
        compressed_end: end of the compressed bytes needed.
        entry: how decompression begins at compressed_start.
        bits: for DEFLATE, how many top bits of the first byte belong to the span; 0 for whole bytes.
        skip: decompressed bytes between the entry and the span's start, to be dropped.
        window_start: offset of the compressed window in the layer's window file.
        window_end: its end; equal to the start where no window is needed.
        first_leaf: number of the span's first leaf in the layer.
        root: the digest that the span is verified by, as `proof` says; by default the Merkle root over its
            leaves (indexer.digest).
        proof: what `root` is the digest of.
        padding: zeros at the span's end that come from nothing compressed.
        blake3: where `proof` is MERKLE, the BLAKE3 digest of the span's uncompressed bytes, padding included:
            all of them are verified by it, six times as fast as by the root. Else b"".
    """

    number: int
    uncompressed_start: int
    uncompressed_end: int
    compressed_start: int
    compressed_end: int
    entry: Entry
    bits: int
    skip: int
    window_start: int
    window_end: int
    first_leaf: int
    root: bytes
    proof: Proof = Proof.MERKLE
    padding: int = 0
    blake3: bytes = b""

    @property
    def size(self) -> int:
        """Uncompressed bytes."""
        return self.uncompressed_end - self.uncompressed_start

    @property
    def content_size(self) -> int:
        """Uncompressed bytes without padding."""
        return self.uncompressed_end - self.uncompressed_start - self.padding

    @property
    def compressed_size(self) -> int:
        """Compressed bytes needed to produce the span."""
        return self.compressed_end - self.compressed_start

    @property
    def end_leaf(self) -> int:
        """Number after the span's last leaf."""
        return self.first_leaf + leaf_count(self.size)


class SpanTable(Sequence[Span]):
    """The spans of a layer, back to back from offset 0, kept as columns: 99 bytes each, 131 with BLAKE3.

    Build one with `from_spans`, or hand over columns that `toc_codec` has checked. `blake3s` has a digest for
    each span, of which those of spans with another proof than MERKLE say nothing; b"" where all have another.
    """

    __slots__ = (
        "_bits",
        "_blake3s",
        "_compressed_ends",
        "_compressed_starts",
        "_ends",
        "_entries",
        "_first_leaves",
        "_paddings",
        "_proofs",
        "_roots",
        "_skips",
        "_starts",
        "_window_ends",
    )

    def __init__(
        self,
        ends: "array[int]",
        compressed_starts: "array[int]",
        compressed_ends: "array[int]",
        entries: bytes,
        bits: bytes,
        skips: "array[int]",
        window_sizes: "array[int]",
        roots: bytes,
        proofs: bytes,
        paddings: "array[int]",
        blake3s: bytes,
    ) -> None:
        self._ends = ends
        self._compressed_starts = compressed_starts
        self._compressed_ends = compressed_ends
        self._entries = entries
        self._bits = bits
        self._skips = skips
        self._roots = roots
        self._proofs = proofs
        self._paddings = paddings
        self._blake3s = blake3s
        self._starts = array("Q", [0])
        self._first_leaves = array("Q", [0])
        self._window_ends = array("Q")
        start = leaves = window = 0
        for end, window_size in zip(ends, window_sizes, strict=True):
            leaves += leaf_count(end - start)
            start = end
            window += window_size
            self._starts.append(start)
            self._first_leaves.append(leaves)
            self._window_ends.append(window)

    @classmethod
    def from_spans(cls, spans: Sequence[Span]) -> "SpanTable":
        """A table of given spans; their numbers, starts, leaves and window starts are implied by order."""
        digests = [s.blake3 if s.proof is Proof.MERKLE else _NO_DIGEST for s in spans]
        assert all(len(digest) == DIGEST_SIZE for digest in digests), "a root without its BLAKE3"
        return cls(
            ends=array("Q", (s.uncompressed_end for s in spans)),
            compressed_starts=array("Q", (s.compressed_start for s in spans)),
            compressed_ends=array("Q", (s.compressed_end for s in spans)),
            entries=bytes(s.entry for s in spans),
            bits=bytes(s.bits for s in spans),
            skips=array("Q", (s.skip for s in spans)),
            window_sizes=array("Q", (s.window_end - s.window_start for s in spans)),
            roots=b"".join(s.root for s in spans),
            proofs=bytes(s.proof for s in spans),
            paddings=array("Q", (s.padding for s in spans)),
            blake3s=b"".join(digests) if any(s.proof is Proof.MERKLE for s in spans) else b"",
        )

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Span]: ...
    def __getitem__(self, index: int | slice) -> Span | Sequence[Span]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        digest = slice(index * DIGEST_SIZE, (index + 1) * DIGEST_SIZE)
        proof = _PROOFS[self._proofs[index]]
        return Span(
            number=index,
            uncompressed_start=self._starts[index],
            uncompressed_end=self._ends[index],
            compressed_start=self._compressed_starts[index],
            compressed_end=self._compressed_ends[index],
            entry=_ENTRIES[self._entries[index]],
            bits=self._bits[index],
            skip=self._skips[index],
            window_start=self._window_ends[index - 1] if index else 0,
            window_end=self._window_ends[index],
            first_leaf=self._first_leaves[index],
            root=self._roots[digest],
            proof=proof,
            padding=self._paddings[index],
            blake3=self._blake3s[digest] if proof is Proof.MERKLE else b"",
        )

    def __iter__(self) -> Iterator[Span]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpanTable):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # compared by value, and large: not a key

    @property
    def uncompressed_size(self) -> int:
        """End of the last span."""
        return self._starts[-1]

    @property
    def leaves(self) -> int:
        """Number of leaves of all spans."""
        return self._first_leaves[-1]

    @property
    def windows_size(self) -> int:
        """Bytes of all compressed windows."""
        return self._window_ends[-1] if self._window_ends else 0

    def find(self, offset: int) -> int:
        """Index of the span that holds uncompressed `offset`.

        Raises:
            FormatError: the offset is outside the layer.
        """
        if not 0 <= offset < self.uncompressed_size:
            raise FormatError(f"offset {offset} is outside the layer of {self.uncompressed_size} bytes")
        return bisect_right(self._ends, offset)

    def find_root(self, root: bytes, first: int = 0) -> int | None:
        """Index of the first span with this root, from `first` on; None if there is none."""
        at = self._roots.find(root, first * DIGEST_SIZE)
        while at % DIGEST_SIZE and at > 0:
            at = self._roots.find(root, at + 1)
        return None if at < 0 else at // DIGEST_SIZE

    def covering(self, start: int, end: int) -> range:
        """Indexes of the spans that together hold uncompressed bytes [start, end); none for an empty range.

        Raises:
            FormatError: the range passes the end of the layer.
        """
        if start >= end:
            return range(0)
        return range(self.find(start), self.find(end - 1) + 1)

    def sharing_entry(self, number: int) -> range:
        """Numbers of the spans that share the entry of span `number`, itself among them.

        Pieces of one large zstd frame do, and small files that an eStargz writer put into one gzip member.
        """
        if self._entries[number] == Entry.RAW:
            return range(number, number + 1)
        start = self._compressed_starts[number]
        first = bisect_left(self._compressed_starts, start)
        return range(first, bisect_right(self._compressed_starts, start, lo=number))

    def of_leaf(self, leaf: int) -> int:
        """Index of the span that holds a leaf, which the layer must have."""
        return bisect_right(self._first_leaves, leaf) - 1

    def of_leaves(self, first_leaf: int, end_leaf: int) -> Sequence[Span]:
        """The spans that together hold leaves [first_leaf, end_leaf) of the layer, which must have them."""
        first = bisect_right(self._first_leaves, first_leaf) - 1
        return self[first : bisect_left(self._first_leaves, end_leaf, lo=first)]

    def leaf_range(self, start: int, end: int) -> tuple[int, int]:
        """The leaves [first, end) that hold uncompressed bytes [start, end), which must not be empty.

        Raises:
            FormatError: the range passes the end of the layer.
        """
        first, last = self.find(start), self.find(end - 1)
        return (
            self._first_leaves[first] + (start - self._starts[first]) // LEAF_SIZE,
            self._first_leaves[last] + (end - 1 - self._starts[last]) // LEAF_SIZE + 1,
        )


class TocHeader(Struct, frozen=True):
    """What a layer is, apart from its tables.

    Attributes:
        layer_digest: digest of the blob, "sha256:…".
        layer_size: compressed bytes of the blob.
        diff_id: digest of the uncompressed tar stream, "sha256:…"; "" where an index made by others does not
            tell it.
        uncompressed_size: bytes of the address space without its tail.
        device_size: bytes of the address space with its tail, rounded up to a block.
        compression: how the blob is compressed.
        address_space: what uncompressed offsets count.
        span_size: the uncompressed bytes per span that were aimed at; 0 in an index made by others.
        windows_digest: digest of the window file, "sha256:…".
    """

    layer_digest: str
    layer_size: int
    diff_id: str
    uncompressed_size: int
    device_size: int
    compression: Compression
    address_space: AddressSpace
    span_size: int
    windows_digest: str


class Toc(Struct, frozen=True):
    """A layer's table of contents. `toc_codec` turns it into bytes and back; `build` makes one.

    Attributes:
        header: what the layer is.
        spans: how to enter it.
        extents: the tail: where parts of sparse members come from, ordered by start.
        members: what the tar holds, in tar order.
    """

    header: TocHeader
    spans: SpanTable
    extents: tuple[Extent, ...]
    members: Sequence[Member]


def tail_start(uncompressed_size: int) -> int:
    """Where the tail begins: the first block boundary at or after the stream's end."""
    return round_to_block(uncompressed_size)


def round_to_block(size: int) -> int:
    """`size` rounded up to a whole number of 512-byte blocks."""
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE
