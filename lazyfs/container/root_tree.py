"""Looks into a container's root from outside as if from inside: no link of an image leads to the host.

What cannot be looked at, as its layer cannot be fetched now, counts as an error, not as absent: who a process
is, and what it runs, must not depend on the network.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from lazyfs.container.kernel import open_in_root
from lazyfs.errors import CommandNotFound, CommandRefused, ContainerError

_ANY_EXECUTE: Final = 0o111
_NOT_THERE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.ENXIO}
)
_PIECE: Final = 1 << 20


class RootTree:
    """A root directory, open. A context manager.

    Args:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def status(self, path: str) -> os.stat_result | None:
        """What a path leads to; None where nothing is.

        Raises:
            ContainerError: that cannot be found out.
        """
        with self._opened(path, os.O_PATH) as descriptor:
            return None if descriptor is None else os.fstat(descriptor)

    def read(self, path: str, limit: int) -> bytes:
        """The first bytes of a regular file; b"" where there is none that may be read.

        Raises:
            ContainerError: that cannot be found out.
        """
        with self._opened(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            if descriptor is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            pieces = bytearray()
            while len(pieces) < limit and (piece := os.read(descriptor, min(limit - len(pieces), _PIECE))):
                pieces += piece
            return bytes(pieces)

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int | None]:
        """A descriptor of what is at a path; None if nothing is."""
        descriptor = None
        try:
            try:
                descriptor = open_in_root(self._root, os.fsencode(path.lstrip("/") or "."), flags)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
            yield descriptor
        except OSError as error:
            raise ContainerError(f"{path} cannot be looked at in the container: {error.strerror}") from error
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def missing(self, targets: Sequence[str]) -> list[str]:
        """Those of the paths where nothing is, with what is missing of their parents before them."""
        found: dict[str, None] = {}
        for target in targets:
            parts = [part for part in target.split("/") if part]
            for count in range(1, len(parts) + 1):
                path = "/" + "/".join(parts[:count])
                if path not in found and self.status(path) is None:
                    found[path] = None
        return list(found)

    def check_program(self, program: str, search: str, working_dir: str, covered: Collection[str]) -> None:
        """See that a program is there, as execvp(3) looks for it.

        Args:
            program: its name or path.
            search: the value of PATH.
            working_dir: where the process starts.
            covered: directories of which something else will be seen; what may lie there is taken as there.

        Raises:
            CommandNotFound: it is not there.
            CommandRefused: what is there cannot be executed.
        """
        if "/" in program:
            candidates = [program]
        else:
            candidates = [f"{directory or '.'}/{program}" for directory in search.split(":")]
        refused = ""
        for candidate in candidates:
            path = candidate if candidate.startswith("/") else f"{working_dir}/{candidate}"
            if any((path + "/").startswith(one.rstrip("/") + "/") for one in covered):
                return
            found = self.status(path)
            if found is None:
                continue
            if stat.S_ISREG(found.st_mode) and found.st_mode & _ANY_EXECUTE:
                return
            refused = "is a directory" if stat.S_ISDIR(found.st_mode) else "may not be executed"
        if refused:
            raise CommandRefused(f"{program}: {refused} in the container")
        where = "" if "/" in program else f" in its PATH, {search}"
        raise CommandNotFound(f"{program}: not found in the container{where}")


def check_directory(tree: RootTree, path: str) -> None:
    """See that a process can start at `path`, which a runtime makes if nothing is there.

    Raises:
        ContainerError: something else than a directory is there.
    """
    found = tree.status(path)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise ContainerError(f"the working directory {path} is no directory in the container")
