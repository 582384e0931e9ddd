"""The daemon that serves a container's image: forked from us, so that what we have imported costs nothing."""

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from lazyfs.cli.daemon_events import follow
from lazyfs.container.kernel import die_with_parent
from lazyfs.container.process import ImageProcess
from lazyfs.container.run import ENDING, detach
from lazyfs.errors import LazyfsError
from lazyfs.exit_codes import BUG

_STDIN: Final = 0
_STDOUT: Final = 1


class ServerFailed(LazyfsError):
    """The daemon could not mount the image.

    Attributes:
        code: the exit code of its error.
    """

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


class ForkedServer:
    """A `lazyfs.container.run.ImageServer` in a process of its own.

    Args:
        told: the order and the configuration, as `lazyfs.daemon` reads them.

    Raises:
        ServerFailed: the image cannot be mounted.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        sys.stdout.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        self._pid, self._events = _fork(json.dumps(told).encode(), before)
        self._process = os.pidfd_open(self._pid)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            ready = self._follow()
        except BaseException:
            self.close()
            raise
        self.image = str(ready["ready"]["image"])
        self.digest = str(ready["ready"]["digest"])
        self.process = ImageProcess.from_json(ready["process"])

    def fileno(self) -> int:
        """As ImageServer says."""
        return self._process

    def close(self) -> None:
        """As ImageServer says."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        os.close(self._process)
        os.close(self._events)

    def _follow(self) -> dict[str, Any]:
        with os.fdopen(self._events, "rb", closefd=False) as events:
            event = follow(events)
        if "error" in event:
            raise ServerFailed(str(event["error"]), int(event["code"]))
        return event


def _fork(told: bytes, signals: set[int]) -> tuple[int, int]:
    """A process that runs the daemon, with these signals blocked; its number, and what it tells."""
    order = os.memfd_create("order", os.MFD_CLOEXEC)
    os.write(order, told)
    os.lseek(order, 0, os.SEEK_SET)
    events, tell = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(order)
        os.close(tell)
        return pid, events
    code = BUG
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an order to end counts before there is a daemon, too
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        os.dup2(order, _STDIN)
        os.dup2(tell, _STDOUT)
        detach(keep=(_STDIN, _STDOUT))
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # it was faster
            return os._exit(code)
        logging.getLogger().handlers.clear()
        gc.disable()  # what is imported stays: looking through it meanwhile takes a tenth of the time
        from lazyfs.daemon.process import main  # noqa: PLC0415  # while the parent is waiting for it

        gc.freeze()
        gc.enable()
        code = main()
    finally:
        os._exit(code)
