"""From a daemon whose keeper was killed to the next keeper: the descriptors, over a socket below the root.

The orphan goes on serving meanwhile, and ends once it has handed them over.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.flock import try_flock
from lazyfs.service import descriptors
from lazyfs.unix_sockets import is_ours, short_name

_SOCKET: Final = "handover"
_LOCK: Final = "lock"
_PATIENCE_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.05


def is_locked(root: Path) -> bool:
    """Whether a daemon has this root."""
    try:
        lock = os.open(root / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not try_flock(lock)
    finally:
        os.close(lock)


def claim(root: Path) -> dict[str, int]:
    """The descriptors of an orphan that has this root, by name; none if there is no orphan. Blocks."""
    until = time.monotonic() + _PATIENCE_S
    while is_locked(root):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as orphan, suppress(OSError):
            with short_name(root) as place:
                orphan.connect(f"{place}/{_SOCKET}")
            return _received(orphan)
        if time.monotonic() > until:
            break
        time.sleep(_LOOK_EVERY_S)
    return {}


def _received(orphan: socket.socket) -> dict[str, int]:
    kept = {}
    while (message := descriptors.receive(orphan)) is not None:
        name = message.lines.get("FDNAME", "")
        if name and message.descriptors:
            kept[name] = message.descriptors[0]
    return kept


def offer(root: Path) -> socket.socket:
    """A socket at which the next keeper finds us.

    Raises:
        OSError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with short_name(root) as place:
            (root / _SOCKET).unlink(missing_ok=True)
            listener.bind(f"{place}/{_SOCKET}")
            (root / _SOCKET).chmod(0o600)
            listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def hand_over(keeper: socket.socket, kept: Mapping[str, int]) -> bool:
    """Give all that is kept to who has connected; False if they are not to have it, or have gone."""
    if not is_ours(keeper):
        return False
    try:
        for name, descriptor in kept.items():
            descriptors.send(keeper, descriptors.store(name), [descriptor])
    except OSError:
        return False
    return True
