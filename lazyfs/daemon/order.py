"""What a mount's process is told to do."""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from lazyfs.errors import ConfigError
from lazyfs.image.boot.hastening import starts_by_pack
from lazyfs.image.image import Image
from lazyfs.mount.fuse_mount import MountOptions
from lazyfs.mount.tuning import DEFAULT_READ_AHEAD_KB, START_READ_AHEAD_KB, ReadAheadKnob


class MountOrder(Struct, frozen=True):
    """What is to be mounted.

    Attributes:
        image: the image's name.
        mount_point: where.
        driver: "auto", "erofs" or "fuse".
        runtime_dir: where the states of mounts are kept.
        log_file: where the log goes; "" for stderr.
        setuid: whether setuid bits and file capabilities count.
        devices: whether device nodes can be opened.
        programs: whether programs can be run.
        record: whether only what readers want is read, so that their trace is precise.
        starts: command, entrypoint, env and working_dir as of container.process.Wishes, if a process of the
            image is about to start over it.
    """

    image: str
    mount_point: str
    driver: str
    runtime_dir: str
    log_file: str = ""
    setuid: bool = False
    devices: bool = False
    programs: bool = True
    record: bool = False
    starts: Mapping[str, Any] | None = None


def driver_of(order: MountOrder) -> Literal["auto", "erofs", "fuse"]:
    """The driver that was ordered."""
    for driver in ("auto", "erofs", "fuse"):
        if order.driver == driver:
            return driver
    raise ConfigError(f"no driver {order.driver!r}; there are auto, erofs and fuse")


async def mount_options(order: MountOrder, image: Image, *, by_pyfuse3: bool) -> MountOptions:
    """How to mount what was ordered; `by_pyfuse3` as there."""
    packed = await starts_by_pack(image.boot, image.by_names.values())
    read_ahead_kb = START_READ_AHEAD_KB if order.record or packed else DEFAULT_READ_AHEAD_KB
    return MountOptions(
        order.image,
        setuid=order.setuid,
        devices=order.devices,
        programs=order.programs,
        read_ahead_kb=read_ahead_kb,
        knob=ReadAheadKnob(),
        by_pyfuse3=by_pyfuse3,
    )
