"""Brings what a program needs before its first instruction, while its container is still being made.

The kernel and ld.so(8) read one file after the other: the program, its interpreter, its libraries, then what
the C library looks at. On a far line each of them costs a round trip or two. But the files name each other,
so that all of them can be asked for long before.
"""

import logging
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Final, NamedTuple

import trio

from indexer.erofs.read import MetadataImage
from indexer.errors import IndexerError
from indexer.executable import Needs, needs_of
from lazyfs.errors import CacheError, LazyfsError
from lazyfs.image.reading.landing import Landing
from lazyfs.image.reading.layer import LazyLayer
from lazyfs.image.reading.traffic import Purpose
from lazyfs.image.tasks import open_tasks
from lazyfs.oci.config import DEFAULT_PATH

_LONGEST_S: Final = 10.0  # strangers write what is followed here
_MOST_FILES: Final = 96
_MOST_BYTES: Final = 64 << 20
_MOST_WORDS: Final = 4  # of a command: `tini -- entrypoint.sh server` starts three programs
_MOST_DIRECTORIES: Final = 24
_PATH_MAX: Final = 4096
_SMALL_FILE: Final = 8 << 20  # of a larger one only what its libraries are named in

_LIBRARY_DIRECTORIES: Final = (
    *(b"lib", b"usr/lib", b"lib64", b"usr/lib64", b"usr/local/lib"),
    *(b"usr/lib/x86_64-linux-gnu", b"usr/lib/aarch64-linux-gnu", b"usr/lib/riscv64-linux-gnu"),
    *(b"usr/lib/powerpc64le-linux-gnu", b"usr/lib/s390x-linux-gnu", b"usr/lib/arm-linux-gnueabihf"),
    *(b"lib/x86_64-linux-gnu", b"lib/aarch64-linux-gnu"),
)
_ASKED_FOR: Final = (b"passwd", b"group")  # by whoever makes the container
_LOOKED_AT: Final = (b"ld.so.cache", b"nsswitch.conf", b"localtime", b"ssl/openssl.cnf")

_log = logging.getLogger(__name__)


class Process(NamedTuple):
    """A process that will start, as an image's configuration has it.

    Attributes:
        words: program and arguments.
        env: NAME=VALUE pairs.
        working_dir: where it starts.
    """

    words: Sequence[str]
    env: Sequence[str]
    working_dir: str


async def foresee(process: Process, tree: MetadataImage, layers: Sequence[LazyLayer]) -> None:
    """Bring what the start of a process is certain to read; returns when it has come, or after a while.

    Args:
        process: what starts.
        tree: the merged tree.
        layers: its layers, open.
    """
    try:
        with trio.move_on_after(_LONGEST_S):
            await _Foresight(process, tree, layers).run()
    except IndexerError as error:  # a damaged tree; who reads it is told
        _log.info("what starts is not foreseen: %s", error)
    except Exception as bug:  # noqa: BLE001  # the mount does without
        _log.error("a bug while the start of %r was foreseen", process.words, exc_info=bug)


class _File(NamedTuple):
    """A regular file with content.

    Attributes:
        path: where it was found.
        layer: that of its content.
        start: where that begins.
        size: in bytes.
    """

    path: bytes
    layer: LazyLayer
    start: int
    size: int

    def bring(self, place: range) -> Iterable[Landing]:
        """Have bytes of it brought."""
        start = self.start + place.start
        return self.layer.bring_place(start, start + len(place), Purpose.PACK)

    async def read(self, place: range) -> bytes:
        """Bytes of it, brought if need be.

        Raises:
            IndexerError: they are damaged.
            LazyfsError: they did not come, or cannot be kept.
        """
        for landing in self.bring(place):
            await landing.wait()
        data = self.layer.peek(self.start + place.start, len(place))
        if data is None:
            raise CacheError("there is no room for what is brought in advance")
        return data


class _Foresight:
    """Follows names from file to file."""

    def __init__(self, process: Process, tree: MetadataImage, layers: Sequence[LazyLayer]) -> None:
        env = dict(pair.partition("=")[::2] for pair in process.env)
        self._words = [_encoded(word) for word in process.words[:_MOST_WORDS]]
        self._working_dir = _encoded(process.working_dir)
        self._path = _directories(env.get("PATH") or DEFAULT_PATH)
        self._libraries = [*_directories(env.get("LD_LIBRARY_PATH", "")), *_LIBRARY_DIRECTORIES]
        self._languages = {env.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")}
        self._tree = tree
        self._layers = layers
        self._seen: set[int] = set()
        self._named: set[bytes] = set()
        self._coming: list[Landing] = []
        self._left = _MOST_BYTES
        self._looked_around = False

    async def run(self) -> None:
        """Follow all names from the command on; returns when what they lead to has come."""
        async with open_tasks() as self._nursery:
            for name in _ASKED_FOR:
                await self._find([b"etc"], name)
            for word in self._words:
                await self._follow_program(word, again=False)
        for landing in self._coming:
            with suppress(IndexerError, LazyfsError):  # whoever reads it is told
                await landing.wait()

    async def _follow_program(self, program: bytes, *, again: bool = True) -> None:
        """Follow a program, found as by execvp(3)."""
        directories = self._path
        if b"/" in program:
            directories = [b"" if program.startswith(b"/") else self._working_dir]
        await self._find(directories, program, again=again)

    async def _find(self, directories: Iterable[bytes], name: bytes, *, again: bool = True) -> None:
        """Follow the first file of a name; `again`, even if it is here."""
        for directory in directories:
            await trio.lowlevel.checkpoint()
            path = directory + b"/" + name
            nid = self._tree.resolve(path) if len(path) < _PATH_MAX else None
            if nid is not None and stat.S_ISREG(self._tree.inode(nid).mode):
                self._follow(path, nid, again=again)
                return

    def _follow(self, path: bytes, nid: int, *, again: bool) -> None:
        extent = self._tree.extent(nid)
        if nid in self._seen or extent is None or len(self._seen) == _MOST_FILES:
            return
        self._seen.add(nid)
        number, start = extent
        layer, size = self._layers[number], self._tree.inode(nid).size
        if start + size <= layer.size and not layer.entry.refuses:  # sparse ones lie elsewhere
            self._nursery.start_soon(self._load, _File(path, layer, start, size), again)

    async def _load(self, file: _File, again: bool) -> None:
        # What a file names stands at its ends, most of it.
        ends = [*file.bring(range(1)), *file.bring(range(file.size - 1, file.size))]
        if not (ends or again):
            return
        try:
            needs = await _needs(file)
            self._bring_whole(file)
            await self._follow_needs(needs, file.path.rpartition(b"/")[0])
        except (IndexerError, LazyfsError) as error:  # whoever reads it is told
            _log.info("what %s needs is not foreseen: %s", file.path, error)

    def _bring_whole(self, file: _File) -> None:
        if file.size <= min(self._left, _SMALL_FILE):
            self._left -= file.size
            self._coming += file.bring(range(file.size))

    async def _follow_needs(self, needs: Needs, origin: bytes) -> None:
        for program in needs.programs:
            await self._follow_program(program)
        search = [_expanded(directory, origin) for directory in needs.search[:_MOST_DIRECTORIES]]
        for library in needs.libraries:
            if library in self._named:  # as for ld.so: the first one of a name serves all
                continue
            self._named.add(library)
            await self._find([b""] if b"/" in library else chain(search, self._libraries), library)
        if needs.programs and needs.libraries and not self._looked_around:
            self._looked_around = True
            await self._look_around()

    async def _look_around(self) -> None:
        """Follow what the C library looks at in most programs."""
        for name in _LOOKED_AT:
            await self._find([b"etc"], name)
        await self._find(self._libraries, b"gconv/gconv-modules.cache")
        for language in self._languages:
            locale, _, codeset = language.partition(".")
            directory = f"{locale}.{codeset.lower().replace('-', '')}"
            await self._find([b"usr/lib/locale"], _encoded(directory) + b"/LC_CTYPE")


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")


def _directories(text: str) -> list[bytes]:
    """Those of a variable of the environment."""
    return [_encoded(part) for part in text.split(":", _MOST_DIRECTORIES)[:_MOST_DIRECTORIES] if part]


def _expanded(directory: bytes, origin: bytes) -> bytes:
    """A directory to search, as ld.so(8) understands it in a file that lies in `origin`."""
    return directory.replace(b"$ORIGIN", origin).replace(b"${ORIGIN}", origin)


async def _needs(file: _File) -> Needs:
    """What a file names."""
    parser = needs_of(file.size)
    wanted = next(parser)
    while True:
        data = await file.read(wanted)
        try:
            wanted = parser.send(data)
        except StopIteration as end:
            needs: Needs = end.value
            return needs
