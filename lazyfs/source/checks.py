"""What a document must be before anyone reads it."""

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, FormatError
from lazyfs.oci.descriptor import UNKNOWN_SIZE, Descriptor


def check_document(data: bytes, descriptor: Descriptor) -> bytes:
    """`data`, if it is what the descriptor links to.

    Raises:
        FormatError: its size is another.
        DigestMismatch: its digest is another.
    """
    if descriptor.size not in (UNKNOWN_SIZE, len(data)):
        raise FormatError(
            f"document {descriptor.digest}: {len(data)} bytes came, its descriptor says {descriptor.size}"
        )
    actual = sha256_digest(data)
    if actual != descriptor.digest:
        raise DigestMismatch("document", descriptor.digest, actual)
    return data
