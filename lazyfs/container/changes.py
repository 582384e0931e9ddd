"""A container's changes, kept: an upper directory and what it belongs to, in one directory of the user's.

DIR/upper           the upper directory of an overlay over the image
DIR/work            what overlayfs needs beside it
DIR/container.json  the image, and the empty mount points that were made in the upper directory
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict

from lazyfs.errors import ContainerError
from lazyfs.flock import directory_owned

_FILE: Final = "container.json"
_PARTIAL: Final = f"{_FILE}.partial"


class Changes(Struct, frozen=True):
    """What is known of an upper directory.

    Attributes:
        directory: where it, and this, is kept.
        image: the image's name.
        digest: of the image's manifest: an upper directory means nothing over another tree.
        mount_points: paths that were made for mounts, and are not the container's own work.
        user_namespace: its attributes are those of an overlay in a user namespace.
    """

    directory: Path
    image: str
    digest: str
    mount_points: tuple[str, ...] = ()
    user_namespace: bool = False

    @property
    def upper(self) -> Path:
        """The upper directory."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """What overlayfs needs beside it."""
        return self.directory / "work"


def load_changes(directory: Path) -> Changes | None:
    """What is known of the changes in `directory`; None if there are none.

    Raises:
        ContainerError: something else is there.
    """
    try:
        told = json.loads((directory / _FILE).read_bytes())
        return Changes(
            directory, str(told["image"]), str(told["digest"]),
            tuple(map(str, told["mount_points"])), bool(told["user_namespace"]),
        )  # fmt: skip
    except FileNotFoundError:
        if directory.is_dir() and any(path.name != _PARTIAL for path in directory.iterdir()):
            raise ContainerError(
                f"{directory} holds other things than a container's changes: lazyfs run takes an empty "
                "directory; to commit what another overlay holds, name the image below with --image"
            ) from None
        return None
    except NotADirectoryError:
        raise ContainerError(f"{directory} is no directory") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ContainerError(f"{directory / _FILE} is damaged") from error


def save_changes(changes: Changes) -> None:
    """Write down what is known, whole or not at all."""
    facts = {name: value for name, value in asdict(changes).items() if name != "directory"}
    partial = changes.directory / _PARTIAL
    partial.write_text(json.dumps(facts) + "\n")
    partial.replace(changes.directory / _FILE)


def continued(known: Changes | None, wanted: Changes, missing: Iterable[str]) -> Changes:
    """The changes to go on with, once `missing` mount points are made as well.

    Raises:
        ContainerError: they belong to another image, or were made in another kind of user namespace.
    """
    if known is None:
        return Changes(wanted.directory, wanted.image, wanted.digest, tuple(missing), wanted.user_namespace)
    if known.digest != wanted.digest:
        raise ContainerError(
            f"{known.directory} has changes to {known.image} as it was then ({known.digest}), "
            f"not to {wanted.digest}: name the image with that digest, or another directory"
        )
    check_maker(known, rootless=wanted.user_namespace)
    points = dict.fromkeys([*known.mount_points, *missing])
    return Changes(known.directory, known.image, known.digest, tuple(points), known.user_namespace)


def check_maker(known: Changes, *, rootless: bool) -> None:
    """See that owners and marks mean to us what they meant to who made them.

    Raises:
        ContainerError: they were made in another kind of user namespace.
    """
    if known.user_namespace != rootless:
        by = "without" if known.user_namespace else "with"
        raise ContainerError(f"{known.directory} was made {by} root, and can only be used so")


@contextmanager
def in_use(directory: Path) -> Iterator[None]:
    """The directory, made if need be, is ours alone.

    Raises:
        ContainerError: it cannot be made, or another container uses it.
    """
    with ExitStack() as stack:
        try:
            owned = stack.enter_context(directory_owned(directory))
        except OSError as error:
            raise ContainerError(f"{directory}: {error.strerror}") from error
        if not owned:
            raise ContainerError(f"{directory}: another container uses it")
        yield
