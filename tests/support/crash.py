"""Processes that die, and disks that are full or lose power: what the cache must outlive."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that runs `code`; it talks by lines on stdout. It is dead at the end."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def stopped(process: subprocess.Popen) -> Iterator[None]:
    """The process does nothing meanwhile, if it has not ended."""
    process.send_signal(signal.SIGSTOP)
    if process.returncode is None:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    """The next `count` lines that the process prints; fewer if it ends before."""
    assert process.stdout is not None
    said = (process.stdout.readline() for _ in range(count))
    return [line.decode().strip() for line in said if line]


def kill_after(process: subprocess.Popen[bytes], count: int) -> None:
    """Kills the process with SIGKILL while it goes on after its `count`th line."""
    assert len(lines(process, count)) == count
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


_HOLDER = """
    import fcntl, os, sys
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), getattr(fcntl, sys.argv[2]))
    print("held")
    sys.stdin.readline()
"""


@contextmanager
def lock_held(
    path: Path, kind: str = "LOCK_EX", *, stopped: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a lock on what is at `path`, and is perhaps stopped."""
    with child(_HOLDER, path, kind) as process:
        assert lines(process, 1) == ["held"]
        if stopped:
            stop(process.pid)
        yield process


def stop(pid: int) -> None:
    """Stops a child, and waits until it is."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@contextmanager
def small_disk(path: Path, size: int, kind: str) -> Iterator[Path]:
    """A file system of `size` bytes mounted at `path`: "tmpfs", or "ext4" in a file beside it. Needs root."""
    path.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    else:
        image = path.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
        command = ["mount", "-o", "loop", str(image), str(path)]
    subprocess.run(command, check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill_up(path: Path, leave: int = 0) -> None:
    """Takes all of a file system but `leave` bytes, by the file at `path`."""
    with path.open("ab", buffering=0) as ballast:
        for size in (65536, 4096, 512):
            try:
                while ballast.write(bytes(size)):
                    pass
            except OSError:
                continue
        ballast.truncate(max(0, ballast.tell() - leave))
