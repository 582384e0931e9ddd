"""Tables of contents that were found to lie: notes that outlast the caches they are about."""

import json
from pathlib import Path
from typing import Final

from msgspec import Struct

from indexer.digest import digest_hex
from lazyfs.cache.files import cache_errors, read_bounded
from lazyfs.cache.scratch import Scratch

_LARGEST: Final = 1 << 20
_MOST_FINDINGS: Final = 20


class Note(Struct, frozen=True):
    """Why a table of contents is not used any more.

    Attributes:
        layer_digest: digest of the layer's blob.
        toc_digest: digest of the table.
        findings: what it says and what is true, for people.
        when: seconds since 1970.
    """

    layer_digest: str
    toc_digest: str
    findings: tuple[str, ...]
    when: float


class Quarantine:
    """Files `<layer hex>-<toc hex>.json`. Who wants a table used again removes its file."""

    def __init__(self, directory: Path, scratch: Scratch) -> None:
        self._directory = directory
        self._scratch = scratch

    def add(self, note: Note) -> None:
        """Keeps a note, in place of an earlier one about the same table.

        Raises:
            FormatError: not sha256 digests.
            CacheError: there is no room, or the disk fails.
        """
        path = self._path(note.layer_digest, note.toc_digest)
        record = {
            "layer": note.layer_digest,
            "toc": note.toc_digest,
            "findings": note.findings[:_MOST_FINDINGS],
            "when": note.when,
        }
        with cache_errors("keep a note of a lying table of contents"):
            self._scratch.write(path, json.dumps(record, indent=1).encode())

    def find(self, layer_digest: str, toc_digest: str) -> Note | None:
        """The note about a table; None if there is none. One that cannot be read still counts.

        Raises:
            FormatError: not sha256 digests.
            CacheError: the disk fails.
        """
        path = self._path(layer_digest, toc_digest)
        with cache_errors("look for notes of lying tables of contents"):
            data = read_bounded(path, _LARGEST)
            if data is None and not path.exists():
                return None
        try:
            record = json.loads(data or b"")
        except (ValueError, RecursionError):
            record = {}
        match record:
            case {"findings": list(findings), "when": int(when) | float(when)}:
                return Note(layer_digest, toc_digest, tuple(map(str, findings)), when)
        return Note(layer_digest, toc_digest, ("the note about it is damaged",), 0.0)

    def _path(self, layer_digest: str, toc_digest: str) -> Path:
        return self._directory / f"{digest_hex(layer_digest)}-{digest_hex(toc_digest)}.json"
