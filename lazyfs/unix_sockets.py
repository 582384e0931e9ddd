"""What unix(7) sockets need beside connecting: short addresses, and who is at the other end."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


class _Connection(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def is_ours(connection: _Connection) -> bool:
    """Whether root or our own user is at the other end, as of when they connected."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return _PEER.unpack(credentials)[1] in {0, os.getuid()}


@contextmanager
def short_name(directory: Path) -> Iterator[str]:
    """A short name of a directory, for this process and as long as the context lasts.

    Addresses of sockets end at 108 bytes.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
