"""The process behind one mount: told what to do on stdin, it mounts and answers until it is unmounted.

`lazyfs mount` starts it as `python -m lazyfs.daemon`, hands the order over on stdin and reads what happens
from stdout, one JSON object a line: progress, warnings, and in the end `ready` or `error`. After `ready`
nobody listens any more; what is worth telling goes to the log file.
"""

import fcntl
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from lazyfs.allocator import keep_freed_memory
from lazyfs.config import load_config
from lazyfs.daemon.ending import run_until_signal
from lazyfs.daemon.mounting import Report, run_mount
from lazyfs.daemon.order import MountOrder
from lazyfs.exit_codes import BUG, exit_code, message_of
from lazyfs.log import start_log
from lazyfs.mount_states import drop_empty_log
from lazyfs.oci.image_name import anchored, parse_image

_log = logging.getLogger(__name__)


class _LineHandler(logging.Handler):
    """Hands warnings to whoever waits for `ready`."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report({"warning": record.getMessage()})


class _Pipe:
    """Stdout as a pipe of JSON lines, as long as somebody reads it."""

    def __init__(self) -> None:
        self._descriptor: int | None = os.dup(1)

    def report(self, event: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(event).encode() + b"\n")
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGTERM)  # nobody waits for the mount any more

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def main() -> int:
    """Carry out the order on stdin; the exit code is that of the error, if any."""
    keep_freed_memory()
    told = json.load(sys.stdin)
    order = MountOrder(**told["order"])
    config = load_config({"HOME": "/"}, told["config"], Path(os.devnull))
    pipe = _Pipe()
    _redirect(order.log_file)
    handler = _LineHandler(pipe.report)
    start_log(config.log_level, also=handler if order.log_file else None)

    def report(event: Mapping[str, Any]) -> None:
        if "ready" in event:
            _part_from_caller()
        pipe.report(event)
        if "ready" in event:
            logging.getLogger().removeHandler(handler)
            pipe.close()

    def progress(digest: str, done: int, total: int) -> None:
        pipe.report({"progress": [digest, done, total]})

    try:
        name = anchored(parse_image(order.image))
        os.chdir("/")  # nobody's file system stays in use because a mount was begun there
        trio.run(run_until_signal, partial(run_mount, order, name, config, report, progress))
    except Exception as error:  # noqa: BLE001  # whoever waits for the mount is told
        code = exit_code(error)
        if code == BUG:
            _log.exception("a bug")
        pipe.report({"error": message_of(error), "code": code})
        return code
    finally:
        drop_empty_log(1, order.log_file)
    return 0


def _part_from_caller() -> None:
    """The terminal's signals come to the caller alone from now on, who tells us.

    Not before it is mounted: of an automount the kernel has everybody wait for that but the process group of
    who mounts (fs/autofs, `autofs_oz_mode`).
    """
    with suppress(PermissionError):  # it has been done
        os.setsid()


def _redirect(log_file: str) -> None:
    """Standard output goes to the log file or nowhere, standard error to the log file or stays.

    The log's lock says that somebody writes to it: those that fail to mount here, too, have it open.
    """
    target = os.open(log_file or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(target, 1)
    if log_file:
        fcntl.flock(target, fcntl.LOCK_SH)
        os.dup2(target, 2)
    os.close(target)
