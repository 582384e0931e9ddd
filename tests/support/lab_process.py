"""Servers of the laboratory as child processes, ready when their log says so."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import IO

from tests.support.lab_build import LabError

START_TIMEOUT_S = 60


@contextmanager
def running(
    command: Sequence[str], ready: re.Pattern[str], env: Mapping[str, str] | None = None
) -> Iterator[re.Match[str]]:
    """The match in the first line of a child's standard error that has one.

    The child ends with this block, or with this process if that is first.

    Args:
        command: what is run.
        ready: what its log says when it is ready.
        env: its environment; by default just a PATH.

    Raises:
        LabError: it is not installed, or does not start.
    """
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            env=dict(env or {"PATH": os.defpath}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise LabError("setpriv is missing: run scripts/setup test") from None
    assert process.stderr is not None
    found: SimpleQueue[re.Match[str] | LabError] = SimpleQueue()
    # Read to its end, or the child would block on a full pipe.
    reader = Thread(target=_read_log, args=(command[0], process.stderr, ready, found))
    reader.start()
    try:
        match = found.get(timeout=START_TIMEOUT_S)
        if isinstance(match, LabError):
            raise match
        yield match
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stderr.close()


def _read_log(
    name: str, log: IO[str], ready: re.Pattern[str], found: "SimpleQueue[re.Match[str] | LabError]"
) -> None:
    """Put the match, and after the log's end an error that shows its beginning."""
    head: list[str] = []
    for line in log:
        if len(head) < 100:
            head.append(line)
        if match := ready.search(line):
            found.put(match)
    found.put(LabError(f"{name} ended (missing? run scripts/setup test): " + "".join(head)[-2000:]))
