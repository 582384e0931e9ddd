"""Whether root's Podman, or CRI-O, looks for layers where lazyfs shows them.

Source: containers-storage.conf(5), `additionallayerstores`.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lazyfs.doctor.findings import Finding, ok, problem, warning
from lazyfs.doctor.machine import Machine
from lazyfs.errors import ConfigError
from lazyfs.source.hosts.config_file import read_toml

_FILES: Final = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")
_BY_REFERENCE: Final = ":ref"
_FILE_SYSTEM: Final = "fuse.lazyfs"


def check_podman(machine: Machine) -> Iterator[Finding]:
    """Everything about Podman and CRI-O; one line if neither is here."""
    program = machine.program("podman") or machine.program("crio")
    if program is None:
        yield ok("podman", "is not installed, nor is CRI-O: no layer store is needed")
        return
    try:
        name, config = _config(machine)
    except ConfigError as error:
        yield problem("podman", str(error), "see containers-storage.conf(5)")
        return
    stores = _stores(config)
    if not stores:
        advice = "write additionallayerstores as docs/podman.md has it, if containers shall start lazily"
        yield warning("podman", f"{name} names no additional layer store", advice)
    for store in stores:
        yield _check_store(machine, store)


def _config(machine: Machine) -> tuple[str, dict[str, Any]]:
    for name in _FILES:
        with suppress(FileNotFoundError):
            return name, read_toml(machine.path(name))
    return _FILES[0], {}


def _stores(config: dict[str, Any]) -> list[str]:
    match config:
        case {"storage": {"options": {"additionallayerstores": [*stores]}}}:
            return [str(store) for store in stores]
    return []


def _check_store(machine: Machine, store: str) -> Finding:
    path = store.removesuffix(_BY_REFERENCE)
    if machine.file_system(Path(path)) != _FILE_SYSTEM:
        advice = f"start lazyfs daemon --layer-store {path}, or leave it out if it is another's"
        return warning("layer store", f"lazyfs shows nothing at {path}", advice)
    if path == store:
        advice = f'write "{path}{_BY_REFERENCE}": else nobody says which image a layer is of'
        return problem("layer store", f"{path} is looked into without an image's name", advice)
    return ok("layer store", path)
