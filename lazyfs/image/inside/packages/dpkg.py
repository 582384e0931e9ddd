"""The database of dpkg: var/lib/dpkg/status, and status.d of images that are made of packages without dpkg.

Format: deb-control(5), dpkg-query(1) for the states.
"""

import re
from collections.abc import Iterator
from typing import Final

from lazyfs.image.inside.packages.package import Package
from lazyfs.image.inside.packages.stanzas import Stanza, parse_stanzas

_KEYS: Final = frozenset({"Package", "Version", "Architecture", "Source", "Status"})
_SOURCE: Final = re.compile(r"(\S+)(?:\s+\((.*)\))?")
_ABSENT: Final = frozenset({"not-installed", "config-files", "half-installed"})
"""States in which the package's files are not there, or not all."""


def parse_status(data: bytes, where: bytes) -> Iterator[Package]:
    """The packages whose files are there, in the order of the file.

    Raises:
        FormatError: one that is there has no name or no version, or one that none can have.
    """
    for stanza in parse_stanzas(data, _KEYS):
        if stanza.get("Status", "installed").rpartition(" ")[2] not in _ABSENT:
            yield _package(stanza, where)


def _package(stanza: Stanza, where: bytes) -> Package:
    name, version = stanza.get("Package", ""), stanza.get("Version", "")
    source = _SOURCE.fullmatch(stanza.get("Source", ""))
    return Package(
        "deb",
        name,
        version,
        where,
        architecture=stanza.get("Architecture", ""),
        source=source[1] if source else name,
        source_version=(source[2] if source else "") or version,
    )
