"""Whether containerd is told of lazyfs, and tells lazyfs what it needs to know.

Source: containerd, `docs/man/containerd-config.toml.5.md`, `docs/PLUGINS.md`, `docs/cri/config.md` and
`docs/transfer.md`. The configuration is what `containerd config dump` says: with its imports, and in the form
of that version (2 for containerd 1.x, 3 for 2.x).
"""

import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine, is_there
from lazyfs.doctor.sockets import why_no_answer

PLUGIN: Final = "lazyfs"
SOCKET: Final = "/run/containerd/containerd.sock"

_CONFIG: Final = "/etc/containerd/config.toml"
_TIMEOUT_S: Final = 20
_CRI_1: Final = "io.containerd.grpc.v1.cri"
_CRI_2: Final = "io.containerd.cri.v1.images"
_TRANSFER: Final = "io.containerd.transfer.v1.local"
_EXPORTS_SINCE: Final = (2, 1)


class Containerd(Struct, frozen=True):
    """A containerd.

    Attributes:
        version: (1, 6), (1, 7), (2, 1).
        config: its configuration.
        file: where that is written.
    """

    version: tuple[int, int]
    config: Mapping[str, Any]
    file: Path


def check_containerd(machine: Machine, config_file: Path | None, socket: Path | None) -> Iterator[Finding]:
    """Everything about containerd; one line if there is none here.

    Args:
        machine: where to look.
        config_file: its configuration file; the usual one if None.
        socket: its socket; the usual one if None.
    """
    program = machine.program("containerd")
    if program is None:
        yield ok("containerd", "is not installed: nothing is needed for `lazyfs mount` and `lazyfs run`")
        return
    file = config_file or machine.path(_CONFIG)
    found = _read(program, file)
    if isinstance(found, Finding):
        yield found
        return
    version = ".".join(map(str, found.version))
    yield ok("containerd", f"{version}, configured by {file if file.exists() else 'defaults alone'}")
    yield from check_config(found)
    reason = why_no_answer(socket or machine.path(SOCKET))
    if reason:
        yield warning("containerd's socket", reason, "start containerd, after the snapshotter")
    else:
        yield ok("containerd's socket", str(socket or SOCKET))


def _read(program: str, file: Path) -> Containerd | Finding:
    said = _output([program, "--version"])
    match = re.search(r"\bv?(\d+)\.(\d+)\.\d+", said)
    if match is None:
        return problem("containerd", f"{program} --version says {said[:100]!r}", "repair its installation")
    version = (int(match[1]), int(match[2]))
    if version < (1, 6):
        return problem("containerd", f"{version[0]}.{version[1]}", "use containerd 1.6 or later")
    try:
        configured = is_there(file)
    except OSError as error:
        return warning("containerd", f"{file}: {error.strerror}", "look as root")
    # Without a file it is the defaults, which both print.
    words = ["--config", str(file), "config", "dump"] if configured else ["config", "default"]
    try:
        return Containerd(version, tomllib.loads(_output([program, *words])), file)
    except tomllib.TOMLDecodeError:
        return problem("containerd", f"does not accept {file}", f"see what {program} config dump says")


def _output(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=_TIMEOUT_S, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout or done.stderr


def check_config(containerd: Containerd) -> Iterator[Finding]:
    """Its configuration."""
    plugin = _table(containerd.config, "proxy_plugins", PLUGIN)
    if not plugin:
        advice = (
            f"add [proxy_plugins.{PLUGIN}] as docs/containerd.md has it, if containers shall start lazily"
        )
        yield warning("proxy plugin", f"{containerd.file} has no [proxy_plugins.{PLUGIN}]", advice)
        return
    if plugin.get("type") != "snapshot":
        yield problem("proxy plugin", f"its type is {plugin.get('type')!r}", 'write type = "snapshot"')
        return
    address = str(plugin.get("address", ""))
    reason = why_no_answer(Path(address)) if address.startswith("/") else f"its address is {address!r}"
    if reason:
        yield problem("proxy plugin", reason, "start lazyfs snapshotter there, before containerd")
    else:
        yield ok("proxy plugin", address)
    yield from _check_cri(containerd)
    if containerd.version >= (2, 0):
        yield from _check_capabilities(plugin)
        yield from _check_transfer(containerd, plugin)


def _check_capabilities(plugin: Mapping[str, Any]) -> Iterator[Finding]:
    announced = plugin.get("capabilities") or []
    if "rebase" in announced:
        advice = f'take "rebase" out of capabilities in [proxy_plugins.{PLUGIN}]'
        yield problem("capability rebase", "is announced: no layer can be lazy", advice)
    if "remap-ids" in announced:
        yield ok("user namespaces", "are mapped")
    else:
        advice = f'write capabilities = ["remap-ids"] into [proxy_plugins.{PLUGIN}]'
        why = "are not announced to be mapped: containers with one of their own fetch all of their image"
        yield warning("user namespaces", why, advice)


def _check_cri(containerd: Containerd) -> Iterator[Finding]:
    if containerd.version >= (2, 0):
        keys: tuple[str, ...] = ("plugins", _CRI_2)
    else:
        keys = ("plugins", _CRI_1, "containerd")
    where = f'[plugins."{".".join(keys[1:2])}"{"".join("." + key for key in keys[2:])}]'
    table = _table(containerd.config, *keys)
    snapshotter = table.get("snapshotter")
    if snapshotter == PLUGIN:
        yield ok("CRI's snapshotter", PLUGIN)
    else:
        advice = f'write snapshotter = "{PLUGIN}" into {where}, if Kubernetes shall use it'
        yield warning("CRI's snapshotter", f"is {snapshotter!r}", advice)
    if table.get("disable_snapshot_annotations", True) is False:
        yield ok("snapshot annotations", "are passed on")
    else:
        advice = f"write disable_snapshot_annotations = false into {where}"
        state = problem if snapshotter == PLUGIN else warning
        yield state("snapshot annotations", "are disabled: no layer can be lazy", advice)


def _check_transfer(containerd: Containerd, plugin: Mapping[str, Any]) -> Iterator[Finding]:
    entries = _table(containerd.config, "plugins", _TRANSFER).get("unpack_config") or []
    if any(isinstance(entry, dict) and entry.get("snapshotter") == PLUGIN for entry in entries):
        yield ok("transfer service", f"unpacks for {PLUGIN}")
    else:
        advice = f'add [[plugins."{_TRANSFER}".unpack_config]] with snapshotter = "{PLUGIN}"'
        yield warning("transfer service", f"does not unpack for {PLUGIN}: ctr images pull fails", advice)
    exports = _table(plugin, "exports")
    if containerd.version < _EXPORTS_SINCE:
        return
    if exports.get("enable_remote_snapshot_annotations") == "true":
        yield ok("transfer annotations", "are passed on")
    else:
        advice = f'write enable_remote_snapshot_annotations = "true" into [proxy_plugins.{PLUGIN}.exports]'
        yield warning("transfer annotations", "are not passed on: ctr images pull is not lazy", advice)
    if "root" not in exports:
        advice = f"write root = the snapshotter's --root into [proxy_plugins.{PLUGIN}.exports]"
        yield warning("exported root", "is not set: the kubelet watches another file system", advice)


def _table(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A table of tables; empty if there is none."""
    table: Any = config
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}
