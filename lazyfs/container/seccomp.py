"""What containers may not ask of the kernel: `linux.seccomp` (OCI runtime-spec, config-linux.md).

The default allows what it does not name, so that programs go on working on kernels to come. It denies what
has no namespaces, what exploits are made of and hardly anything else, and what takes a capability that the
container has not, so that a hole in the kernel's own checks is none here.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from lazyfs.errors import ContainerError

MAX_PROFILE_BYTES: Final = 1 << 20

_EPERM: Final = 1
_ENOSYS: Final = 38

# Of each machine (uname(2)) those whose calls its kernel also answers.
_ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "armv7l": ("SCMP_ARCH_ARM",),
    "i686": ("SCMP_ARCH_X86",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}
# As docker's profiles call them.
_DOCKERS_NAMES: Final = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "x86", "ppc64le": "ppc64le",
    "riscv64": "riscv64", "s390x": "s390x",
}  # fmt: skip

_NEVER: Final = (
    *("add_key", "keyctl", "request_key"),  # keyrings have no namespace of their own
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"),  # what exploits are made of
    *("create_module", "get_kernel_syms", "query_module", "nfsservctl", "_sysctl", "sysfs", "uselib"),
    *("vm86", "vm86old", "lookup_dcookie"),
)

_UNLESS: Final[tuple[tuple[frozenset[str], tuple[str, ...]], ...]] = (
    (
        frozenset({"CAP_SYS_ADMIN"}),
        (
            *("mount", "umount", "umount2", "pivot_root", "mount_setattr", "move_mount", "open_tree"),
            *("open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "setns", "unshare"),
            *("swapon", "swapoff", "quotactl", "quotactl_fd", "fanotify_init", "sethostname"),
            "setdomainname",
        ),
    ),
    (frozenset({"CAP_SYS_ADMIN", "CAP_BPF"}), ("bpf",)),
    (frozenset({"CAP_SYS_ADMIN", "CAP_PERFMON"}), ("perf_event_open",)),
    (frozenset({"CAP_SYS_ADMIN", "CAP_SYSLOG"}), ("syslog",)),
    (frozenset({"CAP_DAC_READ_SEARCH"}), ("open_by_handle_at",)),
    (frozenset({"CAP_SYS_MODULE"}), ("init_module", "finit_module", "delete_module")),
    (frozenset({"CAP_SYS_BOOT"}), ("kexec_load", "kexec_file_load", "reboot")),
    (frozenset({"CAP_SYS_RAWIO"}), ("iopl", "ioperm", "pciconfig_read", "pciconfig_write")),
    (frozenset({"CAP_SYS_TIME"}), ("settimeofday", "stime", "clock_settime", "clock_settime64")),
    (frozenset({"CAP_SYS_PACCT"}), ("acct",)),
    (frozenset({"CAP_SYS_NICE"}), ("move_pages", "migrate_pages")),
    (frozenset({"CAP_SYS_TTY_CONFIG"}), ("vhangup",)),
)

# include/uapi/linux/sched.h: mounts, cgroups, UTS, IPC, users, processes, network
_NEW_NAMESPACES: Final = (
    *(0x00020000, 0x02000000, 0x04000000, 0x08000000),
    *(0x10000000, 0x20000000, 0x40000000),
)
_FLAGS_SECOND: Final = ("s390x",)  # clone(2) takes them as its second argument there


def default_profile(capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """What a container with these capabilities may not ask of a kernel of this machine (`uname -m`)."""
    denied = [*_NEVER]
    for permitting, names in _UNLESS:
        if permitting.isdisjoint(capabilities):
            denied += names
    rules = [_denial(denied)]
    if "CAP_SYS_ADMIN" not in capabilities:
        where = int(machine in _FLAGS_SECOND)
        rules += (_denial(["clone"], args=[_has(where, flag)]) for flag in _NEW_NAMESPACES)
        # Its flags lie in memory, where no filter looks; without it libraries use clone.
        rules.append(_denial(["clone3"], _ENOSYS))
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": list(_ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def _denial(names: list[str], error: int = _EPERM, **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error, **more}


def _has(argument: int, bit: int) -> dict[str, Any]:
    return {"index": argument, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}


def read_profile(data: bytes, capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """A profile from a file: as the runtime specification has it, or as docker has it, made to fit here.

    Raises:
        ContainerError: it is none.
    """
    try:
        told = json.loads(data)
        rules = [
            {key: value for key, value in rule.items() if key not in {"includes", "excludes", "comment"}}
            for rule in told.get("syscalls") or ()
            if _applies(rule, capabilities, _DOCKERS_NAMES.get(machine, machine))
        ]
        architectures = told.get("architectures") or _mapped(told.get("archMap") or (), machine)
        flags = {key: told[key] for key in ("defaultErrnoRet", "flags") if key in told}
        action = told["defaultAction"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContainerError(
            "that is no seccomp profile: it takes JSON with defaultAction and syscalls"
        ) from error
    return {"defaultAction": action, "architectures": list(architectures), "syscalls": rules, **flags}


def _mapped(groups: Iterable[Mapping[str, Any]], machine: str) -> list[str]:
    """The architectures that docker's archMap has for a machine."""
    own = _ARCHITECTURES.get(machine, ("",))[0]
    for group in groups:
        if group["architecture"] == own:
            return [own, *(group.get("subArchitectures") or ())]
    return []


def _applies(rule: Mapping[str, Any], capabilities: Collection[str], machine: str) -> bool:
    """Whether docker's conditions of a rule hold; every kernel here is newer than their minKernel."""
    needs, without = rule.get("includes") or {}, rule.get("excludes") or {}
    if any(name not in capabilities for name in needs.get("caps") or ()):
        return False
    if any(name in capabilities for name in without.get("caps") or ()):
        return False
    if needs.get("arches") and machine not in needs["arches"]:
        return False
    return machine not in (without.get("arches") or ())
