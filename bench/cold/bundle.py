"""A bundle for runc: the container that engines make by default, but on the host's network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_CAPABILITIES: Final = tuple(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
        *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
)
_MOUNTS: Final = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "bind", "/sys", ("rbind", "nosuid", "noexec", "nodev", "ro")),
    ("/etc/hosts", "bind", "/etc/hosts", ("rbind", "ro")),
    ("/etc/resolv.conf", "bind", "/etc/resolv.conf", ("rbind", "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)


def write_bundle(
    bundle: Path,
    rootfs: Path,
    image: Mapping[str, Any],
    *,
    users: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    name: str,
) -> None:
    """Write `config.json`.

    Args:
        bundle: the folder.
        rootfs: the container's root.
        image: the image's configuration (OCI image specification, config.md).
        users: the same root as this process sees it; its users and groups are looked up.
        command: instead of the image's entrypoint and command, unless empty.
        environment: on top of the image's.
        name: of the container's control group, below "bench".
    """
    config = image.get("config") or {}
    arguments = list(command) or [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    uid, gid = user_of(config.get("User") or "", users)
    capabilities = list(_CAPABILITIES)
    held = dict.fromkeys(("bounding", "permitted", "effective"), capabilities)
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid},
            "args": arguments,
            "env": [*(config.get("Env") or []), *(f"{key}={value}" for key, value in environment.items())],
            "cwd": config.get("WorkingDir") or "/",
            "capabilities": held if uid == 0 else {"bounding": capabilities},
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs)},
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": list(options)}
            for place, kind, source, options in _MOUNTS
        ],
        "linux": {
            "cgroupsPath": f"/bench/{name}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
        },
    }
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(spec))


def user_of(user: str, rootfs: Path) -> tuple[int, int]:
    """The IDs of an image's "User": "", "name", "1000" or either with ":group".

    Raises:
        KeyError: the image's files do not know the name.
    """
    name, _, group = user.partition(":")
    uid, gid = _ids(name or "0", rootfs / "etc" / "passwd")
    return uid, _ids(group, rootfs / "etc" / "group")[0] if group else gid


def _ids(name: str, table: Path) -> tuple[int, int]:
    """The third and the fourth field of a line; of a number that stands nowhere, it and 0."""
    column = 2 if name.isdecimal() else 0
    lines = table.read_text().splitlines() if table.exists() else []
    for fields in (line.split(":") for line in lines):
        if len(fields) > 3 and fields[column] == name:
            return int(fields[2]), int(fields[3]) if fields[3].isdecimal() else 0
    if not name.isdecimal():
        raise KeyError(name)
    return int(name), 0
