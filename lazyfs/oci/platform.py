"""Platforms: what an image runs on, and which of several fits a machine best.

The rules of normalisation and the order of preference are those of containerd's `platforms` package
(`database.go`, `compare.go`), so that the same reference gives the same image here and there.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from lazyfs.errors import BadReference
from lazyfs.oci.json_fields import Fields

_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.ASCII)
_VERSION = re.compile(r"v?(\d{1,3})(?:\.(\d{1,3}))?", re.ASCII)

# name as found -> (architecture, variant where the name implies one)
_ARCHITECTURES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
}


class Platform(Struct, frozen=True):
    """An operating system on a processor, normalised.

    Attributes:
        os: "linux", "windows", …; "" where a document does not say.
        architecture: Go's name: "amd64", "arm64", "riscv64", …; "" where a document does not say.
        variant: "v7" and such; "" for the architecture's default.
        os_version: for Windows, the build.
        os_features: what the system must have.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(part for part in (self.os or "?", self.architecture or "?", self.variant) if part)


def normalised(
    os_name: str,
    architecture: str,
    variant: str = "",
    os_version: str = "",
    os_features: tuple[str, ...] = (),
) -> Platform:
    """A platform under its usual name: `x86_64` becomes `amd64`, `arm64/v8` becomes `arm64`."""
    os_name, architecture, variant = os_name.lower(), architecture.lower(), variant.lower()
    architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = variant or implied
    if variant.isdigit() and architecture in ("arm", "arm64"):
        variant = "v" + variant
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(
        "darwin" if os_name == "macos" else os_name, architecture, variant, os_version, tuple(os_features)
    )


def parse_platform(text: str) -> Platform:
    """The platform that `OS/ARCHITECTURE[/VARIANT]` names.

    Raises:
        BadReference: it names none.
    """
    parts = text.lower().split("/")
    if len(parts) not in (2, 3) or not all(_WORD.fullmatch(part) for part in parts):
        raise BadReference(f"not a platform: {text[:100]!r}; write it like linux/amd64 or linux/arm/v7")
    return normalised(parts[0], parts[1], parts[2] if len(parts) == 3 else "")


def platform_from_fields(fields: Fields) -> Platform:
    """The `platform` object of a descriptor, or the like fields of an image configuration.

    Raises:
        FormatError: a field has the wrong type.
    """
    return normalised(
        fields.text("os", ""),
        fields.text("architecture", ""),
        fields.text("variant", ""),
        fields.text("os.version", ""),
        fields.texts("os.features", 100),
    )


def host_platform() -> Platform:
    """The platform of this machine's kernel."""
    machine = os.uname().machine
    variant = _arm_version() if machine.startswith(("arm", "aarch64")) else ""
    return normalised("linux", machine, variant)


def _arm_version() -> str:
    """The ARM architecture version the kernel tells, "v8" and such; "" where it tells none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "cpu architecture" and value.strip().isdigit():
            return f"v{value.strip()}"
    return ""


def preferences(platform: Platform) -> tuple[tuple[str, str], ...]:
    """The pairs (architecture, variant) that run on `platform`, the best first.

    A 64-bit processor also runs its 32-bit forerunner, and a later variant all before it.
    """
    match platform.architecture:
        case "amd64":
            newest = _major(platform.variant, 1)
            return (*(("amd64", f"v{n}" if n > 1 else "") for n in range(newest, 0, -1)), ("386", ""))
        case "arm64":
            own = tuple(("arm64", variant) for variant in _arm64_variants(platform.variant))
            return (*own, *(("arm", f"v{n}") for n in range(8, 4, -1)))
        case "arm":
            return tuple(("arm", f"v{n}") for n in range(_major(platform.variant, 7), 4, -1))
        case other:
            return ((other, platform.variant),)


def rank(wanted: Platform, offered: Platform) -> int | None:
    """How well `offered` runs on `wanted`: 0 is best, None is not at all.

    Features that the offer needs must be among those wanted; a Windows build must have the wanted prefix.
    """
    if offered.os != wanted.os or not set(offered.os_features) <= set(wanted.os_features):
        return None
    if wanted.os_version and not offered.os_version.startswith(wanted.os_version):
        return None
    order = preferences(wanted)
    pair = (offered.architecture, offered.variant)
    return order.index(pair) if pair in order else None


def _arm64_variants(variant: str) -> list[str]:
    found = _VERSION.fullmatch(variant)
    major, minor = (int(found[1]), int(found[2] or 0)) if found else (8, 0)
    variants: list[str] = []
    if major == 9:
        variants += [*(f"v9.{n}" for n in range(minor, 0, -1)), "v9"]
        minor += 5  # "v9.x is a superset of v8.(x+5)"
    if major not in (8, 9):
        variants.append(variant)
        minor = 0
    return [*variants, *(f"v8.{n}" for n in range(min(minor, 20), 0, -1)), ""]


def _major(variant: str, default: int) -> int:
    found = _VERSION.fullmatch(variant)
    return min(int(found[1]), 9) if found else default
