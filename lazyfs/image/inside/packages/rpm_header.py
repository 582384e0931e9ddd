"""The header of an RPM package as databases keep it: an index of tagged values and a store that holds them.

Format: the RPM file format, "Header Structure", without the magic in front ("rpmdb blob").
"""

import struct
from typing import Final

from indexer.errors import FormatError
from lazyfs.image.inside.packages.package import Package, licence_name

MAX_HEADER: Final = 256 << 20
"""Bytes of the largest header that RPM accepts (lib/header.c, headerMaxbytes)."""

_MAX_TAGS: Final = 0xFFFF
_COUNTS: Final = struct.Struct(">II")
_ENTRY: Final = struct.Struct(">IIII")  # tag, type, offset in the store, number of values
_INT32, _STRING, _STRING_ARRAY, _I18N_STRING = 4, 6, 8, 9
_MAX_STRING: Final = 4096  # licences of large packages have more than 1000; what is longer tells nothing

_NAME, _VERSION, _RELEASE, _EPOCH = 1000, 1001, 1002, 1003
_LICENSE, _ARCH, _SOURCE_RPM, _MODULE = 1014, 1022, 1044, 5096
_TAGS: Final = frozenset({_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH, _SOURCE_RPM, _MODULE})
_KEY: Final = "gpg-pubkey"
_NOTHING: Final = "(none)"  # as RPM prints it, and as some packages say it


def parse_header(blob: bytes, where: bytes) -> Package | None:
    """The package that a header describes; None for the keys that RPM keeps among the packages.

    Raises:
        FormatError: the header is damaged, or its name or version is missing or such as none can have.
    """
    values = _values(blob)
    name, version = values.get(_NAME, ""), values.get(_VERSION, "")
    if name == _KEY:
        return None
    release = values.get(_RELEASE, "")
    whole = f"{version}-{release}" if release else version
    source, source_version = _source(values.get(_SOURCE_RPM, ""))
    return Package(
        "rpm",
        name,
        f"{values[_EPOCH]}:{whole}" if _EPOCH in values else whole,
        where,
        architecture=values.get(_ARCH, ""),
        source=source,
        source_version=source_version,
        licence=licence_name(values.get(_LICENSE, ""), _MAX_STRING),
        module=values.get(_MODULE, ""),
    )


def _source(file_name: str) -> tuple[str, str]:
    """(name, version-release) from NAME-VERSION-RELEASE.src.rpm."""
    stem = file_name.removesuffix(".rpm").removesuffix(".src").removesuffix(".nosrc")
    parts = stem.rsplit("-", 2)
    return (parts[0], f"{parts[1]}-{parts[2]}") if len(parts) == 3 else ("", "")


def _values(blob: bytes) -> dict[int, str]:
    """The first value of each tag of interest, as text."""
    if len(blob) < _COUNTS.size:
        raise FormatError("an RPM header is cut short")
    tags, size = _COUNTS.unpack_from(blob)
    store = _COUNTS.size + tags * _ENTRY.size
    if tags > _MAX_TAGS or store + size > len(blob):
        raise FormatError("an RPM header is cut short")
    values: dict[int, str] = {}
    for number in range(tags):
        tag, kind, offset, count = _ENTRY.unpack_from(blob, _COUNTS.size + number * _ENTRY.size)
        if tag in _TAGS and count and tag not in values:
            values[tag] = _value(blob, kind, store + offset, store + size)
    return {tag: value for tag, value in values.items() if value != _NOTHING}


def _value(blob: bytes, kind: int, start: int, end: int) -> str:
    if kind == _INT32:
        if start + 4 > end:
            raise FormatError("an RPM header's number lies outside its store")
        return str(int.from_bytes(blob[start : start + 4], "big"))
    if kind not in (_STRING, _STRING_ARRAY, _I18N_STRING):
        raise FormatError(f"an RPM header's text has type {kind}")
    stop = blob.find(b"\0", start, end)
    if stop < 0:
        raise FormatError("an RPM header's text has no end")
    return blob[start:stop].decode("utf-8", "replace") if stop - start <= _MAX_STRING else ""
