"""Small images on disk, and a process of its own that mounts them: no reader may answer itself.

    image = write_image(tmp_path / "image", [[file(b"name", b"data"), ...], ...])
    with mounted(image, mount_point) as server:
        (mount_point / "name").read_bytes()

`python -m tests.support.mount_server` is that process.
"""

import errno
import json
import logging
import mmap
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from indexer.erofs import write as erofs_write
from indexer.erofs.format import Device
from indexer.erofs.read import MetadataImage
from indexer.errors import DigestMismatch
from indexer.merge import merge
from indexer.toc import Kind, Member
from lazyfs.errors import LazyfsError, NotFound, NotMounted, Unauthorized, Unreachable
from lazyfs.mount import erofs
from lazyfs.mount.drivers import Served, serve_tree
from lazyfs.mount.erofs import Tree
from lazyfs.mount.fuse_mount import MountOptions
from lazyfs.mount.mounts import Mount, mount_at, unmount
from lazyfs.mount.syscalls import MountRefused

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 30.0

Behaviour = Literal[
    "local",
    "remote",
    "stalled",
    "partly",
    "unreachable",
    "refused",
    "missing",
    "corrupt",
    "buggy",
    "short",
    "worsening",
    "divided",
]
PART_SIZE = 4 * 4096
"""Bytes at the front of a layer of which there is only a part that are here."""
FAILING_SIZE = 256 << 10
"""Bytes at the front of a divided layer: they fail, what lies behind is stalled. The kernel asks for the
first of a file by two requests at once, so that which of them comes first says nothing."""

Entry = tuple[Member, bytes]


class FakeLayer:
    """A layer in memory, as near or as broken as wanted."""

    def __init__(self, data: bytes, behaviour: Behaviour) -> None:
        self._data = data
        self._behaviour = behaviour

    def read_nowait(self, start: int, size: int) -> memoryview | None:
        if self._behaviour == "local" or (self._behaviour == "partly" and start + size <= PART_SIZE):
            return memoryview(self._data)[start : start + size]
        return None

    def has_some(self, start: int, size: int) -> bool:
        return self._behaviour == "partly" and start < PART_SIZE

    async def read(self, start: int, size: int) -> bytes:
        logging.getLogger(__name__).debug("reading [%d, %d)", start, start + size)
        await trio.lowlevel.checkpoint()
        match self._behaviour:
            case "stalled" | "partly":
                await trio.sleep_forever()
            case "unreachable":
                raise Unreachable("no route to the registry")
            case "refused":
                raise Unauthorized("the registry wants other credentials")
            case "missing":
                raise NotFound("the registry has no such blob")
            case "corrupt":
                raise DigestMismatch("span 0", "sha256:00", "sha256:11")
            case "buggy":
                raise ZeroDivisionError("a bug on purpose")
            case "worsening":
                self._behaviour = "stalled"
                raise Unreachable("no route to the registry")
            case "divided":
                if start >= FAILING_SIZE:
                    await trio.sleep_forever()
                raise Unreachable("no route to the registry")
            case "short":
                return self._data[start : start + size - 1]
        return self._data[start : start + size]


def file(path: bytes, data: bytes = b"", **attributes) -> Entry:
    return Member(path, Kind.REGULAR, **attributes), data


def directory(path: bytes, **attributes) -> Entry:
    return Member(path, Kind.DIRECTORY, **({"mode": 0o755} | attributes)), b""


def symlink(path: bytes, target: bytes) -> Entry:
    return Member(path, Kind.SYMLINK, 0o777, link=target), b""


def hardlink(path: bytes, target: bytes, **attributes) -> Entry:
    return Member(path, Kind.HARDLINK, link=target, **attributes), b""


def special(path: bytes, kind: Kind, device: tuple[int, int] = (0, 0), **attributes) -> Entry:
    return Member(path, kind, device=device, **attributes), b""


def write_image(target: Path, layers: Sequence[Sequence[Entry]]) -> Path:
    """The compiled image and the bytes of its layers, in a directory; content lies on 512-byte boundaries."""
    target.mkdir()
    members, devices = [], []
    for number, entries in enumerate(layers):
        data = bytearray()
        placed = []
        for member, content in entries:
            placed.append(member._replace(size=len(content), data_start=len(data) if content else 0))
            data += content + bytes(-len(content) % 512)
        members.append(placed)
        devices.append(Device(b"layer %d" % number, len(data)))
        (target / f"layer{number}").write_bytes(data)
    with (target / "metadata").open("wb") as out:
        erofs_write.write_image(merge(members), devices, out)
    return target


def open_image(image: Path) -> MetadataImage:
    with (image / "metadata").open("rb") as opened:
        return MetadataImage(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ))


def open_layers(image: Path, behaviours: Sequence[Behaviour]) -> list[FakeLayer]:
    """The layers, the last behaviour for all the rest."""
    count = len(open_image(image).devices)
    padded = [*behaviours, *[behaviours[-1]] * count][:count]
    return [FakeLayer((image / f"layer{n}").read_bytes(), how) for n, how in enumerate(padded)]


TWO_LAYERS = [
    [file(b"here", b"h" * 5000)],
    [file(b"away", b"a" * 500_000), file(b"away too", b"b" * 500_000)],
]


@dataclass
class Server:
    """The process that serves a mount.

    Attributes:
        process: it.
        mount_point: where.
        log: the file with what it logs.
    """

    process: subprocess.Popen
    mount_point: Path
    log: Path

    @property
    def logged(self) -> str:
        return self.log.read_text()

    @property
    def mount(self) -> Mount | None:
        return mount_at(self.mount_point)

    def said(self) -> str:
        """The next line it prints: "mounted", or the error that ended it."""
        return self.process.stdout.readline().strip()

    def terminate(self) -> int:
        """What a service manager does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def mounted(image: Path, mount_point: Path, *behaviours: Behaviour, **how) -> Iterator[Server]:
    """A server, once it has mounted; the arguments are those of `started`."""
    with started(image, mount_point, *behaviours, **how) as server:
        said = server.said()
        assert said == "mounted", f"{said}\n{server.logged}"
        yield server


@contextmanager
def started(
    image: Path,
    mount_point: Path,
    *behaviours: Behaviour,
    driver: str = "fuse",
    read_timeout_s: float = PATIENCE_S,
    prefix: Sequence[str] = (),
    **options,
) -> Iterator[Server]:
    """A server of an image. Whatever happens, neither it nor its mount outlives the block.

    Args:
        image: from `write_image`.
        mount_point: made if it is missing.
        behaviours: of the layers, the last one for all the rest; "local" by default.
        driver: "fuse", "erofs", "auto"; "loop" and "auto-loop" as if EROFS took block devices only.
        read_timeout_s: the deadline of reads.
        prefix: a command to run it by.
        options: of MountOptions.
    """
    mount_point.mkdir(exist_ok=True)
    log = mount_point.with_name(f"{mount_point.name}.log")
    arguments = {
        "image": str(image),
        "mount_point": str(mount_point),
        "behaviours": list(behaviours or ["local"]),
        "driver": driver,
        "read_timeout_s": read_timeout_s,
        "options": {"image": "example.org/image:1"} | options,
    }
    command = [*prefix, sys.executable, "-m", "tests.support.mount_server", json.dumps(arguments)]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield Server(process, mount_point, log)
    finally:
        _end(process)
        with suppress(NotMounted):
            while True:
                unmount(mount_point, lazy=True)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()


def wait_until(holds, every_s: float = 0.005) -> None:
    """Polls what another process does; there is nothing else to wait on."""
    limit = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(every_s)


def is_waiting(pid: int) -> bool:
    """Whether it sleeps for a disk, in the words of proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def error_of(call, *arguments) -> str | None:
    """The name of the errno that a call raises, or None."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


class _Announcement:
    """A TaskStatus that tells the parent process."""

    def started(self, served: Served) -> None:
        print("mounted", flush=True)
        print(f"{served.driver}: {served.why}", flush=True)


async def _serve(arguments: dict) -> None:
    image = Path(arguments["image"])
    tree = Tree(open_image(image), image / "metadata", open_layers(image, arguments["behaviours"]))
    mount_point = Path(arguments["mount_point"])
    options = MountOptions(**arguments["options"])
    timeout_s, driver = arguments["read_timeout_s"], arguments["driver"]
    if driver.endswith("loop"):
        _refuse_files()
        driver = "auto" if driver == "auto-loop" else "erofs"
    await serve_tree(tree, mount_point, options, timeout_s, driver, task_status=_Announcement())


def _refuse_files() -> None:
    """The kernel as it was before 6.12."""

    def refuse(*_arguments: object) -> None:
        raise MountRefused("erofs", OSError(errno.ENOTBLK, ""), "")

    erofs._mount_from_file = erofs._mount_from_fuse = refuse


async def _main(arguments: dict) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_sigterm, nursery.cancel_scope)
        try:
            await _serve(arguments)
        except LazyfsError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        nursery.cancel_scope.cancel()


async def _cancel_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    trio.run(_main, json.loads(sys.argv[1]))
