"""What is in the cache that no kept image refers to, and taking it away.

Of layers, tables and metadata images the catalogue says which are referred to. Documents refer to each other:
kept are those that the catalogue names, all that these lead to, and those whose subject is one of them
(signatures, published indexes). What is young may be part of an image that is just being opened, and stays.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct

from indexer.compile import alone_key
from indexer.errors import FormatError
from lazyfs.cache.catalogue import KeptImage
from lazyfs.cache.files import read_bounded
from lazyfs.cache.inventory import allocated, directories, entry_paths, is_in_use
from lazyfs.cache.scratch import Scratch

GRACE_S: Final = 3600.0

_LARGEST_DOCUMENT: Final = 64 << 20
_DIGEST: Final = re.compile(rb"sha256:([0-9a-f]{64})")
_HEXADECIMAL: Final = re.compile(r"(?=([0-9a-f]{64}))")


class Garbage(Struct, frozen=True):
    """Something that nobody refers to.

    Attributes:
        kind: the directory of the cache it is in: "layers", "tocs", "images", …
        name: its name there.
        allocated_bytes: bytes of disk that it takes.
    """

    kind: str
    name: str
    allocated_bytes: int


class Collector:
    """Finds and removes what no kept image refers to.

    Args:
        root: the cache directory.
        scratch: where things go on their way out.
        remove_entry: removes a layer's entry, by its path, unless somebody has it open.
    """

    def __init__(self, root: Path, scratch: Scratch, remove_entry: Callable[[Path], bool]) -> None:
        self._root = root
        self._scratch = scratch
        self._remove_entry = remove_entry

    def survey(self, grace_s: float = GRACE_S) -> "Survey":
        """What is there, of which nothing younger than `grace_s` seconds will be garbage.

        Raises:
            OSError: the disk fails.
        """
        return Survey(self._root, time.time() - grace_s)

    def remove(self, garbage: Iterable[Garbage]) -> int:
        """Removes what was found, but for open layers; returns how many bytes of disk came back.

        Raises:
            OSError: the disk fails.
        """
        freed = 0
        for item in garbage:
            path = self._root / item.kind / item.name
            if item.kind == "layers":
                freed += item.allocated_bytes if self._remove_entry(path) else 0
            else:
                self._scratch.discard(path)
                freed += item.allocated_bytes
        return freed


class Survey:
    """What is in a cache at one moment. All is read once, for any choice of images.

    Args:
        root: the cache directory.
        before: what is younger, in seconds since 1970, is no garbage.

    Raises:
        OSError: the disk fails.
    """

    def __init__(self, root: Path, before: float) -> None:
        self._root = root
        self._before = before
        self._entries = [path for path in entry_paths(root / "layers") if not is_in_use(path)]
        self._tocs = directories(root / "tocs")
        self._images = _files(root / "images")
        self._of_manifests = [*directories(root / "traces"), *directories(root / "packs")]
        self._documents = _Documents(root)
        self._weighed: dict[Path, Garbage | None] = {}
        self._keys = cache(_metadata_keys)

    def garbage(self, kept: Sequence[KeptImage]) -> list[Garbage]:
        """What none of these images refers to.

        Raises:
            OSError: the disk fails.
        """
        return [garbage for path in self._unreferred(kept) if (garbage := self._weigh(path)) is not None]

    def _weigh(self, path: Path) -> Garbage | None:
        if path not in self._weighed:
            kind, *name = path.relative_to(self._root).parts
            is_older = _is_older(path, self._before)
            self._weighed[path] = Garbage(kind, str(Path(*name)), allocated(path)) if is_older else None
        return self._weighed[path]

    def _unreferred(self, kept: Sequence[KeptImage]) -> Iterator[Path]:
        entries = {(layer[7:], toc[7:]) for image in kept for layer, toc in image.layers}
        yield from (path for path in self._entries if (path.parent.name, path.name) not in entries)
        layers = {layer for layer, _ in entries}
        yield from (path for path in self._tocs if path.name not in layers)
        metadata = {key for image in kept for key in self._keys(image)}
        yield from (path for path in self._images if path.stem not in metadata)
        manifests = {image.manifest[7:] for image in kept}
        yield from (path for path in self._of_manifests if path.name not in manifests)
        yield from self._documents.unreferred(kept)


class _Documents:
    """Documents, and answers to references.

    Args:
        root: the cache directory.
    """

    def __init__(self, root: Path) -> None:
        self._paths = {path.name: path for path in _files(root / "documents" / "sha256")}
        self._answers = [(path, *_reference(path)) for path in _files(root / "references")]
        self._leads_to: dict[str, set[str]] = {}
        for name, path in self._paths.items():
            mentioned, subject = _links(path)
            self._leads_to.setdefault(name, set()).update(mentioned)
            if subject:
                self._leads_to.setdefault(subject, set()).add(name)

    def unreferred(self, kept: Sequence[KeptImage]) -> Iterator[Path]:
        """Those that belong to none of the images."""
        named = {digest[7:] for image in kept for digest in (image.manifest, *image.documents)}
        names = {image.name for image in kept}
        referring = []
        for path, reference, digest in self._answers:
            if reference in names or not named.isdisjoint(_HEXADECIMAL.findall(reference)):
                named.add(digest)
            else:
                referring.append((path, digest))
        reached = self._reached(named)
        yield from (path for path, digest in referring if digest not in reached)
        yield from (path for name, path in self._paths.items() if name not in reached)

    def _reached(self, named: set[str]) -> set[str]:
        """Everything that documents lead to from `named`, and from documents whose subject that is."""
        reached: set[str] = set()
        ahead = set(named)
        while ahead:
            reached |= ahead
            ahead = {digest for name in ahead for digest in self._leads_to.get(name, ())} - reached
        return reached


def size_of(garbage: Iterable[Garbage]) -> int:
    """Bytes of disk that it takes."""
    return sum(item.allocated_bytes for item in garbage)


def _metadata_keys(image: KeptImage) -> list[str]:
    """The keys of an image's tree, and of each of its layers alone."""
    keys = [image.metadata]
    tocs = [toc for _, toc in image.layers]
    with suppress(FormatError):  # a record of digests that are none
        keys += [alone_key(tocs[:number]) for number in range(1, len(tocs) + 1)]
    return keys


def _links(path: Path) -> tuple[set[str], str]:
    """What a document mentions, and what it is about: digests in hexadecimal, "" for nothing.

    The latter is a manifest's subject (OCI image specification, "subject").
    """
    data = b""
    with suppress(OSError):
        data = read_bounded(path, _LARGEST_DOCUMENT) or b""
    mentioned = {match.decode() for match in _DIGEST.findall(data)}
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        return mentioned, str(json.loads(data)["subject"]["digest"]).removeprefix("sha256:")
    return mentioned, ""


def _reference(path: Path) -> tuple[str, str]:
    """What was asked for, and the hexadecimal digits of the digest that was the answer."""
    with suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
        record = json.loads(read_bounded(path, 1 << 20) or b"")
        return str(record["reference"]), str(record["descriptor"]["digest"]).removeprefix("sha256:")
    return "", ""


def _files(path: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False))
    return []


def _is_older(path: Path, before: float) -> bool:
    with suppress(OSError):
        return path.lstat().st_mtime <= before
    return False
