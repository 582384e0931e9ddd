"""The protocol by which a service has its descriptors kept by whoever supervises it.

It is systemd's (sd_notify(3), sd_listen_fds(3), "File Descriptor Store"): datagrams of lines such as
"FDSTORE=1" and "FDNAME=...", with the descriptors as ancillary data; what was stored is inherited by the next
process, from number 3 on, with the names in the environment.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

FIRST: Final = 3  # SD_LISTEN_FDS_START

_LARGEST: Final = 4096
_MOST: Final = 16  # descriptors of a message; we send one


class Message(NamedTuple):
    """What a service tells.

    Attributes:
        data: the lines, as they came.
        descriptors: what came with them; whoever receives it closes them.
    """

    data: bytes
    descriptors: Sequence[int]

    @property
    def lines(self) -> dict[str, str]:
        """The assignments."""
        pairs = (line.partition("=") for line in self.data.decode(errors="replace").splitlines())
        return {name: value for name, _, value in pairs}


def store(name: str) -> bytes:
    """A message that has a descriptor kept. systemd shall not drop one that has an error condition."""
    return f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n".encode()


def remove(name: str) -> bytes:
    """A message that has the descriptors of a name dropped."""
    return f"FDSTOREREMOVE=1\nFDNAME={name}\n".encode()


READY: Final = b"READY=1\n"
ALIVE: Final = b"WATCHDOG=1\n"

_LONGEST_BEAT_S: Final = 5.0


def beat_s(hung_after_s: float) -> float:
    """Seconds between signs of life for who must not be without one for `hung_after_s`; 0 is for ever."""
    return min(_LONGEST_BEAT_S, hung_after_s / 4) or _LONGEST_BEAT_S


def watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    """Seconds between signs of life for the service manager; 0 if it wants none (sd_watchdog_enabled(3))."""
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0.0
    with suppress(ValueError):
        return max(0, int(environment.get("WATCHDOG_USEC", ""))) / 2e6
    return 0.0


def send(where: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Tell the supervisor.

    Raises:
        OSError: it does not listen.
    """
    socket.send_fds(where, [data], list(descriptors))


def receive(where: socket.socket) -> Message | None:
    """What a service tells; None once it has gone.

    Raises:
        BlockingIOError: it has told nothing yet.
        OSError: the socket failed.
    """
    data, descriptors, _flags, _address = socket.recv_fds(where, _LARGEST, _MOST)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return Message(data, descriptors) if data or descriptors else None


def supervisor(environment: Mapping[str, str]) -> socket.socket | None:
    """A socket to the service manager that started us, if it wants to be told."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    where = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        where.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        where.close()
        return None
    return where


def inherited(environment: Mapping[str, str], pid: int) -> dict[str, int]:
    """The descriptors that were kept for us, by name; they are not handed to our children by accident."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = 0
    with suppress(ValueError):
        count = int(environment.get("LISTEN_FDS", ""))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    kept = {}
    for number in range(count):
        descriptor = FIRST + number
        os.set_inheritable(descriptor, False)
        kept[names[number] if number < len(names) else f"unnamed-{number}"] = descriptor
    return kept


def pass_on(environment: MutableMapping[str, str], names: Sequence[str], pid: int) -> None:
    """Says in the environment of a process that the descriptors from FIRST on have these names."""
    environment["LISTEN_PID"] = str(pid)
    environment["LISTEN_FDS"] = str(len(names))
    environment["LISTEN_FDNAMES"] = ":".join(names)
