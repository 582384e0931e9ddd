"""All checks, in the order in which things are built on each other."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

from msgspec import Struct

from lazyfs.assembly import source_settings
from lazyfs.config import Config
from lazyfs.doctor.containerd import check_containerd
from lazyfs.doctor.disk import check_cache, check_limits, existing_directory
from lazyfs.doctor.docker import check_docker
from lazyfs.doctor.findings import Finding
from lazyfs.doctor.kernel import (
    check_capabilities,
    check_erofs,
    check_fuse,
    check_kernel,
    check_overlay,
)
from lazyfs.doctor.machine import Machine
from lazyfs.doctor.podman import check_podman
from lazyfs.doctor.runtimes import check_runtimes
from lazyfs.doctor.sockets import check_hosts, check_services
from lazyfs.doctor.users import check_id_ranges, check_runtime_directory, check_user_namespaces


class Places(Struct, frozen=True):
    """Where services are.

    Attributes:
        daemon: the daemon's socket.
        snapshotter: the snapshotter's socket.
        runtime: the directory of live mounts' states.
        containerd_config: containerd's configuration file; None for the usual one.
        containerd_socket: its socket; None for the usual one.
    """

    daemon: Path
    snapshotter: Path
    runtime: Path
    containerd_config: Path | None = None
    containerd_socket: Path | None = None


def examine(machine: Machine, config: Config, places: Places) -> Iterator[Finding]:
    """Everything that was found. Blocks for files, sockets and small programs."""
    place = existing_directory(config)
    writable = place if place == config.cache_dir.absolute() else Path(gettempdir())
    yield from check_kernel(machine)
    yield from check_capabilities(machine)
    yield from check_fuse(machine, writable)
    yield from check_erofs(machine, writable)
    yield from check_overlay(machine, writable)
    yield from check_runtime_directory(places.runtime)
    yield from check_user_namespaces(machine)
    yield from check_id_ranges(machine)
    yield from check_cache(machine, config)
    yield from check_limits()
    yield from check_hosts(source_settings(config))
    yield from check_runtimes(machine)
    yield from check_services(machine, places.daemon, places.snapshotter)
    yield from check_containerd(machine, places.containerd_config, places.containerd_socket)
    yield from check_docker(machine, places.containerd_socket)
    yield from check_podman(machine)
