"""The database of apk, lib/apk/db/installed. Format: the Alpine wiki, "Apk spec", "Installed Database V2"."""

from collections.abc import Iterator
from typing import Final

from indexer.errors import FormatError
from lazyfs.image.packages.package import Package, licence_name
from lazyfs.image.packages.stanzas import parse_stanzas

_KEYS: Final = frozenset("PVALo")


def parse_installed(data: bytes, where: bytes) -> Iterator[Package]:
    """The packages, in the order of the file.

    Raises:
        FormatError: one has no name or no version.
    """
    for stanza in parse_stanzas(data, _KEYS):
        name, version = stanza.get("P", ""), stanza.get("V", "")
        if not name or not version:
            raise FormatError(f"a package without {'a version' if name else 'a name'}: {name[:100]!r}")
        yield Package(
            "apk",
            name,
            version,
            where,
            architecture=stanza.get("A", ""),
            source=stanza.get("o", ""),
            licence=licence_name(stanza.get("L", "")),
        )
