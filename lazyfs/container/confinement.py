"""What a container is kept from: capabilities, calls of the kernel, privileges gained by executing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from lazyfs.container.capabilities import DEFAULT, available_here, chosen
from lazyfs.container.seccomp import MAX_PROFILE_BYTES, default_profile, read_profile
from lazyfs.errors import ContainerError


class Confinement(Struct, frozen=True):
    """What a container is kept from.

    Attributes:
        capabilities: the most it may have.
        seccomp: the runtime specification's `linux.seccomp`; None for no filter.
        no_new_privileges: setuid programs and file capabilities give none.
    """

    capabilities: Sequence[str] = DEFAULT
    seccomp: Mapping[str, Any] | None = None
    no_new_privileges: bool = False


def confine(added: Sequence[str], dropped: Sequence[str], options: Sequence[str]) -> Confinement:
    """What the user says, in docker's words: --cap-add, --cap-drop, --security-opt.

    Raises:
        ContainerError: that cannot be, or makes no sense.
    """
    capabilities = chosen(added, dropped, available_here())
    machine = os.uname().machine
    seccomp: Mapping[str, Any] | None = default_profile(capabilities, machine)
    no_new_privileges = False
    for option in options:
        name, _, value = option.partition("=" if "=" in option else ":")  # docker's older spelling
        if name == "no-new-privileges" and value in {"", "true", "false"}:
            no_new_privileges = value != "false"
        elif name == "seccomp" and value == "unconfined":
            seccomp = None
        elif name == "seccomp" and value:
            seccomp = read_profile(_content(Path(value)), capabilities, machine)
        else:
            raise ContainerError(f"{option!r}: write seccomp=unconfined, seccomp=FILE or no-new-privileges")
    return Confinement(capabilities, seccomp, no_new_privileges)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROFILE_BYTES)
    except OSError as error:
        raise ContainerError(f"{path}: {error.strerror}") from error
