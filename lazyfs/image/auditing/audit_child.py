"""Audits a cached layer: `python -m lazyfs.image.auditing.audit_child FD SIZE DIFFID TOC_DIGEST`.

The head comes on stdin, the layer's bytes from the inherited descriptor, and the findings go to stdout.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Final

from msgspec.structs import asdict

from indexer.toc_codec import decode_head
from lazyfs.image.auditing.audit import audit_stream

_PIECE: Final = 1 << 20
_LOWEST: Final = 19


def main() -> None:
    """Audit at the lowest priority that still gets its share: an idle class may never come to its turn."""
    os.nice(_LOWEST)
    descriptor, size, diff_id, toc_digest = sys.argv[1:]
    head = decode_head(sys.stdin.buffer.read(), toc_digest)
    audit = audit_stream(head, diff_id, _pieces(int(descriptor), int(size)))
    sys.stdout.write(json.dumps(asdict(audit)))


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    # What the page cache still knows would hide what the disk has made of it.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    for start in range(0, size, _PIECE):
        yield os.pread(descriptor, min(_PIECE, size - start), start)


if __name__ == "__main__":
    main()
