"""The laboratory by hand: `python -m tests.support.lab build|serve [NAME ...]`."""

import argparse
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.support.lab import BASE, Lab, default_lab, image_names, serve
from tests.support.lab_build import LabError
from tests.support.lab_foreign import FOREIGN, storage, tools


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.lab", description="Real images for tests.")
    parser.add_argument("command", choices=["build", "serve"])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(image_names())}; default: all"
    )
    arguments = parser.parse_args()
    lab, names = default_lab(), arguments.names or image_names()
    try:
        build_all(lab, names)
        if not arguments.names:
            make_foreign(lab)
        if arguments.command == "serve":
            serve_until_interrupted(lab, names)
    except LabError as error:
        sys.exit(f"lab: {error}")


def build_all(lab: Lab, names: list[str]) -> None:
    """Make and push the images, two at a time, and say what they cost."""
    if BASE in names:
        build(lab, BASE)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: build(lab, name), [name for name in names if name != BASE]))


def build(lab: Lab, name: str) -> None:
    """Make one image, unpack it, push it."""
    began = time.monotonic()
    layout = lab.image(name)
    lab.unpacked(name)
    lab.push(name)
    seconds = time.monotonic() - began
    print(f"{name:10} {tree_bytes(layout) / 2**20:6.1f} MiB {seconds:6.1f} s  {layout}", flush=True)


def make_foreign(lab: Lab) -> None:
    """Have other people's tools convert and index images, two at a time."""
    tools(lab)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: storage(lab, name), FOREIGN))


def serve_until_interrupted(lab: Lab, names: list[str]) -> None:
    """Serve the images, and say under which names."""
    with serve(lab) as registry:
        for name in names:
            print(registry.reference(name), flush=True)
        print("Serving until Ctrl-C.", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()


def tree_bytes(top: Path) -> int:
    """The sum of the sizes of all files below."""
    return sum(path.stat().st_size for path in top.rglob("*") if path.is_file())
