"""What a runtime is told of a container (OCI runtime-spec 1.0.2), with docker's and containerd's defaults."""

import os
from collections.abc import Sequence
from pathlib import Path
from stat import S_IMODE
from typing import Any, Final

from msgspec import Struct, field

from lazyfs.container.confinement import Confinement
from lazyfs.container.given import DEFAULT_SHM, Device, Tmpfs, Volume
from lazyfs.container.image_user import Identity

# moby, oci/defaults.go
MASKED_PATHS: Final = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
    *("/sys/firmware", "/sys/devices/virtual/powercap"),
)
READ_ONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

KERNEL_MOUNTS: Final = ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup")  # noqa: S108  # the container's
"""Where the kernel's file systems come, whatever the image has there."""


class ContainerSpec(Struct, frozen=True):
    """What is to run, with everything settled.

    Attributes:
        root: the root directory, mounted.
        arguments: what is executed.
        env: NAME=VALUE pairs.
        working_dir: where it starts.
        identity: who it is.
        hostname: its name for itself.
        network: "host" or "none".
        read_only: nothing but volumes can be written.
        terminal: it has a terminal of its own.
        window: the terminal's rows and columns at first; None if that is not known.
        volumes: what of the host is shown, in the order of mounting.
        tmpfs: directories in memory, which volumes may lie in.
        devices: what of the host's can be used.
        shm_size: bytes that /dev/shm holds.
        rootless: we are in a user namespace that an ordinary user made.
        private_cgroups: it has a cgroup namespace, as with version 2.
        confinement: what it is kept from.
    """

    root: Path
    arguments: Sequence[str]
    env: Sequence[str]
    working_dir: str
    identity: Identity
    hostname: str
    network: str = "host"
    read_only: bool = False
    terminal: bool = False
    window: tuple[int, int] | None = None
    volumes: Sequence[Volume] = ()
    tmpfs: Sequence[Tmpfs] = ()
    devices: Sequence[Device] = ()
    shm_size: int = DEFAULT_SHM
    rootless: bool = False
    private_cgroups: bool = False
    confinement: Confinement = field(default_factory=Confinement)


def runtime_spec(spec: ContainerSpec) -> dict[str, Any]:
    """The content of a bundle's config.json."""
    return {
        "ociVersion": "1.0.2",
        "process": _process(spec),
        "root": {"path": str(spec.root), "readonly": spec.read_only},
        "hostname": spec.hostname,
        "mounts": [*_kernel_mounts(spec), *map(_tmpfs, spec.tmpfs), *map(_volume, _volumes(spec))],
        "linux": {
            "namespaces": [{"type": kind} for kind in _namespaces(spec)],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
            **({"seccomp": spec.confinement.seccomp} if spec.confinement.seccomp else {}),
            **({} if spec.rootless else _devices(spec.devices)),
        },
    }


def _volumes(spec: ContainerSpec) -> list[Volume]:
    """What is shown of the host: devices, too, where they cannot be made."""
    shown = [Volume(each.source, each.target, read_only=False) for each in spec.devices if spec.rootless]
    return [*spec.volumes, *shown]


def _devices(devices: Sequence[Device]) -> dict[str, Any]:
    """Those that are made, and that the cgroup permits beside what every container has."""
    made, permitted = [], [{"allow": False, "access": "rwm"}]
    for device in devices:
        number = {
            "type": device.kind,
            "major": os.major(device.status.st_rdev),
            "minor": os.minor(device.status.st_rdev),
        }
        owner = {"uid": device.status.st_uid, "gid": device.status.st_gid}
        made.append({"path": device.target, **number, "fileMode": S_IMODE(device.status.st_mode), **owner})
        permitted.append({"allow": True, **number, "access": device.access})
    return {"devices": made, "resources": {"devices": permitted}}


def _process(spec: ContainerSpec) -> dict[str, Any]:
    # Effective and permitted are what execve(2) leaves: nothing for others than root.
    most = list(spec.confinement.capabilities)
    own = most if spec.identity.uid == 0 else []
    rows, columns = spec.window or (0, 0)
    return {
        "terminal": spec.terminal,
        **({"consoleSize": {"height": rows, "width": columns}} if spec.terminal and spec.window else {}),
        "user": {
            "uid": spec.identity.uid,
            "gid": spec.identity.gid,
            "additionalGids": list(spec.identity.groups),
        },
        "args": list(spec.arguments),
        "env": list(spec.env),
        "cwd": spec.working_dir,
        "capabilities": {
            "bounding": most,
            "effective": own,
            "permitted": own,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": spec.confinement.no_new_privileges,
    }


def _namespaces(spec: ContainerSpec) -> list[str]:
    apart = ["pid", "ipc", "uts", "mount"]
    if spec.network == "none":
        apart.append("network")
    if spec.private_cgroups:
        apart.append("cgroup")
    return apart


def _kernel_mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    plain = ["nosuid", "noexec", "nodev"]
    # Group 5, tty, need not be mapped where an ordinary user gives the ids.
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    mounts = [
        _mount("/proc", "proc", plain),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", terminals if spec.rootless else [*terminals, "gid=5"]),
        _mount("/dev/shm", "tmpfs", [*plain, "mode=1777", f"size={spec.shm_size}"], "shm"),  # noqa: S108  # as above
        _mount("/dev/mqueue", "mqueue", plain),
    ]
    if spec.rootless and spec.network == "host":
        # sysfs shows a network namespace, and takes rights over it.
        return [*mounts, _mount("/sys", "none", ["rbind", *plain, "ro"], "/sys")]
    mounts.append(_mount("/sys", "sysfs", [*plain, "ro"]))
    if not spec.rootless:
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", [*plain, "relatime", "ro"]))
    return mounts


def _mount(target: str, kind: str, options: Sequence[str], source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


def _tmpfs(tmpfs: Tmpfs) -> dict[str, Any]:
    return _mount(tmpfs.target, "tmpfs", ["mode=1777", *tmpfs.options])


def _volume(volume: Volume) -> dict[str, Any]:
    mode = "ro" if volume.read_only else "rw"
    return _mount(volume.target, "bind", ["rbind", "rprivate", mode], str(volume.source))
