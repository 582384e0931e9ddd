"""OCI image layouts in directories (image-spec `image-layout.md`)."""

import os
import stat
import threading
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Self

from indexer.digest import digest_hex
from indexer.errors import FormatError, LimitExceeded, Unsupported
from lazyfs.errors import NotFound, SourceError
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES, parse_object
from lazyfs.oci.manifest import Index, parse_index
from lazyfs.oci.media_types import OCI_INDEX
from lazyfs.source.local.source import FileRange, LocalSource, opened_in_thread, read_range, select_tagged

_NO_LINKS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hold us


class Directory:
    """The files of a layout, opened without following links, so that none leads out. A LocalContent.

    Args:
        path: the layout's directory, which may itself be a link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._open: dict[str, FileRange] = {}
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise NotFound(
                f"{path}: no directory with an OCI layout: {error.strerror}", url=str(path)
            ) from None
        self._stack.callback(os.close, self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, digest: str) -> FileRange:
        """As LocalContent.find says; files stay open until the end."""
        name = digest_hex(digest)
        with self._lock:
            if digest not in self._open:
                self._open[digest] = self._open_file("blobs", "sha256", name)
            return self._open[digest]

    def has(self, name: str) -> bool:
        """Whether there is something of this name in the layout's top directory."""
        return os.access(name, os.F_OK, dir_fd=self._root, follow_symlinks=False)

    def read(self, name: str) -> bytes:
        """All of a small file of the layout's top directory.

        Raises:
            NotFound: there is none.
            FormatError: it is no regular file, or too large.
        """
        file = self._open_file(name)
        if file.size > MAX_DOCUMENT_BYTES:
            raise LimitExceeded(f"{self._path / name}: {file.size} bytes, more than {MAX_DOCUMENT_BYTES}")
        return bytes(read_range(file, 0, file.size, str(self._path / name)))

    def _open_file(self, *parts: str) -> FileRange:
        """A regular file below the root, no component of which is a link."""
        shown = str(self._path.joinpath(*parts))
        directory, passed = self._root, []
        try:
            for part in parts[:-1]:
                directory = os.open(part, _NO_LINKS | os.O_DIRECTORY, dir_fd=directory)
                passed.append(directory)
            descriptor = os.open(parts[-1], _NO_LINKS, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{shown}: not there", url=shown) from None
        except OSError as error:
            raise SourceError(f"{shown}: cannot be opened: {error.strerror}", url=shown) from None
        finally:
            for opened in passed:
                os.close(opened)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise FormatError(f"{shown}: not a regular file")
        self._stack.callback(os.close, descriptor)
        return FileRange(descriptor, 0, found.st_size)


def read_layout_index(layout: bytes, index: bytes) -> Index:
    """The index of a layout, from the bytes of `oci-layout` and `index.json`.

    Raises:
        FormatError: they are none.
        Unsupported: a later version of the format.
    """
    version = parse_object(layout, "oci-layout").text("imageLayoutVersion")
    if version.partition(".")[0] != "1":
        raise Unsupported(f"OCI layout of version {version[:20]!r}; only 1 is known")
    return parse_index(index, OCI_INDEX)


def open_layout(path: Path, tag: str) -> AbstractAsyncContextManager[LocalSource]:
    """The image called `tag` in the layout at `path`, or its only one.

    Raises:
        NotFound: there is no such layout or image.
        FormatError, Unsupported: it is no layout that can be read.
    """

    def begin(stack: ExitStack) -> LocalSource:
        directory = stack.enter_context(Directory(path))
        if not directory.has("oci-layout"):
            raise NotFound(f"{path}: no OCI layout: it holds no file oci-layout", url=str(path))
        index = read_layout_index(directory.read("oci-layout"), directory.read("index.json"))
        return LocalSource(select_tagged(index, tag, str(path)), directory)

    return opened_in_thread(begin)
