"""Where a container lives while it runs, and how what is left of dead ones goes.

NAME/facts.json       who runs it, and where its changes are
NAME/lock             flocked by whoever runs it, so that the dead are told from the living
NAME/image, rootfs    mount points, in a mount namespace of its own
NAME/bundle, files    for the runtime, and files of the host's that it shows
NAME/runtime          the runtime's state
NAME/changes          its upper directory, unless that is kept elsewhere
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from msgspec import Struct
from msgspec.structs import asdict, replace

from lazyfs.container.runtime import Runtime
from lazyfs.errors import ContainerError
from lazyfs.flock import directory_locked, try_flock
from lazyfs.mount.syscalls import unmount_kernel
from lazyfs.removal import remove_tree

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_SOON_S: Final = 1.0
_LIMIT_S: Final = 120.0
_MOUNT_POINTS: Final = ("rootfs", "image")


class ContainerFacts(Struct, frozen=True):
    """What is known of a container.

    Attributes:
        identifier: its name for the runtime; "" before there is one.
        runtime: the runtime's program.
        rootless: whether it is in a user namespace of an ordinary user's.
        changes: the directory with its upper directory.
    """

    identifier: str = ""
    runtime: str = ""
    rootless: bool = False
    changes: str = ""


class ContainerPlace:
    """The directory of one container.

    Attributes:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<ContainerPlace {self.path}>"

    def part(self, name: str) -> Path:
        """A directory in it, made if it is not there."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    @property
    def facts(self) -> ContainerFacts:
        """What is known of it; nothing, where that cannot be read."""
        try:
            return ContainerFacts(**_read_json(self.path / "facts.json"))
        except (OSError, ValueError, TypeError):
            return ContainerFacts()

    def note(self, **facts: Any) -> None:
        """Write down more of it."""
        _write_json(self.path / "facts.json", asdict(replace(self.facts, **facts)))

    def runtime(self) -> Runtime | None:
        """The runtime that may know of it."""
        facts = self.facts
        if not facts.identifier:
            return None
        return Runtime(facts.runtime, self.path / "runtime", facts.rootless)

    def clear(self) -> None:
        """Kill the container, unmount what is mounted here, and remove the directory with its changes.

        What cannot be removed stays for the next who tries.
        """
        runtime = self.runtime()
        if runtime is not None:
            runtime.delete(self.facts.identifier)
        for name in _MOUNT_POINTS:
            with suppress(OSError):  # nothing is mounted here as far as we can see
                unmount_kernel(os.fsencode(self.path / name), lazy=True)
            with suppress(OSError):
                (self.path / name).rmdir()
        if any((self.path / name).exists() for name in _MOUNT_POINTS):
            return  # something is still mounted there: it must not be walked into
        grave = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        with suppress(OSError):
            self.path.rename(grave)
            remove_tree(grave)


class ContainerPlaces:
    """The directory of all containers of a user.

    Args:
        directory: where; made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def new(self, name: str = "") -> Iterator[ContainerPlace]:
        """A place for a new container, with its lock held, cleared at the end.

        Raises:
            ContainerError: the name cannot be one, or a container has it.
            TimeoutError: somebody else is at it for too long.
        """
        if name and not _NAME.fullmatch(name):
            raise ContainerError(f"{name!r} cannot be a container's name: letters, digits and _.- make one")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            place, lock = self._claim(name or secrets.token_hex(6))
        with Held(lock):
            try:
                yield place
            finally:
                place.clear()

    def _claim(self, name: str) -> tuple[ContainerPlace, int]:
        path = self._directory / name
        if not _clear_if_dead(path):
            raise ContainerError(f"a container named {name!r} is running: choose another name")
        path.mkdir(mode=0o700)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return ContainerPlace(path), descriptor

    def find(self, name: str) -> ContainerPlace | None:
        """The place of the container with this name, if there is one."""
        path = self._directory / name
        return ContainerPlace(path) if _NAME.fullmatch(name) and (path / "facts.json").is_file() else None

    def changing(self, directory: Path) -> ContainerPlace | None:
        """The place of the container whose changes are kept in this directory, if there is one."""
        for place in self.all():
            with suppress(OSError):
                if place.facts.changes and Path(place.facts.changes).samefile(directory):
                    return place
        return None

    def all(self) -> list[ContainerPlace]:
        """The places of all containers, by name; some may be of dead ones."""
        try:
            paths = sorted(self._directory.iterdir())
        except OSError:
            return []
        return [ContainerPlace(path) for path in paths if (path / "facts.json").is_file()]

    def clear_dead(self) -> None:
        """Clear what containers left whose runners were killed, unless somebody else is at it."""
        with suppress(OSError), self._locked(_SOON_S):
            for path in list(self._directory.iterdir()):
                if path.is_dir():
                    _clear_if_dead(path)

    def _locked(self, limit_s: float = _LIMIT_S) -> AbstractContextManager[None]:
        """Nobody else makes or clears places meanwhile, which may take a while."""
        return directory_locked(self._directory, follow=True, limit_s=limit_s)


def clear_when_dead(path: Path) -> None:
    """Wait until nobody holds a place's lock, and clear what is still there; for a process of its own."""
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    with Held(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_lock_of(descriptor, path):
            ContainerPlace(path).clear()
        for grave in path.parent.glob(f".{path.name}.*"):
            with suppress(OSError):
                remove_tree(grave)


def _clear_if_dead(path: Path) -> bool:
    """Whether nothing is at `path` any more."""
    if path.name.startswith("."):
        with suppress(OSError):  # as in `ContainerPlace.clear`
            remove_tree(path)
        return True
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.is_dir():  # its maker was killed before there was a lock
            ContainerPlace(path).clear()
        return not path.exists()
    with Held(descriptor):
        if not try_flock(descriptor):
            return False
        if _is_lock_of(descriptor, path):
            ContainerPlace(path).clear()
    return not path.exists()


class Held:
    """A descriptor that is closed at the end of the block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _is_lock_of(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), (path / "lock").stat())
    return False


def _read_json(path: Path) -> dict[str, Any]:
    told = json.loads(path.read_bytes())
    if not isinstance(told, dict):
        raise ValueError(path)  # noqa: TRY004  # of what was written there
    return told


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts))
    partial.replace(path)
