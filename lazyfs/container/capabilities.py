"""Which capabilities (capabilities(7)) a container may have."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from lazyfs.errors import ContainerError

# include/uapi/linux/capability.h, by number
_NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK"),
    *("IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN"),
    *("SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE"),
    *("AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
    *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
KNOWN: Final = tuple(f"CAP_{name}" for name in _NAMES)

# moby, oci/caps/defaults.go
DEFAULT: Final = tuple(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP"),
        *("SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
)

_ALL: Final = "ALL"


def chosen(added: Iterable[str], dropped: Iterable[str], available: Sequence[str]) -> tuple[str, ...]:
    """The default ones, more and less, in the kernel's order.

    As with docker: names stand with or without CAP_, in any case; from ALL added, which are those available,
    some may be dropped by name; to ALL dropped some may be added.

    Raises:
        ContainerError: there is no such capability, or we have it not to give.
    """
    more, less = {_read(text) for text in added}, {_read(text) for text in dropped}
    lacking = sorted(more - {_ALL, *available})
    if lacking:
        raise ContainerError(f"{lacking[0]} cannot be given: this process is not allowed to have it")
    plain = () if _ALL in less else DEFAULT
    wanted = set(available if _ALL in more else plain) - less | more
    return tuple(name for name in KNOWN if name in wanted)


def available_here() -> tuple[str, ...]:
    """Those that this process may have and give: its bounding set."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            bounding = int(line.split()[1], 16)
            return tuple(name for number, name in enumerate(KNOWN) if bounding >> number & 1)
    return ()


def _read(text: str) -> str:
    name = text.upper()
    if name == _ALL:
        return name
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in KNOWN:
        raise ContainerError(f"there is no capability {text!r}")
    return name
