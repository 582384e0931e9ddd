"""What users' mounts and containers stand on: a directory of their own, user namespaces, ranges of ids."""

import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.container.user_namespace import parse_subordinates
from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine
from lazyfs.errors import MountError
from lazyfs.mount_states import ensure_private

# The key, its value where the kernel has none, that which keeps users from namespaces, and one that does not.
_SWITCHES: Final = (
    ("user.max_user_namespaces", "0", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "1", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "0", "1", "0"),
)


def check_runtime_directory(path: Path) -> Iterator[Finding]:
    """Where live mounts have their state: if others may enter that, nothing can be mounted."""
    if not os.path.lexists(path):
        yield ok("runtime directory", f"{path} is made when something is mounted")
        return
    try:
        ensure_private(path)
    except MountError as error:
        advice = f"chown {os.getuid()} {path}; chmod 700 {path}; or name another in LAZYFS_RUNTIME_DIR"
        yield problem("runtime directory", str(error), advice)
    else:
        yield ok("runtime directory", f"{path} is ours alone")


def check_user_namespaces(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel gives ordinary users namespaces in which they may mount."""
    values = {}
    for key, absent, forbidden, allowed in _SWITCHES:
        values[key] = (machine.text(f"/proc/sys/{key.replace('.', '/')}") or absent).strip()
        if values[key] == forbidden:
            advice = f"sysctl {key}={allowed}, if containers shall run without root"
            yield warning("user namespaces", f"are switched off by {key}={forbidden}", advice)
            return
    yield ok("user namespaces", f"at most {values['user.max_user_namespaces']}")


def check_id_ranges(machine: Machine) -> Iterator[Finding]:
    """Whether an ordinary user's containers can have more users than root."""
    if machine.uid == 0:
        return
    names = {str(machine.uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(machine.uid).pw_name)
    lacking = [name for name in ("newuidmap", "newgidmap") if machine.program(name) is None]
    without = [
        file for file in ("/etc/subuid", "/etc/subgid")
        if parse_subordinates(machine.text(file) or "", names) is None
    ]  # fmt: skip
    if lacking:
        advice = "install the package uidmap, if containers shall have other users than root"
        yield warning("ids", f"{' and '.join(lacking)} cannot be found", advice)
    elif without:
        advice = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
        yield warning("ids", f"there is no range of ours in {' and '.join(without)}", advice)
    else:
        yield ok("ids", "containers without root have ranges of them")
