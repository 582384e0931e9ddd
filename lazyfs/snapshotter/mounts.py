"""Which mounts show a snapshot: one bind, or one overlay of all that it stands on."""

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from lazyfs.snapshotter.model import Kind, Mount


class OverlayOptions(Struct, frozen=True):
    """What this machine's overlayfs wants said.

    Attributes:
        index_off: it has an inode index, which must be off: directories are used again under new overlays.
        user_xattrs: it runs in a user namespace, so its marks go to `user.overlay.*`.
    """

    index_off: bool = False
    user_xattrs: bool = False


def overlay_options() -> OverlayOptions:
    """The options for the machine we run on."""
    identity = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    index = Path("/sys/module/overlay/parameters/index")
    return OverlayOptions(index_off=index.exists(), user_xattrs=not identity)


def mounts_of(
    kind: Kind,
    upper: Path,
    work: Path,
    lowers: Sequence[Path],
    options: OverlayOptions,
    mapping: Sequence[str] = (),
    source: str = "overlay",
) -> tuple[Mount, ...]:
    """The mounts of an active snapshot or a view.

    The last option of an active one is never `ro`: containerd would take its layer for applied already.

    Args:
        kind: active or view.
        upper: the snapshot's own directory.
        work: overlayfs's directory beside it.
        lowers: directories of what it stands on, top first.
        options: what overlayfs wants said.
        mapping: options that have containerd map owners, of what is mounted alone or of all `lowers`.
        source: of an overlay: the lazy tree that it lies over, where `lowers` are clones that go.
    """
    writable = kind is Kind.ACTIVE
    if not lowers:
        return (Mount("bind", str(upper), (*mapping, "rw" if writable else "ro", "rbind")),)
    if len(lowers) == 1 and not writable:
        return (Mount("bind", str(lowers[0]), (*mapping, "ro", "rbind")),)
    lower = ":".join(map(str, lowers))
    if mapping and len(lowers) == 1:
        source, lower = lower, f"{lower}/."  # the overlay itself lies over containerd's clone, without a name
    said = [
        *mapping,
        *(["index=off"] if options.index_off else []),
        *(["userxattr"] if options.user_xattrs else []),
        *([f"workdir={work}", f"upperdir={upper}"] if writable else []),
        f"lowerdir={lower}",
    ]
    return (Mount("overlay", source, tuple(said)),)
