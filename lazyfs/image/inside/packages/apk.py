"""The database of apk, lib/apk/db/installed. Format: the Alpine wiki, "Apk spec", "Installed Database V2"."""

from collections.abc import Iterator
from typing import Final

from lazyfs.image.inside.packages.package import Package, licence_name
from lazyfs.image.inside.packages.stanzas import parse_stanzas

_KEYS: Final = frozenset("PVALo")


def parse_installed(data: bytes, where: bytes) -> Iterator[Package]:
    """The packages, in the order of the file.

    Raises:
        FormatError: one has no name or no version, or one that none can have.
    """
    for stanza in parse_stanzas(data, _KEYS):
        yield Package(
            "apk",
            stanza.get("P", ""),
            stanza.get("V", ""),
            where,
            architecture=stanza.get("A", ""),
            source=stanza.get("o", ""),
            licence=licence_name(stanza.get("L", "")),
        )
