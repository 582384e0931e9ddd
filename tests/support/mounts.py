"""What is mounted where, and how to get rid of it."""

import os
import re
import subprocess
from pathlib import Path

MOUNT_POINT_FIELD = 4  # proc(5), /proc/pid/mountinfo: (5) mount point


def mounts_below(top: Path) -> list[Path]:
    """The mount points at `top` and below it, those that must go first coming first."""
    points = [_unescape(line.split()[MOUNT_POINT_FIELD]) for line in _mountinfo()]
    return [point for point in reversed(points) if point.is_relative_to(top)]


def unmount_lazily(point: Path) -> None:
    """Take a mount away at once, whoever still uses it."""
    command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, str(point)], check=True, capture_output=True, timeout=60)


def _mountinfo() -> list[bytes]:
    return Path("/proc/self/mountinfo").read_bytes().splitlines()


def _unescape(field: bytes) -> Path:
    """A path of mountinfo, where space, tab, newline and backslash stand as octal numbers."""
    return Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)))
