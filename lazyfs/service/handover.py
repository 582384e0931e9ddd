"""From a daemon whose keeper was killed to the next keeper: the descriptors, over a socket below the root.

The orphan goes on serving meanwhile, and ends once it has handed them over.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lazyfs.flock import try_flock
from lazyfs.service import descriptors

_SOCKET: Final = "handover"
_LOCK: Final = "lock"
_PATIENCE_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.05
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


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
            with _address(root) as address:
                orphan.connect(address)
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
        with _address(root) as address:
            (root / _SOCKET).unlink(missing_ok=True)
            listener.bind(address)
            (root / _SOCKET).chmod(0o600)
            listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def hand_over(keeper: socket.socket, kept: Mapping[str, int]) -> bool:
    """Give all that is kept to who has connected; False if they are not to have it, or have gone."""
    credentials = keeper.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    if _PEER.unpack(credentials)[1] not in {0, os.getuid()}:
        return False
    try:
        for name, descriptor in kept.items():
            descriptors.send(keeper, descriptors.store(name), [descriptor])
    except OSError:
        return False
    return True


@contextmanager
def _address(root: Path) -> Iterator[str]:
    """The socket's address, short: socket paths end at 108 bytes (unix(7))."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{_SOCKET}"
    finally:
        os.close(directory)
