"""The layer that a snapshot adds to its parent, from the one directory that holds it.

containerd compares two trees file by file. Files of equal size and time it reads to the end where that time
has no fraction of a second, as in most layers: all of a lazy image would be fetched, for one directory.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from lazyfs.container.layer_file import WrittenLayer, write_layer
from lazyfs.container.upper import UpperMember, upper_members
from lazyfs.errors import LazyfsError
from lazyfs.oci.media_types import OCI_LAYER
from lazyfs.snapshotter.model import Mount

_COMPRESSIONS: Final = {OCI_LAYER: "none", **{f"{OCI_LAYER}+{name}": name for name in ("gzip", "zstd")}}
_CAP_SYS_ADMIN: Final = 21
_STATUS: Final = Path("/proc/thread-self/status")
_ID: Final = re.compile(r"[1-9][0-9]{0,17}")
_KNOWN: Final = frozenset({"ro", "rw", "rbind", "index=off", "userxattr"})
"""Options that change nothing in what is shown."""


class NotOurs(LazyfsError):
    """Somebody else has to compare these."""


def compression_of(media_type: str) -> str:
    """What makes a layer of this media type; "" is OCI's in gzip.

    Raises:
        NotOurs: nothing of ours.
    """
    compression = _COMPRESSIONS.get(media_type or f"{OCI_LAYER}+gzip")
    if compression is None:
        raise NotOurs(f"layers of type {media_type!r} are not made here")
    return compression


def see_trusted() -> None:
    """See that we can read `trusted.*` attributes, overlayfs's marks: to others there are none (xattr(7)).

    Raises:
        NotOurs: we cannot.
    """
    lines = _STATUS.read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    if not effective >> _CAP_SYS_ADMIN & 1:
        raise NotOurs("overlayfs's marks cannot be seen without CAP_SYS_ADMIN")


def changed_directory(left: Sequence[Mount], right: Sequence[Mount], snapshots: Path) -> tuple[int, Path]:
    """The directory that is all that `right` shows beside what `left` does, and the id of its snapshot.

    Args:
        left: the mounts of the parent; none for no parent.
        right: those of what stands on it.
        snapshots: where the directories of our snapshots are.

    Raises:
        NotOurs: it is not so simple, or the directory is none of our snapshots'.
    """
    below, (top, *rest) = _stack(left), _stack(right) or [Path()]
    if rest != below:
        raise NotOurs("one does not stand on the other")
    if top.parent.parent != snapshots or not _ID.fullmatch(top.parent.name) or top.name != "fs":
        raise NotOurs(f"{top} is no directory of a snapshot")
    return int(top.parent.name), top


def make_layer(
    directory: Path,
    descriptor: int,
    compression: str,
    latest_ns: int | None = None,
    check: Callable[[], None] = lambda: None,
    *,
    user_marks: bool = False,
) -> WrittenLayer:
    """Write an upper directory as a layer; blocks.

    Args:
        directory: it.
        descriptor: of a file, open for writing.
        compression: "gzip", "zstd" or "none".
        latest_ns: later times are not told, but this one; nanoseconds of Unix time.
        check: as for `write_layer`.
        user_marks: as for `upper_members`.

    Raises:
        ContainerError: it holds what no layer can say, or changes while it is read.
        OSError: it cannot be read, or the disk refuses.
    """
    members = upper_members(directory, user_marks=user_marks)
    if latest_ns is not None:
        members = _no_later(members, latest_ns)
    return write_layer(members, descriptor, compression, check)


def _no_later(members: Iterable[UpperMember], latest_ns: int) -> Iterator[UpperMember]:
    for member, content in members:
        yield UpperMember(member._replace(mtime_ns=min(member.mtime_ns, latest_ns)), content)


def _stack(mounts: Sequence[Mount]) -> list[Path]:
    """The directories that are shown, top first.

    Raises:
        NotOurs: they are shown in a way that nobody here mounts them.
    """
    if not mounts:
        return []
    if len(mounts) > 1:
        raise NotOurs("several mounts show it")
    (mount,) = mounts
    said = [option.partition("=") for option in mount.options if option not in _KNOWN]
    values = {name: value for name, _, value in said}
    if mount.type == "bind" and not said:
        return [Path(mount.source)]
    if (
        mount.type == "overlay"
        and "lowerdir" in values
        and values.keys() <= {"lowerdir", "upperdir", "workdir"}
    ):
        upper = [values["upperdir"]] if "upperdir" in values else []
        return [Path(text) for text in (*upper, *values["lowerdir"].split(":"))]
    raise NotOurs(f"a mount of type {mount.type} with {','.join(mount.options)}")
