"""Live mounts: where each one's state lies, and how to ask its daemon. `control` is the daemon's side.

A mount's state is a directory named after its mount point, in a runtime directory of the user: `mount.json`
with facts, and `control.sock`. A question is one line of JSON, `{"ask": "stats"}`; so is the answer.
"""

import fcntl
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict

from lazyfs.errors import MountError, NotMounted
from lazyfs.unix_sockets import short_name

_TIMEOUT_S: Final = 10.0


class MountFacts(Struct, frozen=True):
    """What is known of a mount without asking it.

    Attributes:
        mount_point: where, without symlinks.
        image: the image's name.
        digest: of its manifest.
        driver: "fuse" or "erofs".
        pid: of the daemon.
        log: its log file, which is there once something was logged; "" if that goes to stderr.
    """

    mount_point: str
    image: str
    digest: str
    driver: str
    pid: int
    log: str = ""


def runtime_path(environment: Mapping[str, str]) -> Path:
    """Where this user's live mounts have their state.

    LAZYFS_RUNTIME_DIR says where; else it is /run/lazyfs for root, and for others $XDG_RUNTIME_DIR/lazyfs.
    """
    uid = os.getuid()
    if environment.get("LAZYFS_RUNTIME_DIR"):
        return Path(environment["LAZYFS_RUNTIME_DIR"]).absolute()
    if uid == 0:
        return Path("/run/lazyfs")
    if environment.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return Path(environment["XDG_RUNTIME_DIR"]) / "lazyfs"
    return Path(tempfile.gettempdir()) / f"lazyfs-{uid}"


def runtime_directory(environment: Mapping[str, str]) -> Path:
    """The same directory, made private if it is not there.

    Raises:
        MountError: it cannot be made, or belongs to somebody else.
    """
    return ensure_private(runtime_path(environment))


def ensure_private(path: Path) -> Path:
    """A directory of ours, made if it is not there; errors as for `runtime_directory`."""
    uid = os.getuid()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise MountError(f"cannot make {path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
        raise MountError(f"{path} must be a directory of yours that nobody else can enter; remove or mend it")
    return path


class MountStates:
    """The states of all mounts of a user, below the runtime directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, mount_point: Path) -> Path:
        """The state directory of a mount point, which must be free of symlinks."""
        return self._directory / sha256(os.fsencode(mount_point)).hexdigest()[:32]

    def find(self, mount_point: Path) -> MountFacts | None:
        """The facts of the mount at `mount_point`; None where there is none of ours."""
        return _load(self.path(mount_point))

    def all(self) -> list[MountFacts]:
        """The facts of all mounts, by mount point."""
        found = filter(None, map(_load, self._directory.iterdir()))
        return sorted(found, key=lambda facts: facts.mount_point)

    def ask(self, mount_point: Path, question: str) -> dict[str, Any]:
        """What the daemon of the mount at `mount_point` answers.

        Raises:
            NotMounted: no mount of ours is there.
            MountError: its daemon does not answer.
        """
        state = self.path(mount_point)
        if _load(state) is None:
            raise NotMounted(f"nothing of lazyfs is mounted at {mount_point}")
        with socket.socket(socket.AF_UNIX) as connection, short_name(state) as place:
            connection.settimeout(_TIMEOUT_S)
            try:
                connection.connect(f"{place}/control.sock")
                connection.sendall(json.dumps({"ask": question}).encode() + b"\n")
                with connection.makefile("rb") as lines:
                    answer = json.loads(lines.readline())
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                raise MountError(
                    f"the daemon of {mount_point} does not answer ({why}); lazyfs umount cleans up"
                ) from error
        if not isinstance(answer, dict):
            raise MountError(f"the daemon of {mount_point} answers nonsense")
        return answer

    @contextmanager
    def registered(self, facts: MountFacts) -> Iterator[socket.socket]:
        """A listening socket for the questions to a mount, with its facts kept beside it meanwhile.

        Raises:
            MountError: the state cannot be written.
        """
        state = self.path(Path(facts.mount_point))
        try:
            _remove(state)
            state.mkdir(mode=0o700)
            listener = socket.socket(socket.AF_UNIX)
            with short_name(state) as place:
                listener.bind(f"{place}/control.sock")
            (state / "control.sock").chmod(0o600)
            listener.listen()
            (state / "mount.json").write_text(json.dumps(asdict(facts)))
        except OSError as error:
            raise MountError(f"cannot keep the mount's state in {state}: {error.strerror}") from error
        try:
            with listener:
                yield listener
        finally:
            self.forget(facts)

    def forget(self, facts: MountFacts) -> None:
        """Remove the state of a mount that is gone; that of another one, which came to its place, stays.

        So it is after a lazy unmount: the daemon ends with its last user, whatever was mounted there since.
        """
        state = self.path(Path(facts.mount_point))
        if _load(state) == facts:
            _remove(state)


def drop_empty_log(log_fd: int, log_file: str) -> None:
    """A log that nothing was written to is no use to anybody, once nobody writes to it.

    Args:
        log_fd: of the file, open; whoever writes to it has it locked shared.
        log_file: its path; "" where there is none.
    """
    if log_file:
        with suppress(OSError):
            fcntl.flock(log_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(log_fd).st_size:
                Path(log_file).unlink()


def _remove(state: Path) -> None:
    for name in ("mount.json", "control.sock"):
        (state / name).unlink(missing_ok=True)
    if state.is_dir():
        state.rmdir()


def _load(state: Path) -> MountFacts | None:
    try:
        return MountFacts(**json.loads((state / "mount.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
