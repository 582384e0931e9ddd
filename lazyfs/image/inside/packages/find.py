"""Finds the package databases of an image and reads them, and nothing else of its contents."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

import trio
from msgspec import Struct, field

from indexer.errors import IndexerError, LimitExceeded
from lazyfs.errors import NotFound
from lazyfs.image.image import Image
from lazyfs.image.inside.browse import Entry, below, children, entry_at
from lazyfs.image.inside.packages import apk, dpkg, node, python, rpm
from lazyfs.image.inside.packages.package import (
    Distribution,
    Package,
    parse_os_release,
    parse_redhat_release,
)
from lazyfs.image.tasks import run_few

KINDS: Final = ("deb", "apk", "rpm", "pypi", "npm")
"""All kinds of packages that are found, in the order of an inventory."""

_RELEASES: Final = (
    (b"etc/os-release", parse_os_release),
    (b"usr/lib/os-release", parse_os_release),
    (b"etc/redhat-release", parse_redhat_release),
)
_MAX_RELEASE: Final = 64 << 10
_DPKG: Final = b"var/lib/dpkg/status"
_DPKG_PARTS: Final = b"var/lib/dpkg/status.d"
_APK: Final = (b"lib/apk/db/installed", b"usr/lib/apk/db/installed")
_MAX_STANZAS: Final = 64 << 20
_MAX_PACKAGES: Final = 500_000
_READERS: Final = 8

Parse = Callable[[bytes], Iterable[Package]]


class Problem(NamedTuple):
    """A file that should tell of packages and cannot be used.

    Attributes:
        path: from the root.
        message: why not.
    """

    path: bytes
    message: str


class Inventory(Struct, frozen=True):
    """What an image says is installed in it.

    Attributes:
        distribution: of the system packages.
        packages: by kind, name, version and place.
        problems: what could not be used, or not to its end; packages that it tells of are missing.
    """

    distribution: Distribution
    packages: tuple[Package, ...]
    problems: tuple[Problem, ...]


class _Document(NamedTuple):
    """A file to be read, and what makes packages of it.

    Attributes:
        entry: the file.
        most: bytes that are read.
        parse: makes packages of them.
        head: whether a longer file will do by its front; else it is a problem.
    """

    entry: Entry
    most: int
    parse: Parse
    head: bool = False


class _Findings(Struct):
    packages: list[Package] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, entry: Entry, error: Exception) -> None:
        self.problems.append(Problem(entry.path, str(error)))


async def find_packages(image: Image) -> Inventory:
    """All packages that the databases of dpkg, apk and RPM list, Python distributions and npm packages.

    A database that cannot be used is a problem in the answer, not an error.

    Raises:
        IndexerError: content does not match its digest.
        LazyfsError: content cannot be had.
    """
    findings = _Findings()
    distribution = await _distribution(image)
    await _read_rpm(image, findings)
    candidates = _candidates(image)
    documents = [*_stanza_documents(image), *candidates.python]
    await _read(image, documents, findings)
    covered = await _read_lockfiles(image, candidates.lockfiles, findings)
    manifests = (entry for entry in candidates.manifests if entry.path.rpartition(b"/")[0] not in covered)
    await _read(image, (_manifest(entry) for entry in manifests), findings)
    packages = sorted(findings.packages, key=lambda p: (KINDS.index(p.kind), p.name, p.version, p.where))
    return Inventory(distribution, tuple(packages), tuple(sorted(findings.problems)))


async def _distribution(image: Image) -> Distribution:
    for path, parse in _RELEASES:
        entry = _file_at(image, path)
        if entry is not None:
            return parse(await image.read(entry.inode.nid, 0, _MAX_RELEASE))
    return Distribution()


def _stanza_documents(image: Image) -> Iterator[_Document]:
    status = _file_at(image, _DPKG)
    if status is not None:
        yield _Document(status, _MAX_STANZAS, partial(dpkg.parse_status, where=_DPKG))
    for entry in _directory(image, _DPKG_PARTS):
        if entry.letter == "f" and not entry.name.endswith(b".md5sums"):
            yield _Document(entry, _MAX_STANZAS, partial(dpkg.parse_status, where=entry.path))
    seen: set[int] = set()
    for path in _APK:
        installed = _file_at(image, path)
        if installed is not None and installed.inode.nid not in seen:
            seen.add(installed.inode.nid)
            yield _Document(installed, _MAX_STANZAS, partial(apk.parse_installed, where=path))


class _Candidates(NamedTuple):
    """What a walk finds by name."""

    python: list[_Document]
    lockfiles: list[Entry]
    manifests: list[Entry]


def _candidates(image: Image) -> _Candidates:
    found = _Candidates([], [], [])
    for _, entry in below(image.metadata, entry_at(image.metadata, b"")):
        if entry.letter != "f":
            continue
        if python.is_metadata(entry.path):
            parse = partial(_one_python, entry.path)
            found.python.append(_Document(entry, python.HEADER_SIZE, parse, head=True))
        elif node.is_manifest(entry.path):
            found.manifests.append(entry)
        elif node.is_lockfile(entry.path):
            found.lockfiles.append(entry)
    return found


def _one_python(where: bytes, data: bytes) -> list[Package]:
    return [python.parse_metadata(data, where)]


def _manifest(entry: Entry) -> _Document:
    def parse(data: bytes) -> list[Package]:
        package = node.parse_manifest(data, entry.path)
        return [] if package is None else [package]

    return _Document(entry, node.MAX_MANIFEST, parse)


async def _read(image: Image, documents: Iterable[_Document], findings: _Findings) -> None:
    """Read and parse documents, several at once."""

    async def read(document: _Document) -> None:
        inode = document.entry.inode
        if inode.size > document.most and not document.head:
            findings.refuse(document.entry, LimitExceeded(f"it has {inode.size} bytes"))
            return
        data = await image.read(inode.nid, 0, document.most)
        try:
            findings.packages.extend(_bounded(document.parse(data)))
        except IndexerError as error:
            findings.refuse(document.entry, error)

    await run_few((partial(read, document) for document in documents), _READERS)


def _bounded(packages: Iterable[Package]) -> Iterator[Package]:
    for number, package in enumerate(packages):
        if number == _MAX_PACKAGES:
            raise LimitExceeded(f"it lists more than {_MAX_PACKAGES} packages")
        yield package


async def _read_lockfiles(image: Image, lockfiles: Iterable[Entry], findings: _Findings) -> set[bytes]:
    """Read npm's hidden lockfiles; the directories of the packages that they tell of and that are there."""
    covered: set[bytes] = set()
    for entry in lockfiles:
        top = entry.path.removesuffix(b"node_modules/.package-lock.json")

        def parse(data: bytes, entry: Entry = entry, top: bytes = top) -> Iterator[Package]:
            for directory, package in node.parse_lockfile(data, entry.path):
                if image.metadata.resolve(top + directory) is not None:
                    covered.add(top + directory)
                    yield package

        await _read(image, [_Document(entry, node.MAX_LOCKFILE + 1, parse)], findings)
    return covered


async def _read_rpm(image: Image, findings: _Findings) -> None:
    seen: set[int] = set()
    for directory in rpm.DIRECTORIES:
        entries = {entry.name: entry for entry in _directory(image, directory) if entry.letter == "f"}
        database = next((entries[name] for name in rpm.NAMES if name in entries), None)
        if database is not None and database.inode.nid not in seen:
            seen.add(database.inode.nid)
            log = entries.get(rpm.SQLITE_LOG) if database.name == rpm.SQLITE else None
            await _read_rpm_database(image, database, log, findings)


async def _read_rpm_database(image: Image, database: Entry, log: Entry | None, findings: _Findings) -> None:
    parts = []
    for entry in (database, log):
        size = entry.inode.size if entry is not None else 0
        if size > rpm.MAX_DATABASE:
            findings.refuse(database, LimitExceeded(f"it has {size} bytes"))
            return
        parts.append(await image.read(entry.inode.nid, 0, size) if entry is not None else b"")
    try:
        packages = await trio.to_thread.run_sync(rpm.read_database, parts[0], parts[1], database.path)
        findings.packages.extend(packages)
    except IndexerError as error:
        findings.refuse(database, error)


def _file_at(image: Image, path: bytes) -> Entry | None:
    """The regular file that a path leads to, under the path given."""
    try:
        entry = entry_at(image.metadata, path)
    except NotFound:
        return None
    return entry if entry.letter == "f" else None


def _directory(image: Image, path: bytes) -> list[Entry]:
    """What is in the directory that a path leads to; nothing where there is none."""
    try:
        return children(image.metadata, entry_at(image.metadata, path))
    except NotFound:
        return []
