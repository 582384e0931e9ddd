"""References: the names of images in registries.

The grammar and the rules of Docker's short names are those of `distribution/reference` (`reference.go`,
`normalize.go`); `docker.io/library/` is implied for a bare name.
"""

import re
from typing import Final

from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.errors import BadReference
from lazyfs.oci.descriptor import checked_digest

DOCKER_HUB: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_NAME_LENGTH: Final = 255
MAX_TEXT_LENGTH: Final = 1024

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}", re.ASCII)


class Reference(Struct, frozen=True):
    """An image in a registry. Where both tag and digest stand, the digest decides.

    Attributes:
        registry: host and perhaps port, "docker.io" for the Hub.
        repository: path in the registry, "library/python".
        tag: or "" where only a digest was given.
        digest: "sha256:…", or "".
    """

    registry: str
    repository: str
    tag: str = DEFAULT_TAG
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Registry and repository without tag and digest."""
        return f"{self.registry}/{self.repository}"


def parse_reference(text: str) -> Reference:
    """The reference that `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]` names, with Docker's defaults filled in.

    Raises:
        BadReference: it names none; the message says which part is wrong.
    """
    if not text:
        raise BadReference("the image's name is empty: write [REGISTRY/]REPOSITORY[:TAG]")
    if len(text) > MAX_TEXT_LENGTH:
        raise BadReference(f"image name of {len(text)} characters is too long: {text[:60]!r}…")
    if "://" in text:
        scheme, rest = text.split("://", 1)
        host, slash, path = rest.partition("/")
        name = host.rpartition("@")[2] + slash + path  # before the "@" may stand a password
        raise BadReference(f"an image name has no {scheme[:20]}://; write {name[:100]!r}")
    if _IDENTIFIER.fullmatch(text):
        raise BadReference(f"{text!r} is an image id; a registry finds images by name only")
    rest, at, digest = text.partition("@")
    name, tag = _split_tag(rest)
    registry, repository = _split_registry(name)
    _check_name(registry, repository, text)
    if tag is not None and not _TAG.fullmatch(tag):
        raise BadReference(f"{text!r}: {tag!r} is not a tag (letters, digits, . _ -, at most 128)")
    if at:
        try:
            checked_digest(digest, "digest")
        except FormatError:
            raise BadReference(
                f"{text!r}: what follows @ is not a digest like sha256:<64 hex digits>"
            ) from None
    if tag is None:
        tag = "" if at else DEFAULT_TAG
    return Reference(registry, repository, tag, digest)


def _split_tag(text: str) -> tuple[str, str | None]:
    """Name and tag; the tag follows the last ":" after the last "/"."""
    slash = text.rfind("/")
    colon = text.rfind(":")
    if colon <= slash:
        return text, None
    return text[:colon], text[colon + 1 :]


def _split_registry(name: str) -> tuple[str, str]:
    """Registry and repository, by Docker's rules for what the first component is."""
    first, slash, rest = name.partition("/")
    if not slash or (first != "localhost" and not set(".:") & set(first) and first == first.lower()):
        first, rest = DOCKER_HUB, name
    if first == "index.docker.io":
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _check_name(registry: str, repository: str, text: str) -> None:
    if not _DOMAIN.fullmatch(registry):
        raise BadReference(f"{text!r}: {registry!r} is not a registry's host")
    if not _PATH.fullmatch(repository):
        if _PATH.fullmatch(repository.lower()):
            raise BadReference(f"{text!r}: a repository's name is in lower case")
        raise BadReference(f"{text!r}: {repository!r} is not a repository's name")
    if len(registry) + 1 + len(repository) > MAX_NAME_LENGTH:
        raise BadReference(f"{text[:60]!r}…: the name is longer than {MAX_NAME_LENGTH} characters")
