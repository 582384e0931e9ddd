"""From a daemon whose keeper was killed to the next keeper: the descriptors, over a socket below the root.

The orphan goes on serving meanwhile, and ends once it has handed them over and was told that they were taken:
either of them may be stopped, or die, at any time.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.flock import holder_of, try_flock
from lazyfs.service.survival import descriptors
from lazyfs.service.survival.descriptors import Message
from lazyfs.unix_sockets import is_ours, short_name

_SOCKET: Final = "handover"
_LOCK: Final = "lock"
_PATIENCE_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.05
_SILENCE_S: Final = 2.0
_ANSWER_S: Final = 8.0
_TAKEN_S: Final = 2.0
_ALL: Final = b"ALL=1\n"
_TAKEN: Final = b"TAKEN=1\n"


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
    """The descriptors of an orphan that has this root, by name; none if no orphan gives any. Blocks."""
    until = time.monotonic() + _PATIENCE_S
    while is_locked(root):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as orphan, suppress(OSError):
            orphan.settimeout(_SILENCE_S)
            with short_name(root) as place:
                orphan.connect(f"{place}/{_SOCKET}")
            try:
                return _received(orphan, root)
            except BrokenPipeError:  # it took us for dead, as we were slow: it is to be asked again
                until = time.monotonic() + _PATIENCE_S
                continue
        if time.monotonic() > until:
            break
        time.sleep(_LOOK_EVERY_S)
    return {}


def _received(orphan: socket.socket, root: Path) -> dict[str, int]:
    """What an orphan gives, all of it.

    Raises:
        OSError: it does not come.
    """
    kept: dict[str, int] = {}
    try:
        while (message := _next_message(orphan, root)) is not None:
            if message.data == _ALL:
                orphan.send(_TAKEN)
                break
            name = message.lines.get("FDNAME", "")
            if name and message.descriptors:
                kept[name] = message.descriptors[0]
    except OSError:
        for descriptor in kept.values():
            os.close(descriptor)
        raise
    return kept


def _next_message(orphan: socket.socket, root: Path) -> Message | None:
    """The next message; where it takes long, people are told who is waited for."""
    with suppress(TimeoutError):
        return descriptors.receive(orphan)
    who = holder_of(root / _LOCK) or "a process that is not to be seen"
    sys.stderr.write(f"lazyfs: waiting for the data daemon of before in {root}: it is {who}\n")
    orphan.settimeout(_ANSWER_S)
    return descriptors.receive(orphan)


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
    """Give all that is kept to who has connected; False if they are not to have it, or do not take it.

    Blocks, but for no longer than who takes it needs: one that is stopped is not waited for.
    """
    if not is_ours(keeper):
        return False
    try:
        keeper.settimeout(_TAKEN_S)
        for name, descriptor in kept.items():
            descriptors.send(keeper, descriptors.store(name), [descriptor])
        descriptors.send(keeper, _ALL)
        return keeper.recv(len(_TAKEN)) == _TAKEN
    except OSError:
        return False
