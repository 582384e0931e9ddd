"""What is known of an installed package, and of the distribution it belongs to."""

import re
import shlex
from typing import Final

from msgspec import Struct
from packageurl import PackageURL

from indexer.errors import FormatError

_MAX_LICENCE: Final = 200
_MAX_NAME: Final = 1000
_PLAIN: Final = re.compile(r"[^/]+")
_NAMES: Final = {"npm": re.compile(r"(?:@[^/]+/)?[^/@][^/]*")}
_RELEASE: Final = re.compile(r"(\w.*?) release (\d+(?:\.\d+)*)\b.*")
_SYSTEM: Final = ("deb", "apk", "rpm")
_VENDORS: Final = {"rhel": "redhat", "opensuse-leap": "opensuse", "opensuse-tumbleweed": "opensuse"}
"""Who makes the packages of a distribution, where package URLs call them otherwise than its ID."""


class Distribution(Struct, frozen=True):
    """What os-release(5) says; "" where it says nothing.

    Attributes:
        id: ID, lower case: "debian".
        version: VERSION_ID: "12".
        name: PRETTY_NAME.
    """

    id: str = ""
    version: str = ""
    name: str = ""


class Package(Struct, frozen=True):
    """An installed package.

    Attributes:
        kind: type of its package URL: deb, apk, rpm, pypi or npm.
        name: as its database writes it; of npm with its scope.
        version: whole, with epoch ("1:") and revision where it has them.
        where: path of the file in the image that tells of it, from the root.
        architecture: what it was built for, by the database's word; "" where it is not said.
        source: name of the source package; "" where it is not said.
        source_version: its version; "" where it is not said.
        licence: as written; "" where it is not said, or in so many words that it is no name of one.
        module: NAME:STREAM:VERSION:CONTEXT of the module that it came in, as RHEL 8 has them; else "".

    Raises:
        FormatError: there is no name or no version, or none that a package of this kind can have.
    """

    kind: str
    name: str
    version: str
    where: bytes
    architecture: str = ""
    source: str = ""
    source_version: str = ""
    licence: str = ""
    module: str = ""

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("version", self.version)):
            if not text:
                raise FormatError(f"a package without a {what}: {self.name[:100]!r}")
            if len(text) > _MAX_NAME or not text.isprintable() or text != text.strip():
                raise FormatError(f"a {what} that no package has: {text[:100]!r}")
        if not _NAMES.get(self.kind, _PLAIN).fullmatch(self.name):
            raise FormatError(f"a name that no package has: {self.name[:100]!r}")

    @property
    def has_other_source(self) -> bool:
        """Whether its source package has another name or version than itself."""
        # Source RPMs are named without the epoch; apk's source packages have the version of what they made.
        version = self.version.rpartition(":")[2] if self.kind == "rpm" else self.version
        same = self.source == self.name and self.source_version in ("", version)
        return bool(self.source) and not same

    def purl(self, distribution: Distribution) -> PackageURL:
        """Its package URL (the purl specification, types deb, apk, rpm, pypi and npm).

        Two qualifiers are not in the specification: `upstream` names the source package as Syft does, and
        `rpmmod` the module as Red Hat does. Advisories are written for these.
        """
        namespace, name, version = "", self.name, self.version
        qualifiers = {}
        if self.kind in _SYSTEM:
            namespace = _VENDORS.get(distribution.id, distribution.id)
            qualifiers["arch"] = self.architecture
            qualifiers["distro"] = "-".join(filter(None, (distribution.id, distribution.version)))
            qualifiers["upstream"] = self._upstream()
            qualifiers["rpmmod"] = self.module
        if self.kind == "rpm" and ":" in version:
            qualifiers["epoch"], version = version.split(":", 1)
        if self.kind == "npm" and "/" in name:
            namespace, name = name.split("/", 1)
        return PackageURL(
            self.kind, namespace or None, name, version or None, {k: v for k, v in qualifiers.items() if v}
        )

    def _upstream(self) -> str:
        if self.kind == "rpm":
            return f"{self.source}-{self.source_version}.src.rpm" if self.source else ""
        if not self.has_other_source:
            return ""
        version = "" if self.source_version == self.version else self.source_version
        return f"{self.source}@{version}" if version else self.source


def parse_redhat_release(data: bytes) -> Distribution:
    """What etc/redhat-release says, all that releases before 7 say: "CentOS release 6.10 (Final)"."""
    line = data.decode("utf-8", "replace").strip().partition("\n")[0]
    found = _RELEASE.fullmatch(line)
    if found is None:
        return Distribution()
    name = "rhel" if found[1].startswith("Red Hat Enterprise Linux") else found[1].split()[0].lower()
    return Distribution(name, found[2], line)


def licence_name(text: str, longest: int = _MAX_LICENCE) -> str:
    """A licence's name, or an expression of several, if `text` is one and not a whole licence; else ""."""
    text = " ".join(text.split())
    return text if len(text) <= longest and text.upper() != "UNKNOWN" else ""


def parse_os_release(data: bytes) -> Distribution:
    """What an os-release file says; lines that are no assignments are nothing."""
    values: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith("#"):
            continue
        try:
            words = shlex.split(value)
        except ValueError:
            continue
        values[name] = words[0] if words else ""
    return Distribution(
        values.get("ID", "").lower(), values.get("VERSION_ID", ""), values.get("PRETTY_NAME", "")
    )
