"""Packages below node_modules: npm's hidden lockfile where there is one, else each package.json.

Format: the npm documentation, "package.json" and "package-lock.json" (hidden lockfiles).
"""

import re
from collections.abc import Iterator
from typing import Final

from indexer.errors import FormatError, IndexerError
from lazyfs.image.inside.packages.package import Package, licence_name
from lazyfs.oci.json_fields import Fields, parse_object

MAX_MANIFEST: Final = 1 << 20
MAX_LOCKFILE: Final = 64 << 20

_NAME: Final = rb"(?:@[^/]+/)?[^/@.][^/]*"
_MANIFEST: Final = re.compile(rb"(?:.*/)?node_modules/" + _NAME + rb"/package\.json", re.DOTALL)
_LOCKFILE: Final = b"node_modules/.package-lock.json"


def is_manifest(path: bytes) -> bool:
    """Whether a file at this path tells of an installed package."""
    return _MANIFEST.fullmatch(path) is not None


def is_lockfile(path: bytes) -> bool:
    """Whether a file at this path tells of all packages below its directory."""
    return path == _LOCKFILE or path.endswith(b"/" + _LOCKFILE)


def parse_manifest(data: bytes, where: bytes) -> Package | None:
    """The package of a package.json; None where it names none, as in many that come along for tests."""
    try:
        fields = parse_object(data, "package.json", MAX_MANIFEST)
        name, version = fields.text("name", ""), fields.text("version", "")
        return Package("npm", name, version, where, licence=_licence(fields))
    except IndexerError:
        return None


def parse_lockfile(data: bytes, where: bytes) -> Iterator[tuple[bytes, Package]]:
    """(directory from where the outermost node_modules lies, package) of each package that is listed.

    Raises:
        FormatError: not a lockfile, or it lists a package that none can be.
        LimitExceeded: too large.
    """
    lockfile = parse_object(data, "npm's hidden lockfile", MAX_LOCKFILE)
    packages = lockfile.child("packages")
    for directory in lockfile.keys("packages"):
        fields = packages.child(directory)
        name = fields.text("name", "") or directory.rpartition("node_modules/")[2]
        version = fields.text("version", "")
        if version and not fields.flag("link"):
            yield directory.encode(), Package("npm", name, version, where, licence=_licence(fields))


def _licence(fields: Fields) -> str:
    try:
        return licence_name(fields.text("license", ""))
    except FormatError:  # an object, in old packages
        return ""
