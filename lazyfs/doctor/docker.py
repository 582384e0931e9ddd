"""Whether Docker keeps images with containerd, in snapshots of lazyfs.

Source: dockerd(8), `features`, `storage-driver` and `containerd` of daemon.json; moby,
`daemon/image_store_choice.go` and `daemon/config/config.go`.
"""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from indexer.errors import FormatError
from lazyfs.doctor.containerd import PLUGIN, SOCKET
from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine
from lazyfs.doctor.sockets import why_no_answer
from lazyfs.errors import ConfigError
from lazyfs.oci.json_fields import Fields, parse_object
from lazyfs.source.hosts.config_file import MAX_BYTES, read_bytes

_FILE: Final = "/etc/docker/daemon.json"
_LONGEST: Final = 4096
_STORE: Final = "containerd-snapshotter"
_ADVICE: Final = (
    f'write "features": {{"{_STORE}": true}} and "storage-driver": "{PLUGIN}" into it, if containers shall'
    " start lazily"
)


def check_docker(machine: Machine, containerd_socket: Path | None) -> Iterator[Finding]:
    """Everything about Docker; nothing if it has no configuration file.

    Args:
        machine: where to look.
        containerd_socket: where the containerd is that was looked at; the usual one if None.
    """
    try:
        config = _read(machine.path(_FILE))
        features, driver = config.child("features"), _name(config, "storage-driver")
        # Where nothing is said, Docker 29 decides by what it finds, and those before have it off.
        store = features.flag(_STORE) if _STORE in features else None
        named = _name(config, "containerd").removeprefix("unix://")
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        yield warning("docker", f"{_FILE}: {error.strerror}", "look as root")
        return
    except (OSError, ConfigError, FormatError) as error:
        reason = f"{_FILE}: {error.strerror}" if isinstance(error, OSError) else str(error)
        yield problem("docker", reason, "mend that file, and restart Docker")
        return
    if store is False:
        yield warning("docker", f"{_FILE} switches the containerd image store off", _ADVICE)
    elif driver != PLUGIN:
        fact = f"has the storage driver {driver!r}" if driver else "names no storage driver"
        yield warning("docker", f"{_FILE} {fact}", _ADVICE)
    else:
        unsaid = "" if store else "; only a Docker installed as 29 or later has its image store by default"
        yield ok("docker", f"the storage driver is {PLUGIN}{unsaid}")
        yield _check_containerd(machine, named, containerd_socket or machine.path(SOCKET))


def _read(path: Path) -> Fields:
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    return parse_object(data if data.strip() else b"{}", _FILE, MAX_BYTES)  # as dockerd has it


def _name(config: Fields, key: str) -> str:
    name = config.text(key, "")
    if len(name) > _LONGEST or "\0" in name:
        raise FormatError(f"{config.where}: {key!r} is too long, or holds a zero")
    return name


def _check_containerd(machine: Machine, named: str, looked_at: Path) -> Finding:
    path = machine.path(named or SOCKET)
    if os.path.realpath(path) != os.path.realpath(looked_at):
        advice = f"lazyfs doctor --containerd-socket {path} --containerd-config FILE looks at it"
        return warning("docker's containerd", f"is at {path}, another than was looked at", advice)
    if reason := why_no_answer(path):
        advice = "start it before Docker" + ("" if named else ", which otherwise starts one of its own")
        return warning("docker's containerd", reason, advice)
    return ok("docker's containerd", str(path))
