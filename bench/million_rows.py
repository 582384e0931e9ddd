"""Rows about an image of a million files in 40 layers: its merged tree, and mounting what is compiled."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import workloads
from bench.measure import Case, Row
from bench.methods import DRIVERS, Mounted, lazyfs_mount
from bench.tree_rows import memory_of
from bench.world import HOME, World
from tests.support.images import build_image, write_layout
from tests.support.tars import directory, file, tar

_LAYERS = 40
_FOLDERS = 250
_FILES = 100


def million_rows(world: World) -> Iterator[Row]:
    """Compiling the tree, mounting it from the compiled image, memory after each name was looked at."""
    reference, cache = f"oci:{_layout()}:latest", world.scratch / "million"
    cache.mkdir(mode=0o700)
    world.lazyfs("index", reference, cache=cache)
    images = cache / "images"

    def forget() -> None:
        for path in images.iterdir():
            path.unlink()

    compile_ = Case("lazyfs", partial(_run, world, reference, cache), forget)
    note = "lazyfs index of an image whose layers are indexed: reads 40 tables, merges, writes"
    yield Row("compile a million files", "s", [compile_], note=note)
    mounts = {driver: _Mount(world, driver, reference, cache) for driver in DRIVERS}
    cases = [Case(f"lazyfs {driver}", mount.mount, mount.unmount) for driver, mount in mounts.items()]
    yield Row("mount a million files", "s", cases, note="lazyfs mount, the metadata image compiled")
    found = [Case(f"lazyfs {driver}", mount.find, mount.ready) for driver, mount in mounts.items()]
    yield Row("find a million files", "s", found, note="find ROOT, first and then warm")
    memory = [Case(f"lazyfs {driver}", mount.anonymous_mb, mount.ready) for driver, mount in mounts.items()]
    yield Row("memory of a million files, Anonymous", "MB", memory, exact=True, note="after find")
    for mount in mounts.values():
        mount.unmount()


class _Mount:
    """The image with one driver, mounted and unmounted at will."""

    def __init__(self, world: World, driver: str, reference: str, cache: Path) -> None:
        self._open = partial(lazyfs_mount, world, driver, reference, cache)
        self._stack = world.stack.enter_context(ExitStack())
        self._mounted: Mounted | None = None

    def mount(self) -> None:
        self._mounted = self._stack.enter_context(self._open())

    def unmount(self) -> None:
        self._mounted = None
        self._stack.close()

    def ready(self) -> None:
        if self._mounted is None:
            self.mount()

    def find(self) -> None:
        assert self._mounted is not None
        workloads.find(self._mounted.root)

    def anonymous_mb(self) -> float:
        assert self._mounted is not None
        return sum(memory_of(pid)["Anonymous"] for pid in self._mounted.pids) / 1e6


def _run(world: World, reference: str, cache: Path) -> None:
    assert json.loads(world.lazyfs("index", "--json", reference, cache=cache))


def _layout() -> Path:
    """The image, made once."""
    layout = HOME / "million-1"
    if not layout.exists():
        partial_ = layout.with_name(layout.name + ".partial")
        shutil.rmtree(partial_, ignore_errors=True)
        layers = [tar(*_entries(b"layer%d" % number)) for number in range(_LAYERS)]
        write_layout(partial_, {"latest": build_image(layers)})
        partial_.rename(layout)
    return layout


def _entries(top: bytes) -> Iterator[bytes]:
    for folder in range(_FOLDERS):
        path = b"%s/%d" % (top, folder)
        yield directory(path)
        for number in range(_FILES):
            yield file(b"%s/file-%d" % (path, number), b"x")
