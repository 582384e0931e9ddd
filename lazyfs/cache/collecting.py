"""What is in the cache that no kept image refers to, and taking it away.

Of layers, tables and metadata images the catalogue says which are referred to. Documents refer to each other:
kept are those that the catalogue names, all that these lead to, and those whose subject is one of them
(signatures, published indexes). What is young may be part of an image that is just being opened, and stays.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from indexer.compile import alone_key
from indexer.errors import FormatError
from lazyfs.cache.catalogue import KeptImage
from lazyfs.cache.files import read_bounded
from lazyfs.cache.inventory import allocated, directories, entry_paths, is_in_use
from lazyfs.cache.scratch import Scratch

GRACE_S: Final = 3600.0

_LARGEST_DOCUMENT: Final = 64 << 20
_DIGEST: Final = re.compile(rb"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Garbage:
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

    def find(self, kept: Sequence[KeptImage], grace_s: float = GRACE_S) -> list[Garbage]:
        """What none of these images refers to, and is older than `grace_s` seconds.

        Raises:
            OSError: the disk fails.
        """
        before = time.time() - grace_s
        return [
            Garbage(path.relative_to(self._root).parts[0], _name(path, self._root), allocated(path))
            for path in self._unreferred(kept)
            if _is_older(path, before)
        ]

    def remove(self, garbage: Iterable[Garbage]) -> int:
        """Removes what was found, as far as nobody uses it; returns how many bytes of disk came back.

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

    def _unreferred(self, kept: Sequence[KeptImage]) -> Iterator[Path]:
        root = self._root
        entries = {(layer[7:], toc[7:]) for image in kept for layer, toc in image.layers}
        for path in entry_paths(root / "layers"):
            if (path.parent.name, path.name) not in entries and not is_in_use(path):
                yield path
        layers = {layer for layer, _ in entries}
        yield from (path for path in directories(root / "tocs") if path.name not in layers)
        metadata = {key for image in kept for key in _metadata_keys(image)}
        yield from (path for path in _files(root / "images") if path.stem not in metadata)
        manifests = {image.manifest[7:] for image in kept}
        for part in ("traces", "packs"):
            yield from (path for path in directories(root / part) if path.name not in manifests)
        yield from _unreferred_documents(root, kept)


def _metadata_keys(image: KeptImage) -> Iterator[str]:
    """The keys of an image's tree, and of each of its layers alone."""
    yield image.metadata
    tocs = [toc for _, toc in image.layers]
    with suppress(FormatError):  # a record of digests that are none
        yield from (alone_key(tocs[:number]) for number in range(1, len(tocs) + 1))


def _unreferred_documents(root: Path, kept: Sequence[KeptImage]) -> Iterator[Path]:
    """Documents, and answers to references, that belong to none of the images."""
    documents = {path.name: path for path in _files(root / "documents" / "sha256")}
    mentions = {name: _mentioned(path) for name, path in documents.items()}
    named = {digest[7:] for image in kept for digest in (image.manifest, *image.documents)}
    names = {image.name for image in kept}
    referring = []
    for path in _files(root / "references"):
        reference, digest = _reference(path)
        if reference in names or any(hexadecimal in reference for hexadecimal in named):
            named.add(digest)
        else:
            referring.append((path, digest))
    reached = _reached(named, mentions, documents)
    yield from (path for path, digest in referring if digest not in reached)
    yield from (path for name, path in documents.items() if name not in reached)


def _reached(named: set[str], mentions: Mapping[str, set[str]], documents: Mapping[str, Path]) -> set[str]:
    """Everything that documents lead to from `named`, and from documents whose subject that is."""
    reached: set[str] = set()
    ahead = set(named)
    subjects = {name: subject for name, path in documents.items() if (subject := _subject(path))}
    while ahead:
        reached |= ahead
        ahead = {digest for name in ahead for digest in mentions.get(name, ())}
        ahead |= {name for name, subject in subjects.items() if subject in reached}
        ahead -= reached
    return reached


def _mentioned(path: Path) -> set[str]:
    with suppress(OSError):
        data = read_bounded(path, _LARGEST_DOCUMENT) or b""
        return {match.decode() for match in _DIGEST.findall(data)}
    return set()


def _subject(path: Path) -> str:
    """What a manifest is about (OCI image specification, "subject"); "" for other documents."""
    with suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
        document = json.loads(read_bounded(path, _LARGEST_DOCUMENT) or b"")
        return str(document["subject"]["digest"]).removeprefix("sha256:")
    return ""


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


def _name(path: Path, root: Path) -> str:
    return str(Path(*path.relative_to(root).parts[1:]))


def _is_older(path: Path, before: float) -> bool:
    with suppress(OSError):
        return path.lstat().st_mtime <= before
    return False
