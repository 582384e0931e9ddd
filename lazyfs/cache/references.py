"""What references named when a registry was last asked: hints with a date, never proof."""

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from lazyfs.cache.files import cache_errors, read_bounded
from lazyfs.cache.scratch import Scratch

_LARGEST: Final = 1 << 20


class Resolved(Struct, frozen=True):
    """An answer to a reference.

    Attributes:
        descriptor: the descriptor's members as the registry would write them: mediaType, digest, size.
        when: seconds since 1970, when the registry said so.
    """

    descriptor: dict[str, Any]
    when: float


class References:
    """The last answer for each reference."""

    def __init__(self, directory: Path, scratch: Scratch) -> None:
        self._directory = directory
        self._scratch = scratch

    def remember(self, reference: str, descriptor: Mapping[str, Any], when: float) -> None:
        """Keeps an answer in place of the one before.

        Args:
            reference: in its canonical form, registry and tag included.
            descriptor: what it named; anything that JSON can hold.
            when: seconds since 1970.

        Raises:
            CacheError: there is no room, or the disk fails.
        """
        record = {"reference": reference, "descriptor": dict(descriptor), "when": when}
        with cache_errors("remember a reference"):
            self._scratch.write(self._path(reference), json.dumps(record).encode())

    def recall(self, reference: str) -> Resolved | None:
        """The last answer for a reference in its canonical form; None if there is none that can be read.

        Raises:
            CacheError: the disk fails.
        """
        with cache_errors("recall a reference"):
            data = read_bounded(self._path(reference), _LARGEST)
        try:
            record = json.loads(data or b"null")
        except (ValueError, RecursionError):
            return None
        match record:
            case {"reference": str(named), "descriptor": dict(descriptor), "when": int(when) | float(when)}:
                return Resolved(descriptor, when) if named == reference and math.isfinite(when) else None
        return None

    def forget(self, reference: str) -> None:
        """Drops the answer for a reference, if there is one.

        Raises:
            CacheError: the disk fails.
        """
        with cache_errors("forget a reference"):
            self._scratch.discard(self._path(reference))

    def _path(self, reference: str) -> Path:
        return self._directory / f"{sha256(reference.encode('utf-8', 'surrogatepass')).hexdigest()}.json"
