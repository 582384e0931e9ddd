"""The daemon's side of its keeper: what is kept for the next daemon, and what the last one had kept."""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import trio

from lazyfs.service.survival import descriptors

_log = logging.getLogger(__name__)


class Supervisor:
    """Whoever keeps descriptors for us.

    Args:
        where: a socket to it; None if there is nobody.
        kept: what was kept for us, by name.
    """

    def __init__(self, where: socket.socket | None = None, kept: Mapping[str, int] | None = None) -> None:
        self._where = where
        self._kept = dict(kept or {})
        self._stored = dict(self._kept)

    def __repr__(self) -> str:
        return f"<Supervisor {'' if self._where else 'absent'}, {sorted(self._kept)} not taken>"

    @property
    def stored(self) -> Mapping[str, int]:
        """What is kept for us now, by name."""
        return self._stored

    def take(self, name: str) -> int | None:
        """The descriptor that was kept under a name, the caller's from now on; None if there is none."""
        return self._kept.pop(name, None)

    def drop_rest(self) -> None:
        """Let go of everything that was kept and is not taken."""
        for name, descriptor in self._kept.items():
            os.close(descriptor)
            self.remove(name)
        self._kept.clear()

    def store(self, name: str, descriptor: int) -> None:
        """Have a descriptor kept under a name, for as long as it is open here."""
        self._stored[name] = descriptor
        self._tell(descriptors.store(name), descriptor)

    def remove(self, name: str) -> None:
        """Have what is kept under a name dropped."""
        self._stored.pop(name, None)
        self._tell(descriptors.remove(name))

    def ready(self) -> None:
        """Say that we have begun."""
        self._tell(descriptors.READY)

    def alive(self) -> None:
        """Give a sign of life. Never waits, and who does not listen is none of our business."""
        if self._where is not None:
            with suppress(OSError):
                self._where.send(descriptors.ALIVE, socket.MSG_DONTWAIT)

    def _tell(self, data: bytes, *sent: int) -> None:
        if self._where is None:
            return
        try:
            descriptors.send(self._where, data, sent)
        except OSError as error:
            _log.warning("the keeper does not listen: %s", error)

    async def wait_gone(self) -> None:
        """Wait until the keeper is dead; for ever, if there is none."""
        if self._where is None:
            await trio.sleep_forever()
        else:
            await trio.lowlevel.wait_readable(self._where)  # it never says anything
