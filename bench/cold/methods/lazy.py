"""lazyfs without an engine: its mount below a writable overlay, and runc."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from bench.cold.methods.base import Context, Session
from bench.cold.methods.runc import Runc
from bench.cold.methods.tools import PATH, need
from bench.cold.store import INDEXED, PLAIN, Store
from bench.cold.workload import Workload
from bench.measure import MethodFailed

LAZYFS = Path(sys.executable).with_name("lazyfs")


def publish_index(store: Store, workload: Workload) -> str:
    """See that the image is there with the index that this lazyfs makes; its name there."""
    name = store.publish_plain(workload, INDEXED)
    if store.registry:
        return name
    with store.writable() as address, tempfile.TemporaryDirectory(dir=store.home) as folder:
        push = ("index", "--push", "--cache-dir", folder, f"{address}/{name}")
        environment = {"PATH": PATH, "HOME": folder, "XDG_RUNTIME_DIR": folder}
        done = subprocess.run([LAZYFS, *push], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MethodFailed(f"lazyfs index --push: {done.stderr.strip()[-300:]}")
    return name


@dataclass(frozen=True, slots=True)
class LazyMount:
    """`lazyfs mount`, an overlay, `runc run`.

    Attributes:
        name: of the method.
        title: of the method.
        way: which variant of the image: PLAIN or INDEXED.
    """

    name: str
    title: str
    way: str

    def check(self) -> None:
        need("runc", "mount")

    def publish(self, store: Store, workload: Workload) -> str:
        return publish_index(store, workload) if self.way == INDEXED else store.publish_plain(workload)

    @contextmanager
    def session(self, context: Context) -> Iterator[Session]:
        session = _Mounted(context)
        try:
            yield session
        finally:
            session.unmount()

    def warm_up(self, context: Context) -> None:
        context.box.run("runc", "--version")
        # All that its daemon imports.
        context.box.run(sys.executable, "-c", "import lazyfs.daemon, lazyfs.cli.main, lazyfs.assembly")


def without_index() -> LazyMount:
    """Indexed while it is pulled."""
    return LazyMount("lazyfs-mount-noindex", "lazyfs mount without a published index, runc run", PLAIN)


def with_index() -> LazyMount:
    """The published index is fetched as it is needed."""
    return LazyMount("lazyfs-mount", "lazyfs mount with a published index, runc run", INDEXED)


class _Mounted:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._runc = Runc(context)
        self._cache = context.scratch / "cache"
        self._lower, self._rootfs, self._upper, self._work = (
            context.scratch / name for name in ("lower", "rootfs", "upper", "work")
        )
        for folder in (self._lower, self._rootfs, self._upper, self._work):
            folder.mkdir()
        self._is_mounted = False

    def pull(self) -> None:
        if self._is_mounted:
            return
        self._lazyfs("mount", self._context.reference, self._lower)
        options = f"lowerdir={self._lower},upperdir={self._upper},workdir={self._work}"
        self._context.box.run("mount", "-t", "overlay", "-o", options, "overlay", self._rootfs)
        self._is_mounted = True

    def run(self) -> "Popen[bytes]":
        return self._runc.run(self._rootfs)

    def remove(self) -> None:
        self._runc.remove()

    def unmount(self) -> None:
        if self._is_mounted:
            self._context.box.run("umount", self._rootfs)
            self._lazyfs("umount", self._lower)

    def _lazyfs(self, command: str, *arguments: str | Path) -> str:
        return self._context.box.run(LAZYFS, "--cache-dir", self._cache, command, *arguments)
