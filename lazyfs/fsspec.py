"""Images as fsspec file systems: what pandas, dask, pyarrow and others read by URL.

    fsspec.open("lazyfs://python:3.12-slim!/etc/os-release")
    fsspec.filesystem("lazyfs", image="python:3.12-slim").ls("/etc")

"!" parts the image's name from the path, so that both may hold "/" and ":"; it stands in no reference. It
chains: "simplecache::lazyfs://IMAGE!/a.csv", "zip://inner.csv::lazyfs://IMAGE!/a.zip". Configuration is that
of the command line; storage options change it (cache_dir=..., platform=..., offline=...).
"""

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from lazyfs.api import Image, open_image
from lazyfs.errors import BadReference, NotFound, WrongKind
from lazyfs.image.inside.browse import Entry

_BLOCK: Final = 256 << 10
_TYPES: Final = {"f": "file", "d": "directory", "l": "link"}


class LazyFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """One image, read-only.

    A symlink is taken for what it leads to, but for one to a directory in the listing of another: that is of
    type "link", so that walks end.

    Args:
        image: its name, as on the command line.
        settings: fields of `lazyfs.config.Config` to change.

    Raises:
        BadReference: no image is named.
        IndexerError, LazyfsError: it cannot be opened.
    """

    protocol = "lazyfs"
    root_marker = "/"
    cachable = True

    def __init__(self, image: str = "", **settings: Any) -> None:
        if not image:
            raise BadReference("no image is named: write lazyfs://IMAGE!/path, or give image=IMAGE")
        super().__init__(image=image, **settings)
        ours = {name: value for name, value in settings.items() if name not in _OF_FSSPEC}
        self.image = open_image(image, **ours)
        self._name = image
        self._end = weakref.finalize(self, Image.close, self.image)

    def close(self) -> None:
        """Stop fetching. What comes by the same URL later is opened anew."""
        self.clear_instance_cache()
        self._end()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = os.fspath(path)
        if text.startswith("lazyfs://"):
            text = _parted(text)[1]
        return "/" + text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        image = _parted(path)[0]
        return {"image": image} if image else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path."""
        return f"lazyfs://{self._name}!{self._strip_protocol(name)}"

    def ls(self, path: str, detail: bool = True, **_more: Any) -> list[Any]:
        """What is in a directory; of a file, itself."""
        path = self._strip_protocol(path)
        with _as_os_errors(path):
            top = self.image.entry(path)
            entries = self.image.scandir(path) if top.letter == "d" else [top]
            found = [self._info(entry, listed=True) for entry in entries]
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **_more: Any) -> dict[str, Any]:
        """What is known of a path."""
        path = self._strip_protocol(path)
        with _as_os_errors(path):
            return self._info(self.image.entry(path, follow=False))

    def _info(self, entry: Entry, *, listed: bool = False) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": "/" + os.fsdecode(entry.path)}
        if entry.letter == "l":
            facts |= {"islink": True, "destination": os.fsdecode(entry.target)}
            if self.image.exists(entry.path):
                target = self.image.entry(entry.path)
                entry = entry if listed and target.letter == "d" else target
        inode = entry.inode
        return facts | {
            "type": _TYPES.get(entry.letter, "other"),
            "size": inode.size if entry.letter == "f" else 0,
            "mode": inode.mode,
            "uid": inode.uid,
            "gid": inode.gid,
            "mtime": inode.mtime_ns / 1_000_000_000,
            "ino": inode.nid,
            "nlink": inode.nlink,
        }

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_more: Any) -> bytes:
        """Bytes [start, end) of a file; negative numbers count from its end."""
        path = self._strip_protocol(path)
        with _as_os_errors(path):
            entry = self.image.file(path)
            first, last, _ = slice(start, end).indices(entry.inode.size)
            return self.image.read_bytes(path, first, max(last - first, 0))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> "LazyFile":
        if mode != "rb":
            raise NotImplementedError("an image is read-only")
        with _as_os_errors(path):
            size = self.image.file(path).inode.size
        return LazyFile(self, path, mode, block_size or _BLOCK, size=size, **options)

    def modified(self, path: str) -> datetime:
        """When a file was modified."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)


class LazyFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec ships no types
    """A file of an image. What is read goes through the cache on disk."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        with _as_os_errors(self.path):
            data: bytes = self.fs.image.read_bytes(self.path, start, end - start)
            return data


_OF_FSSPEC: Final = frozenset({"asynchronous", "loop", "skip_instance_cache", "use_listings_cache"})


def _parted(url: str) -> tuple[str, str]:
    """(image, path) of a URL; the image is "" where none is named."""
    image, mark, path = url.removeprefix("lazyfs://").partition("!")
    return (image, path) if mark else ("", image)


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Raise what fsspec's users expect of a file system."""
    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error
    except WrongKind as error:
        raise IsADirectoryError(errno.EISDIR, str(error), path) from error
