"""A service manager that keeps descriptors, as systemd does (sd_notify(3), "FDSTORE=1")."""

import json
import os
import socket
import sys
from pathlib import Path
from threading import Thread
from typing import Self

# Puts descriptors at 3, 4, ... says so in the environment, and becomes the service: `-c CODE WORDS FD...`.
_START = """
import fcntl, json, os, sys
words, given = json.loads(sys.argv[1]), json.loads(sys.argv[2])
high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in given.values()]
for position, number in enumerate(high):
    os.dup2(number, 3 + position)
    os.close(number)
names = ":".join(given)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
os.execv(words[0], words)
"""


class ServiceManager:
    """Listens to one service after another.

    Attributes:
        kept: descriptors by name.
        ready: how often a service said that it is.
    """

    def __init__(self, place: Path) -> None:
        self.kept: dict[str, int] = {}
        self.ready = 0
        self._path = place / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._thread = Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"END=1", str(self._path))
        self._thread.join()
        self._socket.close()
        for descriptor in self.kept.values():
            os.close(descriptor)

    @property
    def environment(self) -> dict[str, str]:
        """What a service finds in its environment."""
        return {"NOTIFY_SOCKET": str(self._path)}

    def wrapped(self, command: list[str]) -> list[str]:
        """A command that starts a service and hands it what was kept."""
        return [sys.executable, "-c", _START, json.dumps(command), json.dumps(self.kept)]

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            lines = dict(line.split("=", 1) for line in data.decode().split())
            if "END" in lines:
                return
            name = lines.get("FDNAME", "")
            if "FDSTORE" in lines or "FDSTOREREMOVE" in lines:
                old = self.kept.pop(name, None)
                if old is not None:
                    os.close(old)
            if "FDSTORE" in lines:
                (self.kept[name],) = descriptors
            self.ready += lines.get("READY") == "1"
