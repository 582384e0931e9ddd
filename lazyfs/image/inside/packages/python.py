"""Python distributions: the headers of METADATA and PKG-INFO (the core metadata specification)."""

from typing import Final

from lazyfs.image.inside.packages.package import Package, licence_name
from lazyfs.image.inside.packages.stanzas import parse_header

HEADER_SIZE: Final = 64 << 10
"""How many bytes of a file are looked at: name and version stand first, descriptions follow."""

_KEYS: Final = frozenset({"Name", "Version", "License", "License-Expression"})


def is_metadata(path: bytes) -> bool:
    """Whether a file at this path tells of a distribution."""
    parts = path.split(b"/")
    directory, name = parts[-2] if len(parts) > 1 else b"", parts[-1]
    if name == b"METADATA":
        return directory.endswith(b".dist-info")
    if name == b"PKG-INFO":
        return directory.endswith(b".egg-info") or directory == b"EGG-INFO"
    return name.endswith(b".egg-info")


def parse_metadata(data: bytes, where: bytes) -> Package:
    """The distribution that a file tells of.

    Raises:
        FormatError: it has no name or no version, or one that none can have.
    """
    header = parse_header(data, _KEYS)
    licence = header.get("License-Expression", "") or header.get("License", "")
    return Package(
        "pypi", header.get("Name", ""), header.get("Version", ""), where, licence=licence_name(licence)
    )
