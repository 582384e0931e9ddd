"""Who owns files in a container with a user namespace: the mapping that containerd's clients ask for.

Labels tell us of it. Where containerd's configuration announces the capability `remap-ids` for a snapshotter,
the rest is the snapshotter's task: ours has containerd make idmapped mounts, by the options `uidmap=` and
`gidmap=`. Else containerd changes the owner of each file in a snapshot of its own, which fetches the whole
image, and labels the next one all the same: the container then stands on what belongs to its root already,
and must not be mapped once more (containerd, `client/snapshotter_opts_unix.go`).
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from lazyfs.snapshotter.labels import REF
from lazyfs.snapshotter.model import BadSnapshotCall

UIDS: Final = "containerd.io/snapshot/uidmapping"
GIDS: Final = "containerd.io/snapshot/gidmapping"
REMAPPED: Final = "-remap"
"""How keys end under which containerd changes the owner of each file."""

_RANGE: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")
_END: Final = 1 << 32


class Owner(NamedTuple):
    """Of a file."""

    uid: int
    gid: int


class _Range(NamedTuple):
    inside: int
    outside: int
    size: int

    def moved(self, number: int) -> int | None:
        offset = number - self.inside
        return self.outside + offset if 0 <= offset < self.size else None


class IdMapping(Struct, frozen=True):
    """How users of a container are users of the machine.

    Attributes:
        options: of the mounts that show it; none if they are the same.
    """

    options: tuple[str, ...]
    _uids: tuple[_Range, ...]
    _gids: tuple[_Range, ...]

    @property
    def ranges(self) -> tuple[str, str]:
        """Those of users and of groups, as uid_map and gid_map in /proc take them."""
        users, groups = (
            "".join(f"{one.inside} {one.outside} {one.size}\n" for one in ranges)
            for ranges in (self._uids, self._gids)
        )
        return users, groups

    @property
    def root(self) -> Owner:
        """The container's root on the machine."""
        return self.owner(0, 0)

    def owner(self, uid: int, gid: int) -> Owner:
        """The machine's numbers of a user and a group of the container; those of its root if it has none."""
        return Owner(_moved(self._uids, uid), _moved(self._gids, gid))


_ALL: Final = (_Range(0, 0, _END),)
SAME: Final = IdMapping((), _ALL, _ALL)
"""Where nobody is mapped."""


def mapping_of(labels: Mapping[str, str]) -> IdMapping:
    """The mapping that a container's snapshot asks for; SAME if it asks for none.

    What a layer is unpacked into asks for none: its labels are the image author's too.

    Raises:
        BadSnapshotCall: it makes no sense, or its root is nobody.
    """
    uids, gids = labels.get(UIDS, ""), labels.get(GIDS, "")
    if labels.get(REF) or not (uids or gids):
        return SAME
    return IdMapping((f"uidmap={uids}", f"gidmap={gids}"), _ranges(UIDS, uids), _ranges(GIDS, gids))


def _ranges(label: str, text: str) -> tuple[_Range, ...]:
    """CONTAINER:HOST:SIZE, separated by commas; user_namespaces(7)."""
    found = [_RANGE.fullmatch(part) for part in text.split(",")]
    ranges = tuple(_Range(*map(int, one.groups())) for one in found if one)
    ends = [max(one.inside, one.outside) + one.size for one in ranges]
    if len(ranges) != len(found) or not all(one.size for one in ranges) or max(ends) > _END:
        raise BadSnapshotCall(f"{label} is no CONTAINER:HOST:SIZE[,…]: {text!r}")
    if all(one.moved(0) is None for one in ranges):
        raise BadSnapshotCall(f"{label} says nothing of the container's root: {text!r}")
    return ranges


def _moved(ranges: tuple[_Range, ...], number: int) -> int:
    moved = (one.moved(wanted) for wanted in (number, 0) for one in ranges)
    return next(found for found in moved if found is not None)
