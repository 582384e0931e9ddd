"""Images in tar archives: OCI layouts (`oci-archive:`), and what `docker save` writes (`docker-archive:`).

Only the archive's headers are read; content stays where it is and is read by range.
"""

import json
import os
import posixpath
import tarfile
from contextlib import AbstractAsyncContextManager, ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import trio

from indexer.digest import digest_hex, sha256_digest
from indexer.errors import FormatError, LimitExceeded, Unsupported
from lazyfs.errors import BadReference, NotFound
from lazyfs.oci.config import parse_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES, Fields, parse_objects
from lazyfs.oci.media_types import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.source.base import PIECE_SIZE
from lazyfs.source.local.layout import read_layout_index
from lazyfs.source.local.source import FileRange, LocalSource, opened_in_thread, read_range, select_tagged

MAX_MEMBERS: Final = 20_000
MAX_IMAGES: Final = 10_000
MAX_LINKS: Final = 8

_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")


class Archive:
    """The regular files of a tar, by name.

    Args:
        path: the tar.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._files: dict[str, FileRange] = {}
        self._links: dict[str, str] = {}
        try:
            self._file = self._stack.enter_context(path.open("rb"))
            self._size = os.fstat(self._file.fileno()).st_size
            self._scan()
        except OSError as error:
            self._stack.close()
            raise NotFound(f"{path}: cannot be read: {error.strerror}", url=str(path)) from None
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _scan(self) -> None:
        """Note where each file's content lies."""
        if self._file.read(6).startswith(_COMPRESSED):
            raise Unsupported(f"{self._path}: the archive is compressed; decompress it first")
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for number, member in enumerate(tar):
                    if number >= MAX_MEMBERS:
                        raise LimitExceeded(f"{self._path}: more than {MAX_MEMBERS} members")
                    self._note(member)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            # MemoryError: tarfile reads extended headers at once, however long they say they are.
            raise FormatError(f"{self._path}: not a tar archive ({type(error).__name__})") from error

    def _note(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if member.issym() or member.islnk():
            base = posixpath.dirname(name) if member.issym() else ""
            self._links[name] = posixpath.normpath(posixpath.join(base, member.linkname))
        elif member.isreg() and not member.issparse():
            if not 0 <= member.size <= self._size - member.offset_data:
                raise FormatError(f"{self._path}: the archive ends inside {name[:100]!r}")
            self._files[name] = FileRange(self._file.fileno(), member.offset_data, member.size)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._files or name in self._links

    def file(self, name: str) -> FileRange:
        """Where a file's content lies; links inside the archive are followed.

        Raises:
            NotFound: there is no such file.
        """
        resolved = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            if resolved in self._files:
                return self._files[resolved]
            resolved = self._links.get(resolved, "")
        raise NotFound(f"{self._path}: holds no file {name[:200]!r}", url=str(self._path))

    def read(self, name: str) -> bytes:
        """All of a small file.

        Raises:
            NotFound: there is none.
            LimitExceeded: it is too large.
        """
        found = self.file(name)
        if found.size > MAX_DOCUMENT_BYTES:
            raise LimitExceeded(f"{self._path}: {name[:100]!r} has more than {MAX_DOCUMENT_BYTES} bytes")
        return bytes(read_range(found, 0, found.size, str(self._path)))

    def find(self, digest: str) -> FileRange:
        """As LocalContent.find says, for an archive that holds an OCI layout."""
        return self.file(f"blobs/sha256/{digest_hex(digest)}")


def open_oci_archive(path: Path, tag: str) -> AbstractAsyncContextManager[LocalSource]:
    """The image called `tag` in an archived OCI layout, or its only one.

    Raises:
        NotFound: there is no such archive or image.
        FormatError, Unsupported: it is no archive that can be read.
    """

    def begin(stack: ExitStack) -> LocalSource:
        archive = stack.enter_context(Archive(path))
        if not archive.has("oci-layout"):
            raise FormatError(f"{path}: no OCI layout in it; of what docker save writes, say docker-archive:")
        index = read_layout_index(archive.read("oci-layout"), archive.read("index.json"))
        return LocalSource(select_tagged(index, tag, str(path)), archive)

    return opened_in_thread(begin)


def open_docker_archive(path: Path, reference: Reference | None) -> AbstractAsyncContextManager[LocalSource]:
    """An image in what `docker save` wrote, or its only one, as if it had a manifest.

    Raises:
        NotFound: there is no such archive or image.
        FormatError, Unsupported: it is no archive that can be read.
    """

    def begin(stack: ExitStack) -> LocalSource:
        archive = stack.enter_context(Archive(path))
        if not archive.has("manifest.json"):
            raise FormatError(
                f"{path}: no manifest.json in it, which docker save writes since 1.10; "
                "of an archived OCI layout, say oci-archive:"
            )
        entries = parse_objects(archive.read("manifest.json"), "manifest.json", MAX_IMAGES)
        return _as_source(archive, _select(entries, reference, str(path)))

    return opened_in_thread(begin)


def _select(entries: list[Fields], reference: Reference | None, where: str) -> Fields:
    """The image a reference names among those of `manifest.json`, or the only one."""
    names = [entry.texts("RepoTags") for entry in entries]
    wanted = str(reference or "")
    fitting = [
        entry
        for entry, tags in zip(entries, names, strict=True)
        if reference is None or wanted in map(_canonical, tags)
    ]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(tag for tags in names for tag in tags)[:500] or "images without names"
    raise NotFound(f"{where}: {'no image ' + wanted if wanted else 'name one of its images'}; it has {there}")


def _canonical(tag: str) -> str:
    try:
        return str(parse_reference(tag))
    except BadReference:
        return tag


class _Docker:
    """A LocalContent of documents in memory and layers in the archive."""

    def __init__(self) -> None:
        self.content: dict[str, FileRange | bytes] = {}

    def find(self, digest: str) -> FileRange | bytes:
        """As LocalContent.find says."""
        try:
            return self.content[digest]
        except KeyError:
            raise NotFound(f"the archive holds no {digest}") from None


def _as_source(archive: Archive, entry: Fields) -> LocalSource:
    """The manifest that a registry would have for an entry, over the archive's own files."""
    found = _Docker()
    config = archive.read(entry.text("Config"))
    diff_ids = parse_config(config).diff_ids
    names = entry.texts("Layers", len(diff_ids))
    if len(names) != len(diff_ids):
        raise FormatError(
            f"{entry.where}: {len(names)} layers, the configuration has {len(diff_ids)} diff_ids"
        )
    links = [
        _layer(archive.file(name), diff_id, found) for name, diff_id in zip(names, diff_ids, strict=True)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "digest": sha256_digest(config), "size": len(config)},
        "layers": links,
    }
    data = json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()
    found.content |= {sha256_digest(config): config, sha256_digest(data): data}
    return LocalSource(Descriptor(DOCKER_MANIFEST, sha256_digest(data), len(data)), found)


def _layer(file: FileRange, diff_id: str, found: _Docker) -> dict[str, Any]:
    """The descriptor of a layer. A plain tar's digest is its diffID; a compressed one is read to know it."""
    head = bytes(read_range(file, 0, min(file.size, 6), "layer"))
    suffix = (
        ".gzip" if head.startswith(_COMPRESSED[0]) else ".zstd" if head.startswith(_COMPRESSED[1]) else ""
    )
    digest = _digest_of(file) if suffix else diff_id
    found.content[digest] = file
    return {"mediaType": DOCKER_LAYER + suffix, "digest": digest, "size": file.size}


def _digest_of(file: FileRange) -> str:
    state = sha256()
    for start in range(0, file.size, PIECE_SIZE):
        trio.from_thread.check_cancelled()
        state.update(read_range(file, start, min(start + PIECE_SIZE, file.size), "layer"))
    return f"sha256:{state.hexdigest()}"
