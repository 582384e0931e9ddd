"""Looking around in an open image with the words of `os`: answers come at once, from the merged tree.

Paths are given as str, bytes or path objects, from the root, with or without a leading "/"; they come back
as str, from the root, with names that are no UTF-8 as os.fsdecode has them. Symlinks are followed inside the
image: none leads out of it.
"""

import os
from collections.abc import Iterator

from lazyfs.errors import WrongKind
from lazyfs.image.image import Image
from lazyfs.image.inside.browse import Entry, Query, below, children, entry_at, glob
from lazyfs.image.inside.usage import LayerUsage, Usage, layer_usage, usage
from lazyfs.oci.config import ImageConfig

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class ImageView:
    """An open image's names and attributes. Any threads may ask at once.

    Attributes:
        image: the image.
    """

    def __init__(self, image: Image) -> None:
        self.image = image

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.digest}>"

    @property
    def name(self) -> str:
        """The image's name, in canonical form."""
        return self.image.resolved.name

    @property
    def digest(self) -> str:
        """The digest of its manifest."""
        return self.image.resolved.descriptor.digest

    @property
    def config(self) -> ImageConfig:
        """Its configuration: platform, environment, command, history."""
        return self.image.resolved.config

    def entry(self, path: Path = "/", *, follow: bool = True) -> Entry:
        """What is at a path.

        Raises:
            NotFound: nothing.
        """
        return entry_at(self.image.metadata, os.fsencode(path), follow=follow)

    def stat(self, path: Path = "/", *, follow: bool = True) -> os.stat_result:
        """What os.stat would say of a path.

        Raises:
            NotFound: there is nothing.
        """
        return self.entry(path, follow=follow).stat()

    def exists(self, path: Path, *, follow: bool = True) -> bool:
        """Whether a path leads to anything."""
        return self.image.metadata.resolve(os.fsencode(path), follow=follow) is not None

    def listdir(self, path: Path = "/") -> list[str]:
        """The names in a directory, in the order of their bytes.

        Raises:
            NotFound: there is nothing.
            WrongKind: it is no directory.
        """
        return [os.fsdecode(entry.name) for entry in self.scandir(path)]

    def scandir(self, path: Path = "/") -> list[Entry]:
        """The entries of a directory, by name; errors as for `listdir`."""
        directory = self.entry(path)
        if directory.letter != "d":
            raise WrongKind(f"/{os.fsdecode(directory.path)} is not a directory")
        return children(self.image.metadata, directory)

    def readlink(self, path: Path) -> str:
        """A symlink's target, as written.

        Raises:
            NotFound: there is nothing.
            WrongKind: it is no symlink.
        """
        entry = self.entry(path, follow=False)
        if entry.letter != "l":
            raise WrongKind(f"/{os.fsdecode(entry.path)} is not a symlink")
        return os.fsdecode(entry.target)

    def xattrs(self, path: Path, *, follow: bool = True) -> dict[str, bytes]:
        """Extended attributes by name.

        Raises:
            NotFound: there is nothing.
        """
        found = self.image.metadata.xattrs(self.entry(path, follow=follow).inode.nid)
        return {os.fsdecode(name): value for name, value in found.items()}

    def walk(self, path: Path = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """(directory, names of directories in it, other names) from the top down, as os.walk.

        Taking names out of the list of directories keeps the walk out of them. Symlinks are not followed.

        Raises:
            NotFound: there is nothing.
            WrongKind: it is no directory.
        """
        left = [os.path.join("/", os.fsdecode(self.entry(path).path))]  # noqa: PTH118  # of the image
        while left:
            directory = left.pop()
            entries = self.scandir(directory)
            directories = [os.fsdecode(entry.name) for entry in entries if entry.letter == "d"]
            others = [os.fsdecode(entry.name) for entry in entries if entry.letter != "d"]
            yield directory, directories, others
            left.extend(os.path.join(directory, name) for name in reversed(directories))  # noqa: PTH118

    def glob(self, pattern: Path) -> Iterator[str]:
        """The paths that match, as pathlib.Path.glob from the root: "*", "?", "[...]" and "**" count."""
        return ("/" + os.fsdecode(entry.path) for entry in glob(self.image.metadata, os.fsencode(pattern)))

    def below(self, path: Path = "/", depth: int | None = None) -> Iterator[tuple[int, Entry]]:
        """(depth, entry) of what is at a path and everything below it, depth first, by name.

        Raises:
            NotFound: there is nothing.
        """
        return below(self.image.metadata, self.entry(path), depth)

    def find(self, path: Path, query: Query) -> Iterator[Entry]:
        """Those of `below` that a query matches; errors as there."""
        matches = query.matcher()
        return (entry for _, entry in self.below(path) if matches(entry))

    def usage(self, path: Path = "/", *, files: bool = False) -> Iterator[Usage]:
        """What each directory holds, as du(1); see `lazyfs.image.inside.usage`.

        Raises:
            NotFound: there is nothing at the path.
        """
        return usage(self.image, self.entry(path), files=files)

    def layer_usage(self, path: Path = "/") -> list[LayerUsage]:
        """What of a directory comes from which layer.

        Raises:
            NotFound: there is nothing at the path.
        """
        return layer_usage(self.image, self.entry(path))

    def file(self, path: Path) -> Entry:
        """The regular file at a path.

        Raises:
            NotFound: there is nothing.
            WrongKind: it is something else.
        """
        entry = self.entry(path)
        if entry.letter != "f":
            kind = "a directory" if entry.letter == "d" else "not a regular file"
            raise WrongKind(f"/{os.fsdecode(entry.path)} is {kind}")
        return entry
