"""lazyfs: `lazyfs run`; its mount below an overlay, and runc; below containerd, Podman and Docker."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Final

from bench.cold.methods.base import Context, Session
from bench.cold.methods.containerd import Containerd
from bench.cold.methods.docker import TOOLS as DOCKER_TOOLS
from bench.cold.methods.docker import DockerSession
from bench.cold.methods.podman import TOOLS as PODMAN_TOOLS
from bench.cold.methods.podman import PodmanSession
from bench.cold.methods.runc import Runc
from bench.cold.methods.tools import need, say_versions
from bench.cold.probe import Watch
from bench.cold.store import INDEXED, PACKED, PLAIN, Store
from bench.cold.workload import Workload
from bench.measure import MethodFailed


@dataclass(frozen=True, slots=True)
class Program:
    """A lazyfs that is installed somewhere.

    Attributes:
        path: of the command; its Python is beside it.
    """

    path: Path

    def check(self) -> None:
        """See that it is there.

        Raises:
            MethodFailed: it is not.
        """
        if not os.access(self.path, os.X_OK):
            hint = ": scripts/setup bench" if self == OWN else ""
            raise MethodFailed(f"lazyfs is not installed as {self.path}{hint}")

    def command(self, context: Context, command: str) -> tuple[str | Path, ...]:
        """A lazyfs command with a cache of its own, to be followed by its arguments."""
        return (self.path, command, "--cache-dir", context.scratch / "cache")

    def run(self, context: Context, command: str, *arguments: str | Path) -> str:
        """What such a command says.

        Raises:
            MethodFailed: it failed.
        """
        return context.box.run(*self.command(context, command), *arguments)

    def warm_up(self, context: Context) -> None:
        """Have all that its processes import in the page cache."""
        self.run(context, "run", "--help")
        program = "import runpy; runpy.run_module('lazyfs.daemon')"  # by its own name it does nothing
        context.box.run(self.path.with_name("python"), "-c", program)


OWN: Final = Program(Path(sys.executable).with_name("lazyfs"))
"""That of the environment that measures."""

_WAYS: Final = {
    PLAIN: ("-noindex", "without a published index"),
    INDEXED: ("", "with a published index"),
    PACKED: ("-pack", "with a published index and boot pack"),
}


@dataclass(frozen=True, slots=True)
class Lazy:
    """One face of lazyfs, on an image with or without something beside it.

    Attributes:
        face: "run", "mount", "containerd", "podman" or "docker".
        way: PLAIN, INDEXED or PACKED.
        inside: gives contexts for what has to run to be published.
        program: what is measured. Indexes and packs are always those of the environment that measures.
        programs: where all others are looked for first.
    """

    face: str
    way: str
    inside: "Callable[[Workload, str], AbstractContextManager[Context]]"
    program: Program = OWN
    programs: Path | None = None

    @property
    def name(self) -> str:
        whose = "" if self.program == OWN else f"@{self.program.path}"
        return f"lazyfs-{self.face}{_WAYS[self.way][0]}{whose}"

    @property
    def title(self) -> str:
        return f"{_FACES[self.face].title} {_WAYS[self.way][1]}"

    def check(self) -> None:
        need(*_FACES[self.face].tools, programs=self.programs)
        OWN.check()
        self.program.check()

    def publish(self, store: Store, workload: Workload) -> str:
        name = store.publish_plain(workload, self.way)
        if store.registry or self.way == PLAIN:
            return name
        with store.writable() as address, self.inside(workload, f"{address}/{name}") as context:
            OWN.run(context, "index", "--push", context.reference)
            if self.way == PACKED:
                _record(context)
                store.keep_touched(workload, _touched_bytes(context))
                OWN.run(context, "optimize", "--push", "--replace", context.reference)
        return name

    def session(self, context: Context) -> AbstractContextManager[Session]:
        return _FACES[self.face].session(context, self.program)

    def warm_up(self, context: Context) -> None:
        self.program.warm_up(context)
        say_versions(context.box, *_FACES[self.face].tools)


def _record(context: Context) -> None:
    """Start the container once, for its trace."""
    session = _Run(context, OWN, "--record")
    process = session.run()
    watch = Watch(process, context.workload, context.mark, Path("/proc/self/ns/net"))
    try:
        watch.wait()
    finally:
        session.remove()
        process.wait()
        watch.close()


def _touched_bytes(context: Context) -> int:
    """What that trace says."""
    words = ("trace", "show", "--json", "--cache-dir", context.scratch / "cache", context.reference)
    return sum(int(touch["size"]) for touch in json.loads(context.box.run(OWN.path, *words))["files"])


class _Run:
    """`lazyfs run`: there is nothing to be done before."""

    def __init__(self, context: Context, program: Program, *options: str) -> None:
        self._context = context
        self._words = (*program.command(context, "run"), *options)
        self._process: Popen[bytes] | None = None

    def pull(self) -> None:
        """Is part of the run."""

    def run(self) -> Popen[bytes]:
        context = self._context
        options = ("--name", context.mark, *context.environment_options)
        self._process = context.box.start(
            *self._words, *options, context.reference, *context.workload.command
        )
        return self._process

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._context.box.terminate(self._process)


class _Mounted:
    """`lazyfs mount`, a writable overlay, `runc run`."""

    def __init__(self, context: Context, program: Program) -> None:
        self._context = context
        self._program = program
        self._runc = Runc(context)
        self._lower, self._rootfs, self._upper, self._work = (
            context.scratch / name for name in ("lower", "rootfs", "upper", "work")
        )
        for folder in (self._lower, self._rootfs, self._upper, self._work):
            folder.mkdir()
        self._is_mounted = False

    def pull(self) -> None:
        if self._is_mounted:
            return
        self._program.run(self._context, "mount", self._context.reference, self._lower)
        self._is_mounted = True
        options = f"lowerdir={self._lower},upperdir={self._upper},workdir={self._work}"
        self._context.box.run("mount", "-t", "overlay", "-o", options, "overlay", self._rootfs)

    def run(self) -> Popen[bytes]:
        return self._runc.run(self._rootfs)

    def remove(self) -> None:
        self._runc.remove()

    def unmount(self) -> None:
        """Undo `pull`."""
        if self._is_mounted:
            self._context.box.run("umount", self._rootfs)
            self._program.run(self._context, "umount", self._lower)


@contextmanager
def _run_session(context: Context, program: Program) -> Iterator[Session]:
    yield _Run(context, program)


@contextmanager
def _mount_session(context: Context, program: Program) -> Iterator[Session]:
    session = _Mounted(context, program)
    try:
        yield session
    finally:
        session.unmount()


def _containerd(context: Context, program: Program) -> Containerd:
    """A containerd with the snapshotter "lazyfs"."""
    scratch, socket, daemon = (
        context.scratch,
        context.scratch / "snapshotter.sock",
        context.scratch / "daemon.sock",
    )
    context.box.serve(
        *program.command(context, "daemon"), "--root", scratch / "lazyfs", "--socket", daemon,
        log=scratch / "daemon.log", ready=daemon.exists,
    )  # fmt: skip
    context.box.serve(
        *program.command(context, "snapshotter"), "--root", scratch / "snapshots", "--socket", socket,
        "--daemon", daemon,
        log=scratch / "snapshotter.log", ready=socket.exists,
    )  # fmt: skip
    return Containerd.start(context, proxies={"lazyfs": socket})


@contextmanager
def _containerd_session(context: Context, program: Program) -> Iterator[Session]:
    """`ctr-remote image rpull` and `ctr run`, as the stargz snapshotter has it."""
    pull = ["image", "rpull", "--plain-http"]
    yield _containerd(context, program).session("lazyfs", ["ctr-remote"], pull)


@contextmanager
def _docker_session(context: Context, program: Program) -> Iterator[Session]:
    """`docker pull` and `docker run`, by that snapshotter."""
    yield DockerSession(context, _containerd(context, program), "lazyfs")


@contextmanager
def _podman_session(context: Context, program: Program) -> Iterator[Session]:
    """`podman pull` and `podman run`, which find layers in the daemon's store."""
    scratch, socket, store = context.scratch, context.scratch / "daemon.sock", context.scratch / "store"
    context.box.serve(
        *program.command(context, "daemon"), "--root", scratch / "lazyfs", "--socket", socket,
        "--layer-store", store, "--trust-index",
        log=scratch / "daemon.log", ready=context.box.path(store).is_mount,
    )  # fmt: skip
    yield PodmanSession(context, [store])


@dataclass(frozen=True, slots=True)
class _Face:
    title: str
    tools: tuple[str, ...]
    session: Callable[[Context, Program], AbstractContextManager[Session]]


_FACES: Final = {
    "run": _Face("lazyfs run", ("runc",), _run_session),
    "mount": _Face("lazyfs mount, overlay, runc run,", ("runc", "mount"), _mount_session),
    "containerd": _Face(
        "lazyfs daemon and snapshotter, containerd, ctr-remote image rpull, ctr run,",
        ("runc", "containerd-shim-runc-v2", "ctr-remote", "ctr"),
        _containerd_session,
    ),
    "podman": _Face("lazyfs daemon, podman pull, podman run,", PODMAN_TOOLS, _podman_session),
    "docker": _Face(
        "lazyfs daemon and snapshotter, containerd, docker pull, docker run,", DOCKER_TOOLS, _docker_session
    ),
}
