"""The command line in processes forked from one that has imported it already: ten times cheaper to start.

Each command has its own process, environment and descriptors, as when the shell starts it.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.runner import TIMEOUT_S, LazyfsRunner

_PRELOADED = ["lazyfs.cli.main", "lazyfs.api", "lazyfs.cli.files", "lazyfs.cli.images", "lazyfs.cli.login"]


def run_quickly(
    arguments: Sequence[str], env: Mapping[str, str], stdin: bytes = b"", cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """What `lazyfs ARGUMENTS` printed, once it has ended; an exit code below 0 is a signal's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory(prefix="quick-") as place:
        files = [Path(place) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin)
        process = context.Process(
            target=_become_lazyfs, args=(list(arguments), dict(env), files, cwd or Path.cwd())
        )
        process.start()
        process.join(TIMEOUT_S)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        said = [file.read_bytes().decode("utf-8", "surrogateescape") for file in files[1:]]
    assert code is not None, f"lazyfs {arguments} did not end: {said}"
    return subprocess.CompletedProcess(["lazyfs", *arguments], code, *said)


def _become_lazyfs(arguments: list[str], env: dict[str, str], files: list[Path], cwd: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, (file, flag) in enumerate(zip(files, flags, strict=True)):
        opened = os.open(file, flag, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  # multiprocessing has closed the old one
    from lazyfs.cli.main import main

    main(arguments)


@dataclass(frozen=True, slots=True)
class QuickRunner(LazyfsRunner):
    """A LazyfsRunner whose commands start quickly."""

    def run(
        self, words: list[str], environment: dict[str, str], told: str
    ) -> subprocess.CompletedProcess[str]:
        """As LazyfsRunner says."""
        return run_quickly(words, environment, told.encode())
