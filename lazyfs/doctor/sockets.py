"""Whether our own services answer, and whether what is said of registries can be read."""

import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine, is_there
from lazyfs.errors import ConfigError
from lazyfs.source.hosts.hosts_config import endpoints_of
from lazyfs.source.hosts.registries_conf import endpoints_by
from lazyfs.source.http.settings import SourceSettings

_TIMEOUT_S: Final = 5.0
_PORT: Final = re.compile(r"(.+)_(\d+)_")


def why_no_answer(path: Path) -> str:
    """Why nobody can be reached at a unix socket; "" if somebody can."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISSOCK(mode):
        return f"{path} is no socket"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(str(path))
        except OSError as error:
            return f"{path}: {error.strerror or error}"
    return ""


def check_services(machine: Machine, daemon: Path, snapshotter: Path) -> Iterator[Finding]:
    """The daemon's and the snapshotter's sockets; both may be missing where containerd is not used."""
    sockets = {"daemon": daemon, "snapshotter": snapshotter}
    try:
        if not any(map(is_there, sockets.values())):
            yield ok("services", "neither daemon nor snapshotter runs: they are for containerd alone")
            return
    except OSError as error:
        fact = f"{daemon} and {snapshotter} cannot be looked at: {error.strerror}"
        yield warning(
            "services", fact, "look as the user whom they belong to, if there are containers of theirs"
        )
        return
    for name, path in sockets.items():
        reason = why_no_answer(path)
        if reason:
            yield problem(f"lazyfs {name}", reason, f"start lazyfs {name}; its log says why it ended")
        elif path.stat().st_mode & 0o077:
            yield problem(f"lazyfs {name}", f"others may use {path}", f"chmod 600 {path}")
        elif path.stat().st_uid != machine.uid:
            yield warning(f"lazyfs {name}", f"{path} is not yours", "look as the user whom it belongs to")
        else:
            yield ok(f"lazyfs {name}", f"answers at {path}")


def check_hosts(settings: SourceSettings) -> Iterator[Finding]:
    """The mirrors' files."""
    yield from _check_registries_conf(settings)
    directory = settings.hosts_dir
    try:
        names = sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory else []
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        yield problem("mirrors", f"{directory}: {error.strerror}", f"make {directory} readable")
        return
    if not names:
        yield ok("mirrors", f"none in {directory}")
        return
    wrong = False
    for name in names:
        port = _PORT.fullmatch(name)
        try:
            endpoints_of(f"{port[1]}:{port[2]}" if port else name, settings)
        except ConfigError as error:
            wrong = True
            yield problem("mirrors", str(error), "mend that file; until then images of that registry fail")
    if not wrong:
        yield ok("mirrors", f"{len(names)} registries in {directory}")


def _check_registries_conf(settings: SourceSettings) -> Iterator[Finding]:
    file = settings.registries_conf
    if file is None:
        return
    try:
        endpoints_by(file, "nobody.invalid", "", settings)
    except ConfigError as error:
        yield problem("mirrors", str(error), "mend that file; until then images of registries fail")
    else:
        yield ok("mirrors", f"{file} is read")
