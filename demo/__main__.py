"""`python -m demo`: index, mount and use an image, then do the same with a full pull, and compare."""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from demo import image
from demo.command import DemoFailed, Lazyfs, run_program, unmount_by_force
from demo.pull import Pulled, pull
from demo.registry import Registry, Traffic, serve

FOLDER = Path(__file__).parents[1] / ".cache" / "demo"
REPOSITORY = "demo/app"
SETTLES_S = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """One way to start the program.

    Attributes:
        name: which way.
        traffic: what the registry answered and sent.
        seconds: from the wish to the program's last word.
        note: where the time went.
    """

    name: str
    traffic: Traffic
    seconds: float
    note: str = ""


def main() -> None:
    """Read the command line, run the demo, end with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--mbit", type=float, default=100, help="link speed in Mbit/s; 0 is unlimited")
    parser.add_argument("--delay-ms", type=float, default=20, help="delay of each answer in milliseconds")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_demo(arguments.mbit, arguments.delay_ms)
    except DemoFailed as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run_demo(mbit: float, delay_ms: float) -> None:
    """All of it, in a folder that is removed afterwards.

    Raises:
        DemoFailed: something is not as it must be.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    say("Making an image of this machine's Python ...")
    layout = image.build(FOLDER)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="run-", dir=FOLDER)))
        registry = stack.enter_context(serve(layout))
        reference = f"{registry.address}/{REPOSITORY}:latest"
        cache = make_index(folder, reference)
        if mbit:
            registry.link.bytes_per_s = mbit * 1e6 / 8
        registry.link.delay_s = delay_ms / 1000
        rows = [
            lazy_start("lazyfs, cold", folder, cache, registry),
            lazy_start("lazyfs, again", folder, cache, registry),
        ]
        row, pulled = full_pull(folder, registry)
    print_table([row, *rows], pulled, mbit, delay_ms)


def make_index(folder: Path, reference: str) -> Path:
    """A cache directory with the image's index, and none of its layers' bytes."""
    say(f"$ lazyfs index {reference}")
    indexed, fresh = folder / "cache-of-indexer", folder / "cache"
    began = time.monotonic()
    Lazyfs(folder / "home", indexed)("index", reference)
    say(f"  indexed in {time.monotonic() - began:.1f} s, over loopback; its index goes to a fresh cache")
    fresh.mkdir(mode=0o700)
    shutil.copytree(indexed / "tocs", fresh / "tocs")
    return fresh


def lazy_start(name: str, folder: Path, cache: Path, registry: Registry) -> Row:
    """Mount the image, run its program, look at what layers do to each other, unmount."""
    lazyfs, mount_point = Lazyfs(folder / "home", cache), folder / "mnt"
    mount_point.mkdir(exist_ok=True)
    reference = f"{registry.address}/{REPOSITORY}:latest"
    before, began = registry.link.traffic(), time.monotonic()
    say(f"$ lazyfs mount {reference} {mount_point}")
    with ExitStack() as stack:
        stack.callback(unmount_by_force, mount_point)
        lazyfs("mount", reference, mount_point)
        mounted = time.monotonic()
        answer = run_program(mount_point)
        ended = time.monotonic()
        traffic = registry.link.traffic() - before
        check_answer(answer)
        show_layers(mount_point)
        said = check_stats(lambda: lazyfs.stats(mount_point), lambda: registry.link.traffic() - before)
        waited, ahead = _mb(said, "demand"), _mb(said, "read-ahead")
        say(f"  fetched so far for readers that waited: {waited}; ahead of them: {ahead}")
        lazyfs("umount", mount_point)
        if mount_point.is_mount():
            raise DemoFailed(f"{mount_point} is still mounted after lazyfs umount")
    return Row(name, traffic, ended - began, f"mount {mounted - began:.2f}, program {ended - mounted:.2f}")


def _mb(said: dict[str, Any], purpose: str) -> str:
    return f"{said['traffic'][purpose]['bytes'] / 1e6:.1f} MB"


def check_answer(answer: dict[str, Any]) -> None:
    """See that the program read the right bytes."""
    say(f"  its program says: {answer}")
    if answer["record"] != image.expected_record():
        raise DemoFailed(f"the program read wrong bytes: sha256 {answer['record']}")


def show_layers(root: Path) -> None:
    """See that a whiteout hides and that a hard link is one file with two names."""
    if (root / image.HIDDEN).exists():
        raise DemoFailed(f"/{image.HIDDEN} is there, though the top layer has a whiteout for it")
    first, second = (root / image.DATA).stat(), (root / image.DATA_LINK).stat()
    if (first.st_ino, first.st_nlink) != (second.st_ino, 2):
        raise DemoFailed(f"/{image.DATA} and /{image.DATA_LINK} are not one file: {first}, {second}")
    say(f"  /{image.HIDDEN} of the lowest layer is hidden by a whiteout of the top layer")
    say(f"  /{image.DATA} and /{image.DATA_LINK} are one file: inode {first.st_ino}, {first.st_nlink} links")


def check_stats(stats: Callable[[], dict[str, Any]], sent: Callable[[], Traffic]) -> dict[str, Any]:
    """See that lazyfs tells the truth about what it asked for and got, once what is under way has come.

    Returns what it tells.
    """
    until = time.monotonic() + SETTLES_S
    while True:
        said, traffic = stats(), sent()
        told = Traffic(said["requests"], said["bytes"])
        if told == traffic:
            return said
        if time.monotonic() > until:
            raise DemoFailed(f"lazyfs stats says {told}, the registry says {traffic}")
        time.sleep(0.1)


def full_pull(folder: Path, registry: Registry) -> tuple[Row, Pulled]:
    """Download and unpack the whole image, and run its program."""
    say("Full pull of the same image, for comparison ...")
    target = folder / "pulled"
    target.mkdir()
    before, began = registry.link.traffic(), time.monotonic()
    pulled = pull(registry.address, REPOSITORY, target)
    answer = run_program(target / "root")
    ended = time.monotonic()
    check_answer(answer)
    note = f"download {pulled.download_s:.2f}, unpack {pulled.unpack_s:.2f}"
    return Row("full pull", registry.link.traffic() - before, ended - began, note), pulled


def print_table(rows: list[Row], pulled: Pulled, mbit: float, delay_ms: float) -> None:
    """What each way took."""
    speed = f"{mbit:g} Mbit/s" if mbit else "unlimited"
    print(f"\nAn image of {pulled.image_bytes / 1e6:.1f} MB; link {speed}, {delay_ms:g} ms to each answer\n")
    print(f"{'':16}{'fetched':>10}{'of image':>10}{'requests':>10}{'seconds':>9}")
    for row in rows:
        share = f"{100 * row.traffic.bytes / pulled.image_bytes:.1f} %"
        size = f"{row.traffic.bytes / 1e6:.2f} MB"
        print(
            f"{row.name:16}{size:>10}{share:>10}{row.traffic.requests:>10}{row.seconds:>9.2f}  ({row.note})"
        )


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
