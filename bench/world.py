"""Where measurements take place: a private folder, the tree, a registry, caches that can be emptied."""

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

from bench.link import Link
from bench.measure import MethodFailed
from bench.tree import Tree, make_long, make_tree
from tests.support.lab import Lab, default_lab, push_layout
from tests.support.lab_build import LabError
from tests.support.lab_registry import docker_registry

REPOSITORY: Final = Path(__file__).parents[1]
HOME: Final = REPOSITORY / ".cache" / "bench"
_REGISTRY: Final = HOME / "registry"
_TREE_VERSION: Final = 1
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


class World:
    """A context manager; what it starts ends with it.

    Args:
        progress: told what takes a while.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._stack = ExitStack()
        for package in ("indexer", "lazyfs"):  # as an installed one has it
            compileall.compile_dir(REPOSITORY / package, quiet=2)
        HOME.mkdir(parents=True, exist_ok=True)
        self.scratch: Final = Path(self._stack.enter_context(TemporaryDirectory(dir=HOME, prefix="run-")))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LAZYFS_")},
            "XDG_RUNTIME_DIR": str(self._folder("runtime")),
            "XDG_CONFIG_HOME": str(self._folder("config")),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def stack(self) -> ExitStack:
        """For what is to end with this world."""
        return self._stack

    @cached_property
    def lab(self) -> Lab:
        """Real images."""
        return default_lab()

    @cached_property
    def tree(self) -> Tree:
        """The tree that is measured, made when first asked for.

        Raises:
            MethodFailed: it cannot be made here.
        """
        self._progress("making the tree (once)")
        try:
            rootfs = self.lab.unpacked("python")
        except LabError as error:
            raise MethodFailed(str(error)) from error
        tree = make_tree(HOME / f"tree-{_TREE_VERSION}-{rootfs.parent.name}", rootfs)
        os.sync()
        return tree

    @cached_property
    def cache(self) -> Path:
        """A cache of lazyfs with the index and all content of the tree."""
        cache = self._folder("cache")
        self._progress("indexing the tree")
        self.lazyfs("index", self.tree.reference, cache=cache)
        os.sync()  # what is dirty cannot be dropped
        return cache

    @cached_property
    def registry(self) -> str:
        """The address of a registry that has the tree as "bench/tree"."""
        self._push(self.tree.layout, "tree")
        return self._stack.enter_context(docker_registry(_REGISTRY, read_only=True))

    @cached_property
    def long(self) -> Path:
        """A layout of one long file, which the registry has as "bench/long"."""
        assert self.registry
        self._progress("making a long file (once)")
        layout = make_long(self.tree)
        self._push(layout, "long")
        return layout

    def _push(self, layout: Path, name: str) -> None:
        _REGISTRY.mkdir(exist_ok=True)
        marker = _REGISTRY / f"pushed-{self.tree.home.name}-{name}"
        if not marker.exists():
            with docker_registry(_REGISTRY) as address:
                push_layout(layout, f"{address}/bench/{name}:latest")
            marker.touch()

    def registry_over_tls(self, certificate: Path, key: Path) -> str:
        """The address of another one over the same storage that speaks TLS."""
        assert self.registry
        settings: Mapping[str, Any] = {"http": {"tls": {"certificate": str(certificate), "key": str(key)}}}
        return self._stack.enter_context(docker_registry(_REGISTRY, read_only=True, settings=settings))

    def registry_behind(self, link: Link) -> AbstractContextManager[str]:
        """A registry with the tree at the servers' end of a link: its address there."""
        assert self.registry
        settings: Mapping[str, Any] = {"http": {"addr": f"{link.server_ip}:0"}}
        return docker_registry(_REGISTRY, read_only=True, settings=settings)

    def lazyfs(self, *arguments: str, cache: Path, link: Link | None = None) -> str:
        """What a lazyfs command says.

        Args:
            arguments: of the command.
            cache: its cache.
            link: the link that it runs behind, if any.

        Raises:
            MethodFailed: it failed.
        """
        lazyfs = Path(sys.executable).with_name("lazyfs")
        command: list[str | Path] = [lazyfs, "--cache-dir", cache, *arguments]
        done = subprocess.run(
            link.command(command) if link else command,
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise MethodFailed(f"lazyfs {arguments[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def _folder(self, name: str) -> Path:
        folder = self.scratch / name
        folder.mkdir(mode=0o700)
        return folder


def drop_caches() -> None:
    """Make the kernel forget files and directories.

    Raises:
        MethodFailed: not root.
    """
    try:
        _DROP_CACHES.write_text("3")
    except OSError as error:
        raise MethodFailed(f"cold needs root: {error.strerror}") from error


def drop_content(cache: Path) -> None:
    """Empty a cache of content; indexes stay."""
    for entry in (cache / "layers").iterdir():
        shutil.rmtree(entry)


@contextmanager
def empty_directory(path: Path) -> Iterator[Path]:
    """A new directory; empty again, it is removed."""
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()
